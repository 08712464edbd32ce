"""Planning: from a mapping and two specs to a plan, or to one error that lists every problem.

Three rounds, each over the leaves only once: explicit rules; then the layers that `[modules]` places; then the layers
that names and shapes place without a doubt. Rules are found by an index of their segments and never applied in turn, so
that a renaming a -> b beside b -> c is one simultaneous renaming.
"""

from __future__ import annotations

import collections
import dataclasses
import gc
from collections.abc import Iterable, Sequence
from typing import Any

from bridges.core._errors import MappingError, describe, hint, listing
from bridges.core._flat import under
from bridges.core._kind import RngState, kind_type
from bridges.core._spec import Spec
from bridges.core._state import State
from bridges.mapping._agree import difference
from bridges.mapping._each import Cast
from bridges.mapping._identify import Found, cut, identify, like
from bridges.mapping._mapping import Mapping
from bridges.mapping._op import Abstract, Op, shapes, signature
from bridges.mapping._place import place
from bridges.mapping._plan import NOT_EXACT, Item, Plan, constant, resolve
from bridges.mapping._rule import LayerRow, Rule
from bridges.mapping._template import Index, Template

Values = tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class _Match:
    """One instance of a rule: these sources become these targets."""

    rule: Rule
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    how: str
    level: int = 0

    @property
    def outcome(self) -> Any:
        return self.sources, self.targets, self.rule.ops, self.rule.value


def make_plan(mapping: Mapping, src: Spec, dst: Spec) -> Plan:
    """Returns the plan; see `Mapping.plan`."""
    # A plan is many small objects that all stay: the collector would go through them again and again, and find nothing.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _Planner(mapping, src, dst).plan()
    finally:
        if collecting:
            gc.enable()


class _Planner:
    def __init__(self, mapping: Mapping, src: Spec, dst: Spec):
        self.mapping, self.src, self.dst = mapping, src, dst
        self.ends = dict(src.entries), dict(dst.entries)
        self.problems: list[str] = []
        self.explained: tuple[set[str], set[str]] = (set(), set())  # leaves that a problem already names
        self.notes: list[tuple[str, str]] = []
        self.matches: list[_Match] = []
        self.sources: dict[str, _Match] = {}
        self.targets: dict[str, _Match] = {}
        self.rows: list[LayerRow] = []
        self.refusals: tuple[dict[str, str], dict[str, str]] = ({}, {})  # type -> why it cannot be converted
        for part in mapping.parts:
            earlier = {row.type for row in self.rows}
            self.rows += [row for row in part.layers if row.type not in earlier and not row.refuse]
            for end in (0, 1):
                types = {t: row.refuse for row in part.layers if row.refuse for t in (row.dst if end else row.src)}
                self.refusals[end].update({t: reason for t, reason in types.items() if t not in self.refusals[end]})
        self.refused: tuple[dict[str, str], dict[str, str]] = ({}, {})  # module -> what is wrong with it
        self.resolved: dict[Any, tuple[tuple[Abstract, ...], ...]] = {}
        self.placements: list[tuple[str, str, str]] = []

    def plan(self) -> Plan:
        self.explicit()
        self.layers()
        self.refuse()
        kept = self.unmatched()
        items = [item for match in self.matches if (item := self.item(match)) is not None]
        if self.problems:
            count = len(self.problems)
            raise MappingError(
                f"The mapping does not join these two ends: {count} problem{'s' * (count > 1)}.\n"
                + listing(dict.fromkeys(self.problems), 100)
            )
        ends = [
            State({p: x for p, x in e.items() if p not in gone}, e.declared)
            for e, gone in zip((self.src.entries, self.dst.entries), map(set, kept), strict=True)
        ]
        src, dst = ends
        return Plan(tuple(items), src, dst, tuple(self.placements), tuple(self.notes), tuple(kept[0]), tuple(kept[1]))

    # Explicit rules --------------------------------------------------------------------------------------------------

    def explicit(self) -> None:
        """Matches rules, drops and fills; of two that want one leaf, the one of the earlier part wins."""
        rules = [(level, rule) for level, part in enumerate(self.mapping.parts) for rule in part.rules]
        indexes: tuple[Index[tuple[int, int]], Index[tuple[int, int]]] = (Index(), Index())
        for n, (_, rule) in enumerate(rules):
            for slot, template in enumerate(rule.src):
                indexes[0].add(template, (n, slot))
            if rule.dst and (not rule.src or rule.indices[1]):
                indexes[1].add(rule.dst[0], (n, 0))
        # (rule, values of the variables of both ends) -> slot -> (the number that only this end has, path)
        groups: tuple[dict[Any, Any], dict[Any, Any]] = ({}, {})
        for end in (0, 1):
            for path, value in self.ends[end].items():
                for (n, slot), values in indexes[end].match(path):
                    rule = rules[n][1]
                    ranks = rule.dst_rank if end else rule.src_rank
                    if ranks and len(value.shape) not in ranks:
                        continue
                    if not rule.src or not rule.dst:
                        key: Any = (n, path)
                        number = None
                    else:
                        number = rule.indices[end]
                        key = (n, tuple(sorted((k, v) for k, v in values.items() if k != number)))
                    slots = groups[end].setdefault(key, {})
                    slots.setdefault(slot, []).append((values[number] if number else 0, path))
        used: set[int] = set()
        found: list[_Match] = []
        for (n, values), slots in groups[0].items():
            used.add(n)
            level, rule = rules[n]
            match = self.instance(rule, dict(values) if rule.dst else {}, slots, groups[1].get((n, values), {}), level)
            found += [match] if match else []
        for (n, path), _ in groups[1].items():
            if not rules[n][1].src:
                used.add(n)
                found.append(_Match(rules[n][1], (), (path,), "fill", rules[n][0]))
        self.take(found)
        for n, (_, rule) in enumerate(rules):
            if n not in used and not rule.optional:
                end = 0 if rule.src else 1
                near = self.near((rule.src or rule.dst)[0].text, self.ends[end])
                self.problems.append(
                    f"rule {rule} is unused: no entry of the {('source', 'target')[end]} matches.{near}"
                )

    def instance(self, rule: Rule, values: dict[str, Any], slots: Any, there: Any, level: int) -> _Match | None:
        """Returns the rule's match for these values of its variables."""
        lacking = [rule.src[slot].format(values) for slot in range(len(rule.src)) if slot not in slots]
        if lacking:
            self.explained[0].update(path for pairs in slots.values() for _, path in pairs)
            near = self.near(lacking[0], self.ends[0])
            self.problems.append(
                f"rule {rule} also needs {', '.join(map(repr, lacking))}, which the source lacks.{near}"
            )
            return None
        ends: list[tuple[str, ...]] = []
        indices = rule.indices if rule.dst else (None, None)
        for number, given in zip(indices, (slots, there), strict=True):
            if not number:
                ends.append(())
                continue
            pairs = sorted(given.get(0, ()))
            numbers = [n for n, _ in pairs]
            if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
                self.problems.append(f"rule {rule}: the numbers {{{number}}} have gaps: {numbers}")
            ends.append(tuple(path for _, path in pairs))
        sources = ends[0] if indices[0] else tuple(slots[slot][0][1] for slot in range(len(rule.src)))
        try:
            targets = ends[1] if indices[1] else tuple(t.format(values) for t in rule.dst)
        except MappingError as err:
            self.problems.append(f"rule {rule} cannot place {sources[0]!r}: {err}")
            return None
        if rule.dst and not targets:
            self.problems.append(
                f"rule {rule}: the target has no entry for it.{self.near(rule.dst[0].text, self.ends[1])}"
            )
            self.explained[0].update(sources)
            return None
        return _Match(rule, sources, targets, "rule" if rule.dst else "drop", level)

    def take(self, found: Iterable[_Match]) -> None:
        """Adds matches, unless an earlier part's match has their leaves; reports conflicts."""
        wanted: dict[str, list[_Match]] = collections.defaultdict(list)
        found = list(found)
        for match in found:
            for path in match.sources:
                wanted[path].append(match)
        beaten: set[int] = set()
        for path, matches in wanted.items():
            if len(matches) > 1:
                first = min(m.level for m in matches)
                best = [m for m in matches if m.level == first]
                beaten.update(id(m) for m in matches if m.level > first)
                if len({m.outcome for m in best}) > 1:
                    rules = " and ".join(str(m.rule) for m in best)
                    self.problems.append(
                        f"{path!r} is matched by {rules}, which differ. Make one of them narrower, or say which goes before"
                        " the other: first | second."
                    )
                beaten.update(id(m) for m in best[1:])
        for match in found:
            if id(match) not in beaten:
                self.add(match)
            elif any(id(m) in beaten and all(o is m for o in wanted[p]) for m in (match,) for p in match.sources):
                self.problems.append(f"rule {match.rule} is overridden for some of its sources {match.sources} only")

    def add(self, match: _Match) -> None:
        """Adds a match whose sources are free, if its targets are there and free."""
        for path in match.targets:
            if path not in self.ends[1]:
                origin = f"{' + '.join(map(repr, match.sources))} goes to" if match.sources else "a fill writes"
                self.problems.append(
                    f"{origin} {path!r} ({match.how}), which the target does not have.{self.near(path, self.ends[1])}"
                )
                self.explained[0].update(match.sources)
                return
            other = self.targets.get(path)
            if other is not None:
                ends = [" + ".join(map(repr, m.sources)) or "a fill" for m in (other, match)]
                self.problems.append(
                    f"{path!r} is the target of {ends[0]} ({other.how}) and of {ends[1]} ({match.how})"
                )
                self.explained[0].update(match.sources)
                return
        self.matches.append(match)
        self.sources.update(dict.fromkeys(match.sources, match))
        self.targets.update(dict.fromkeys(match.targets, match))

    # Layers ----------------------------------------------------------------------------------------------------------

    def layers(self) -> None:
        """Places the layers that still have leaves to be placed, and matches their leaves."""
        given = [(level, s, d) for level, part in enumerate(self.mapping.parts) for s, d in part.modules]
        if not given and not self.rows:
            return
        found = [
            identify(self.convertible(end, given), spec.layers, self.rows, side)
            for end, (spec, side) in enumerate(((self.src, "src"), (self.dst, "dst")))
        ]
        free = [
            {m: f for m, f in found[0].items() if not f.leaves <= self.sources.keys()},
            {m: f for m, f in found[1].items() if not f.leaves <= self.targets.keys()},
        ]
        containers = self.given(given, free)
        if not self.rows:
            return
        likes = self.likes(free)
        for base in sorted(containers, key=lambda pair: -pair[0].count("/")) + [("", "")]:
            inside = [{m: likes[end][m] for m in free[end] if under(m, base[end])} for end in (0, 1)]
            pairs, doubts = place(inside[0], inside[1], *base)
            for s, d, how in pairs:
                self.pair(free[0].pop(s), free[1].pop(d), how)
            for here, there in doubts:
                self.problems.append(
                    f"{_names(here)} and {_names(there)} fit each other in several ways. Say which is which under [modules]."
                )
                for end, paths in enumerate((here, there)):
                    for m in paths:
                        self.explained[end].update(free[end].pop(m).leaves)

    def convertible(self, end: int, given: Sequence[tuple[int, Template, Template]]) -> dict[str, Abstract]:
        """Returns the entries of an end that layers may be made of.

        Those of the random state are none where the other end is of another framework; nor are those of a refused layer
        that is made of others, since its parts would be taken for layers of their own.
        """
        layers = (self.src, self.dst)[end].layers
        apart = self.src.framework != self.dst.framework
        known = {t for row in self.rows for t in (row.dst if end else row.src)}
        for m, layer in layers.items():
            reason = self.refusals[end].get(layer.type)
            if any(above in layers and layers[above].type in known for above in _above(m) if above != m):
                continue  # a part of a layer that has a row, such as the averages of Haiku's BatchNorm
            if reason and not any(_reaches(line[1:][end], m) for line in given):
                self.refused[end][m] = f"is a {layer.type}, which cannot be converted: {reason}"
        rest = {}
        for path, value in self.ends[end].items():
            module = cut(path)[1]
            owner = next((m for m in _above(module) if m in self.refused[end]), module)
            if owner == module and not (apart and self.random(end, path)):
                rest[path] = value
        return rest

    def random(self, end: int, path: str) -> bool:
        """Whether the entry is random state: a key, or how often it was drawn from."""
        kind = (self.src, self.dst)[end].entries.kind(path)
        return kind is not None and issubclass(kind_type(kind), RngState)

    def refuse(self) -> None:
        """Reports the layers that are refused and found no counterpart."""
        for end, done in enumerate((self.sources, self.targets)):
            for path in self.ends[end] if self.refused[end] else ():
                module = next((m for m in _above(cut(path)[1]) if m in self.refused[end]), None)
                if module is not None and path not in done:
                    self.explained[end].add(path)
                    self.problems.append(f"{('source', 'target')[end]} {module!r} {self.refused[end][module]}")

    def given(
        self, given: Sequence[tuple[int, Template, Template]], free: list[dict[str, Found]]
    ) -> list[tuple[str, str]]:
        """Pairs the layers that `[modules]` names; returns the pairs of modules that only hold others."""
        index: Index[int] = Index()
        for n, (_, template, _) in enumerate(given):
            index.add(template, n)
        parents = {m[:at] for m in free[0] for at in (i for i, c in enumerate(m) if c == "/")}
        used: set[int] = set()
        containers = []
        for module in [*free[0], *sorted(parents - free[0].keys())]:
            matches = index.match(module)
            if not matches:
                continue
            used.update(n for n, _ in matches)
            first = min(given[n][0] for n, _ in matches)
            goals = {given[n][2].format(values) for n, values in matches if given[n][0] == first}
            if len(goals) > 1:
                self.problems.append(
                    f"[modules] sends {module!r} to {_names(sorted(goals))}: make one of the lines narrower"
                )
                continue
            goal = goals.pop()
            if module not in free[0]:
                containers.append((module, goal))
            elif goal in free[1]:
                self.pair(free[0].pop(module), free[1].pop(goal), "given")
            else:
                self.problems.append(
                    f"[modules] sends {module!r} to {goal!r}, where the target has no entries left to fill."
                    + self.near(goal, free[1])
                )
                self.explained[0].update(free[0].pop(module).leaves)
        everything = {cut(p)[1] for p in self.ends[0]}
        for n, (_, template, goal_template) in enumerate(given):
            if n not in used and not any(_reaches(template, m) for m in everything):
                self.problems.append(
                    f"[modules] {template.text!r} = {goal_template.text!r} is unused: the source has no such module."
                    + self.near(template.text, everything)
                )
        return containers

    def likes(self, free: list[dict[str, Found]]) -> list[dict[str, Any]]:
        """Returns what each layer is like; of several rows, one that the other end has as well."""
        both = [
            {m: like(f, self.ends[end], self.rows, side) for m, f in free[end].items()}
            for end, side in ((0, "src"), (1, "dst"))
        ]
        have = [{x for options in end.values() for x in options.values()} for end in both]
        return [
            {
                m: next((x for x in options.values() if x in have[1 - end]), next(iter(options.values())))
                for m, options in both[end].items()
            }
            for end in (0, 1)
        ]

    def pair(self, src: Found, dst: Found, how: str) -> None:
        """Matches the leaves of two layers that stand for one another."""
        rows = [r for r in src.rows if r in dst.rows]
        self.placements.append((src.path, dst.path, how))
        if not rows and (src.rows or dst.rows):
            types = [" or ".join(self.rows[r].type for r in f.rows) or "an unknown layer" for f in (src, dst)]
            known = [spec.layers.get(f.path) for spec, f in ((self.src, src), (self.dst, dst))]
            types = [f"{t} ({k.type})" if k else t for t, k in zip(types, known, strict=True)]
            self.problems.append(
                f"{src.path!r} is {types[0]}, {dst.path!r} ({how}) is {types[1]}: no layer convention joins the two"
            )
            self.explained[0].update(src.leaves)
            self.explained[1].update(dst.leaves)
            return
        if not rows and how != "given" and self.stock(src.path, dst.path):
            if self.refused[0].get(src.path) or self.refused[1].get(dst.path):
                return  # `refuse` says why
            joined = " and ".join(spec.layers[f.path].type for spec, f in ((self.src, src), (self.dst, dst)))
            self.problems.append(
                f"{src.path!r} and {dst.path!r} have the same leaves, but no convention says that {joined} mean the same by"
                " them. If they do, say so under [modules]."
            )
            self.explained[0].update(src.leaves)
            self.explained[1].update(dst.leaves)
            return
        if not rows:
            for path in sorted(src.leaves - self.sources.keys()):
                collection, _, leaf = cut(path)
                goal = "/".join(filter(None, (collection, dst.path, leaf)))
                self.add(_Match(_RENAME, (path,), (goal,), how))
            return
        outcomes = [[self.lean(m) for m in self.row_matches(r, src, dst, how)] for r in rows]
        if any({m.outcome for m in o} != {m.outcome for m in outcomes[0]} for o in outcomes[1:]):
            types = [self.rows[r].type for r in rows]
            self.problems.append(
                f"{src.path!r} -> {dst.path!r} could be {' or '.join(types)}, which are stored differently: plan with specs"
                " that have `layers` (the adapter's spec of the model)"
            )
        for match in outcomes[0]:
            self.add(match)
        self.hyperparameters(self.rows[rows[0]], src.path, dst.path)

    def stock(self, src: str, dst: str) -> bool:
        """Whether these are layers of two different frameworks themselves, not of the user."""
        ends = (self.src, src), (self.dst, dst)
        types = [spec.layers[m].type if m in spec.layers else "" for spec, m in ends]
        own = all(t.startswith(spec.framework + ".") for t, (spec, _) in zip(types, ends, strict=True))
        return own and self.src.framework != self.dst.framework

    def row_matches(self, r: int, src: Found, dst: Found, how: str) -> list[_Match]:
        """Returns the matches of a row's rules for two layers."""
        matches = []
        for k, rule in enumerate(self.rows[r].rules):
            sources = src.rows[r].get(k, ())
            if (rule.src and not sources) or any(path in self.sources for path in sources):
                continue
            targets = tuple(t.format({"m": dst.path}) for t in rule.dst)
            if any(path in self.targets for path in targets) or (not rule.src and k not in dst.rows[r]):
                continue
            if rule.refuse and not targets:
                self.problems.append(f"{sources[0]!r}: {rule.refuse}. If it is, name it under `drop`")
                self.explained[0].update(sources)
                continue
            matches.append(_Match(rule, sources, targets, f"{self.rows[r].type}, {how}"))
        return matches

    def lean(self, match: _Match) -> _Match:
        """Returns the match without a reshape to the shape that the array has already."""
        ends = [self.ends[0][p] for p in match.sources], [self.ends[1][p] for p in match.targets if p in self.ends[1]]
        same = len(ends[0]) == len(ends[1]) == 1 and signature(ends[0]) == signature(ends[1])
        if not same or any(op.to_dict() != {"op": "reshape"} for op in match.rule.ops):
            return match
        return dataclasses.replace(match, rule=dataclasses.replace(match.rule, ops=()))

    def hyperparameters(self, row: LayerRow, src: str, dst: str) -> None:
        """Compares what the two layers must agree in, where both models were at hand."""
        layers = self.src.layers.get(src), self.dst.layers.get(dst)
        if layers[0] is None or layers[1] is None:
            return
        for agree in row.agree:
            values = difference(agree, layers[0], layers[1])
            if values is None or agree.src is None or agree.dst is None:
                continue
            text = (
                f"the target's {layers[1].type.split('.')[-1]} at {dst!r} has {agree.name} {values[1]!r}, the source's"
                f" {layers[0].type.split('.')[-1]} at {src!r} has {values[0]!r}"
            )
            if any(t.match(dst) is not None and name == agree.name for p in self.mapping.parts for t, name in p.accept):
                self.notes.append((NOT_EXACT, f"accepted: {text}"))
                continue
            if agree.dst.name:
                remedy = f"pass {agree.dst.name}={values[0]!r} there"
            else:
                remedy = f"the target has no such setting: change the source's {agree.src.name or 'layer'}"
            effect = f" {agree.effect}" if agree.effect else ""
            self.problems.append(f"{text}: {remedy}.{effect} To accept it: accept = {{ {dst!r} = ['{agree.name}'] }}")

    # The end ---------------------------------------------------------------------------------------------------------

    def unmatched(self) -> tuple[list[str], list[str]]:
        """Lists the leaves of either end that nothing was found for; returns the random state among them."""
        rest = (
            [p for p in self.ends[0] if p not in self.sources and p not in self.explained[0]],
            [p for p in self.ends[1] if p not in self.targets and p not in self.explained[1]],
        )
        kept = [p for p in rest[0] if self.random(0, p)], [p for p in rest[1] if self.random(1, p)]
        lacks = (
            ("source", "has no rule: write one, or `drop` it"),
            ("target", "gets nothing: write a rule, or `fill` it"),
        )
        for end, (name, lack) in enumerate(lacks):
            for path in (p for p in rest[end] if p not in kept[end]):
                what = f"{name} {path!r} {describe(self.ends[end][path])}{self.unknown(end, path)}"
                self.problems.append(f"{what} {lack}.{self.near(path, rest[1 - end])}")
        return kept

    def unknown(self, end: int, path: str) -> str:
        """Returns ` (…)` if the leaf is of a layer that the mapping has no row for."""
        layer = (self.src, self.dst)[end].layers.get(cut(path)[1])
        known = {t for row in self.rows for t in (row.dst if end else row.src)}
        return (
            f" (the layer {layer.type} has no convention here)"
            if layer and self.rows and layer.type not in known
            else ""
        )

    def near(self, path: str, others: Iterable[str]) -> str:
        """Returns a hint; only for the first problems, since looking for near names takes time."""
        return hint(path, others) if len(self.problems) < 10 else ""

    def stages(
        self, ops: tuple[Op, ...], ins: list[Abstract], outs: list[Abstract]
    ) -> tuple[tuple[Abstract, ...], ...]:
        """Returns `resolve(ops, ins, outs)`, worked out once for all leaves of the same shapes."""
        key = ops, tuple(signature(ins)), tuple(signature(outs))
        if key not in self.resolved:
            self.resolved[key] = resolve(ops, ins, outs)
        return self.resolved[key]

    def item(self, match: _Match) -> Item | None:
        """Returns the match as an item of the plan, its shapes checked."""
        ins, outs = [self.ends[0][p] for p in match.sources], [self.ends[1][p] for p in match.targets]
        ops = match.rule.ops
        if ins and outs and any(t.match(match.targets[0]) is not None for p in self.mapping.parts for t in p.cast):
            ops = (Cast(str(outs[0].dtype)), *ops) if ins[0].dtype != outs[0].dtype else ops
        names = f"{' + '.join(map(repr, match.sources)) or 'fill'} -> {' + '.join(map(repr, match.targets)) or 'drop'}"
        try:
            stages = self.stages(ops, ins, outs) if ins and outs else (tuple(ins), tuple(outs))
            for spec in () if match.rule.value is None else (*ins, *outs):
                constant(match.rule.value, spec)
        except MappingError as err:
            dtypes = {x.dtype for x in (*ins, *outs)}
            remedy = (
                " A change of dtype must be said: name the target under `cast`, or add the op cast."
                if len(dtypes) > 1 and ins and outs
                else ""
            )
            self.problems.append(f"{names} ({match.how}): {shapes(ins)} does not fit {shapes(outs)}: {err}.{remedy}")
            return None
        return Item(
            match.sources, match.targets, ops, stages, match.how, match.rule.value, match.rule.reason, match.rule.resume
        )


_RENAME = Rule((Template("{m:module}"),), (Template("{m:module}"),))


def _above(module: str) -> Iterable[str]:
    """Yields the module and those above it, to the root."""
    while True:
        yield module
        if not module:
            return
        module = module.rpartition("/")[0]


def _names(paths: Sequence[str]) -> str:
    return ", ".join(map(repr, paths[:6])) + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")


def _reaches(template: Template, module: str) -> bool:
    """Whether the template names the module, or one above it."""
    parts = module.split("/")
    return any(template.match("/".join(parts[: n + 1])) is not None for n in range(len(parts)))
