"""The second round of planning: layers that `[modules]` places, then those that names and shapes place without a doubt."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from bridges.core._spec import Spec
from bridges.mapping._agree import difference, normal
from bridges.mapping._draft import Draft, Match
from bridges.mapping._identify import Found, above, cut, identify, like
from bridges.mapping._lines import lines_for, odd_ones
from bridges.mapping._op import Abstract
from bridges.mapping._order import Flow
from bridges.mapping._place import place
from bridges.mapping._plan import EXACT, NOT_EXACT
from bridges.mapping._rule import LayerRow, Rule, holds
from bridges.mapping._template import Index, Template
from bridges.mapping._unrolled import Unrolled, indexed


class LayerMatcher:
    """Finds the layers of both ends, pairs them and matches their leaves.

    Attributes:
      rows: The layer rows that apply; of two with one type, the earlier part's.
    """

    def __init__(self, draft: Draft):
        self.draft = draft
        self.rows: list[LayerRow] = []
        self.refusals: tuple[dict[str, list[LayerRow]], dict[str, list[LayerRow]]] = ({}, {})  # by type
        for part in draft.mapping.parts:
            earlier = {row.type for row in self.rows}
            self.rows += [row for row in part.layers if row.type not in earlier and not row.refuse]
            for end in (0, 1):
                for row in (row for row in part.layers if row.refuse):
                    for name in row.dst if end else row.src:
                        self.refusals[end].setdefault(name, []).append(row)
        self.bare: dict[int, Rule] = {}  # id of a row's rule -> the rule without its ops
        self.compared: set[tuple[str, str]] = set()
        self.refused: tuple[dict[str, str], dict[str, str]] = ({}, {})  # module -> what is wrong with it

    def layers(self) -> None:
        """Places the layers that still have leaves to be placed, and matches their leaves."""
        lines = [(level, *line) for level, part in enumerate(self.draft.mapping.parts) for line in part.modules]
        if not lines and not self.rows:
            return
        named = [[indexed(line[1:][end]) for line in lines] for end in (0, 1)]
        self.draft.unroll([[stacks for _, stacks in named[end] if stacks] for end in (0, 1)])
        given = [(line[0], s, d) for line, (s, _), (d, _) in zip(lines, *named, strict=True)]
        found = [
            identify(self.convertible(end, given), unrolled.layers, self.rows, side)
            for end, (unrolled, side) in enumerate(zip(self.draft.unrolled, ("src", "dst"), strict=True))
        ]
        free = [
            {m: f for m, f in found[0].items() if not f.leaves <= self.draft.sources.keys()},
            {m: f for m, f in found[1].items() if not f.leaves <= self.draft.targets.keys()},
        ]
        containers = self.given(given, free)
        if not self.rows:
            return
        every = dict(free[0]), dict(free[1])
        likes = self.likes(free)
        specs = (self.draft.src, self.draft.dst)
        calls = [_calls(spec.called, end) for spec, end in zip(specs, self.draft.unrolled, strict=True)]
        flows = [_flows(every[end], specs[end], self.draft.unrolled[end]) for end in (0, 1)]
        done: tuple[set[str], set[str]] = (set(), set())
        below = [_below(every[end], {pair[end] for pair in containers}) for end in (0, 1)]
        for base in sorted(containers, key=lambda pair: -pair[0].count("/")) + [("", "")]:
            tied = [bool(base[end]) and base[end] in done[end] for end in (0, 1)]  # the same modules once more
            have = [every[end] if tied[end] else free[end] for end in (0, 1)]
            inside = [
                {m: likes[end][m] for m in below[end].get(base[end], every[end]) if m in have[end]} for end in (0, 1)
            ]
            pairs, doubts = place(inside[0], inside[1], *base, calls=calls, flows=flows)
            for s, d, how in pairs:
                for end, m in enumerate((s, d)):
                    free[end].pop(m, None)
                self.pair(every[0][s], every[1][d], how, any(tied))
            done[0].add(base[0])
            done[1].add(base[1])
            times = collections.Counter(m for doubt in doubts for m in {*doubt.src, *doubt.dst})
            for doubt in doubts:
                if any(times[m] > 1 for m in (*doubt.src, *doubt.dst)):  # the short names do for several doubts
                    doubt.src, doubt.dst = doubt.full
                counts = len(doubt.src), len(doubt.dst)
                unlike = f" They are {counts[0]} and {counts[1]}." if 1 not in counts and counts[0] != counts[1] else ""
                odd = odd_ones(doubt.src, self.draft.ends[0]) + odd_ones(doubt.dst, self.draft.ends[1])
                self.draft.problems.append(
                    f"{_names(doubt.src)} and {_names(doubt.dst)} {doubt.why}. Say which is which under"
                    f" [modules]{lines_for(doubt.src, doubt.dst)}.{unlike}{odd}"
                )
                for end, paths in enumerate(doubt.layers):
                    for m in paths:
                        self.draft.explained[end].update(every[end][m].leaves)
                        free[end].pop(m, None)

    def convertible(self, end: int, given: Sequence[tuple[int, Template, Template]]) -> dict[str, Abstract]:
        """Returns the entries of an end that layers may be made of.

        Those of the random state are none where the other end is of another framework; nor are those of a refused layer
        that is made of others, since its parts would be taken for layers of their own.
        """
        layers = self.draft.unrolled[end].layers
        apart = self.draft.src.framework != self.draft.dst.framework
        known = {t for row in self.rows for t in (row.dst if end else row.src)}
        for m, layer in layers.items():
            refusing = self.refusals[end].get(layer.type, ())
            reason = next((r.refuse for r in refusing if holds(r.dst_when if end else r.src_when, layer)), None)
            if any(above in layers and layers[above].type in known for above in above(m) if above != m):
                continue  # a part of a layer that has a row, such as the averages of Haiku's BatchNorm
            if reason and not any(_reaches(line[1:][end], m) for line in given):
                self.refused[end][m] = f"is a {layer.type}, which cannot be converted: {reason}"
        rest = {}
        for path, value in self.draft.ends[end].items():
            module = cut(path)[1]
            owner = next((m for m in above(module) if m in self.refused[end]), module)
            if owner == module and not (apart and self.draft.random(end, path)):
                rest[path] = value
        return rest

    def refuse(self) -> None:
        """Reports the layers that are refused and found no counterpart."""
        for end, done in enumerate((self.draft.sources, self.draft.targets)):
            for path in self.draft.ends[end] if self.refused[end] else ():
                module = next((m for m in above(cut(path)[1]) if m in self.refused[end]), None)
                if module is not None and path not in done:
                    self.draft.explained[end].add(path)
                    self.draft.problems.append(f"{('source', 'target')[end]} {module!r} {self.refused[end][module]}")

    def given(
        self, given: Sequence[tuple[int, Template, Template]], free: list[dict[str, Found]]
    ) -> list[tuple[str, str]]:
        """Pairs the layers that `[modules]` names; returns the pairs of modules that only hold others."""
        index: Index[int] = Index()
        for n, (_, template, _) in enumerate(given):
            index.add(template, n)
        parents = {m[:at] for m in free[0] for at in (i for i, c in enumerate(m) if c == "/")}
        every, filled = dict(free[1]), set[str]()
        modules: set[str] = set()

        def beyond(goal: str) -> bool:
            if not modules:
                modules.update(m for path in self.draft.ends[1] for m in above(cut(path)[1]))
            return goal not in modules

        used: set[int] = set()
        taken: dict[str, str] = {}
        containers: list[tuple[str, str]] = []
        for module in [*free[0], *sorted(parents - free[0].keys())]:
            matches = index.match(module)
            if not matches:
                continue
            used.update(n for n, _ in matches)
            first = min(given[n][0] for n, _ in matches)
            goals = {given[n][2].format(values): given[n][1] for n, values in matches if given[n][0] == first}
            if len(goals) > 1:  # a line is not for what lies beyond the end of a list or stack
                goals = {goal: line for goal, line in goals.items() if not beyond(goal)} or goals
            if len(set(goals.values())) > 1:
                self.draft.problems.append(
                    f"[modules] sends {module!r} to {_names(sorted(goals))}: make one of the lines narrower"
                )
                continue
            found = free[0].pop(module, None)
            for goal in goals:
                if goal in taken and "/[" in f"/{goal}":
                    self.draft.problems.append(f"[modules] sends both {taken[goal]!r} and {module!r} to {goal!r}")
                    continue
                taken[goal] = module
                if found is None or module in parents:  # a layer may hold others too
                    containers.append((module, goal))
                if found is None:
                    continue
                if goal in every:
                    free[1].pop(goal, None)
                    self.pair(found, every[goal], "given", len(goals) > 1 or goal in filled)
                    filled.add(goal)
                else:
                    self.draft.problems.append(
                        f"[modules] sends {module!r} to {goal!r}, where the target has no entries left to fill."
                        + self.draft.near(goal, free[1])
                    )
                    self.draft.explained[0].update(found.leaves)
        everything = {cut(p)[1] for p in self.draft.ends[0]}
        for n, (_, template, goal_template) in enumerate(given):
            if n not in used and not any(_reaches(template, m) for m in everything):
                self.draft.problems.append(
                    f"[modules] {template.text!r} = {goal_template.text!r} is unused: the source has no such module."
                    + self.draft.near(template.text, everything)
                )
        return containers

    def likes(self, free: list[dict[str, Found]]) -> list[dict[str, Any]]:
        """Returns what each layer is like; of several rows, one that the other end has as well."""
        both = [
            {m: like(f, self.draft.ends[end], self.rows, side) for m, f in free[end].items()}
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

    def pair(self, src: Found, dst: Found, how: str, tied: bool = False) -> None:
        """Matches the leaves of two layers that stand for one another; `tied`, if one of them does for others too."""
        self.draft.tied |= tied
        rows = [r for r in src.rows if r in dst.rows]
        self.draft.placements.append((src.path, dst.path, how))
        if not rows and (src.rows or dst.rows) and not (how == "given" and self.own(src, dst)):
            types = [" or ".join(self.rows[r].type for r in f.rows) or "an unknown layer" for f in (src, dst)]
            known = [spec.layers.get(f.path) for spec, f in zip(self.draft.unrolled, (src, dst), strict=True)]
            types = [f"{t} ({k.type})" if k else t for t, k in zip(types, known, strict=True)]
            self.draft.problems.append(
                f"{src.path!r} is {types[0]}, {dst.path!r} ({how}) is {types[1]}: no layer convention joins the two"
            )
            self.draft.explained[0].update(src.leaves)
            self.draft.explained[1].update(dst.leaves)
            return
        if not rows and how != "given" and self.stock(src.path, dst.path):
            if self.refused[0].get(src.path) or self.refused[1].get(dst.path):
                return  # `refuse` says why
            joined = " and ".join(
                spec.layers[f.path].type for spec, f in zip(self.draft.unrolled, (src, dst), strict=True)
            )
            self.draft.problems.append(
                f"{src.path!r} and {dst.path!r} have the same leaves, but no convention says that {joined} mean the same by"
                " them. If they do, say so under [modules]."
            )
            self.draft.explained[0].update(src.leaves)
            self.draft.explained[1].update(dst.leaves)
            return
        if not rows:
            for path in sorted(src.leaves if tied else src.leaves - self.draft.sources.keys()):
                self.draft.add(Match(_RENAME, (path,), (_same(path, dst),), how), tied)
            return
        if how != "given" and (whose := self.derived(src.path, dst.path)):
            self.draft.problems.append(
                f"{src.path!r} and {dst.path!r} have the leaves of {self.rows[rows[0]].type}, but {whose} with a method of"
                " its own in place of the layer's. If they compute the same, say so under [modules]:"
                f" {src.path!r} = {dst.path!r}"
            )
            self.draft.explained[0].update(src.leaves)
            self.draft.explained[1].update(dst.leaves)
            return
        outcomes = [[self.lean(m) for m in self.row_matches(r, src, dst, how, tied)] for r in rows]
        if any({m.outcome for m in o} != {m.outcome for m in outcomes[0]} for o in outcomes[1:]):
            types = [self.rows[r].type for r in rows]
            self.draft.problems.append(
                f"{src.path!r} -> {dst.path!r} could be {' or '.join(types)}, which are stored differently: plan with specs"
                " that have `layers` (the adapter's spec of the model)"
            )
        for match in outcomes[0]:
            self.draft.add(match, tied)
        self.hyperparameters(self.rows[rows[0]], src.path, dst.path)

    def own(self, src: Found, dst: Found) -> bool:
        """Whether one of the two is a module of the user's own that holds entries of the same names as the other."""
        specs = self.draft.src, self.draft.dst
        types = [unrolled.layers.get(f.path) for unrolled, f in zip(self.draft.unrolled, (src, dst), strict=True)]
        owned = [
            t is not None and not t.type.startswith(f"{spec.framework}.") for t, spec in zip(types, specs, strict=True)
        ]
        names = [{p.removeprefix(cut(p)[0] + "/").removeprefix(f.path + "/") for p in f.leaves} for f in (src, dst)]
        return any(owned) and names[0] == names[1]

    def derived(self, src: str, dst: str) -> str:
        """Returns which of the two layers has a user's method in place of the framework's; empty if both are one class."""
        layers = [u.layers.get(m) for u, m in zip(self.draft.unrolled, (src, dst), strict=True)]
        own = [(m, x) for m, x in zip((src, dst), layers, strict=True) if x is not None and x.own]
        if len(own) == 2 and own[0][1].own == own[1][1].own:
            return ""
        return " and ".join(f"{m!r} is a {layer.own}, a {layer.type}" for m, layer in own)

    def stock(self, src: str, dst: str) -> bool:
        """Whether these are layers of two different frameworks themselves, not of the user."""
        types = [
            u.layers[m].type if m in u.layers else "" for u, m in zip(self.draft.unrolled, (src, dst), strict=True)
        ]
        own = all(t.startswith(s.framework + ".") for t, s in zip(types, (self.draft.src, self.draft.dst), strict=True))
        return own and self.draft.src.framework != self.draft.dst.framework

    def row_matches(self, r: int, src: Found, dst: Found, how: str, tied: bool) -> list[Match]:
        """Returns the matches of a row's rules for two layers."""
        matches = []
        for k, rule in enumerate(self.rows[r].rules):
            sources = src.rows[r].get(k, ())
            if (rule.src and not sources) or (not tied and any(path in self.draft.sources for path in sources)):
                continue
            targets = tuple(t.format({"m": dst.path}) for t in rule.dst)
            if (not tied and any(path in self.draft.targets for path in targets)) or (
                not rule.src and k not in dst.rows[r]
            ):
                continue
            if rule.refuse and not targets:
                self.draft.problems.append(f"{sources[0]!r}: {rule.refuse}. If it is, name it under `drop`")
                self.draft.explained[0].update(sources)
                continue
            matches.append(Match(rule, sources, targets, f"{self.rows[r].type}, {how}"))
        return matches

    def lean(self, match: Match) -> Match:
        """Returns the match without a reshape to the shape that the array has already."""
        ends = (
            [self.draft.ends[0][p] for p in match.sources],
            [self.draft.ends[1][p] for p in match.targets if p in self.draft.ends[1]],
        )
        same = len(ends[0]) == len(ends[1]) == 1 and ends[0][0].shape == ends[1][0].shape
        if not same or any(op.to_dict() != {"op": "reshape"} for op in match.rule.ops):
            return match
        if id(match.rule) not in self.bare:
            self.bare[id(match.rule)] = dataclasses.replace(match.rule, ops=())
        return Match(self.bare[id(match.rule)], match.sources, match.targets, match.how, match.level)

    def bare_layers(self) -> None:
        """Compares the layers that hold no variables (normalisation without scale or bias), where both ends have as many.

        Nothing says which is which: only whether all settings of one end are those of the other counts.
        """
        bare = []
        for end, unrolled in enumerate(self.draft.unrolled):
            have = {m for path in self.draft.ends[end] for m in above(cut(path)[1])}
            bare.append({m: layer for m, layer in unrolled.layers.items() if m not in have})
        for row in self.rows if all(bare) else ():
            found = []
            for end, side in enumerate(("src", "dst")):
                settings = [(x.src, x.dst)[end] for x in row.agree if x.src and x.dst]
                known = [
                    (repr([normal(hyper, layer) for hyper in settings if hyper]), m)
                    for m, layer in bare[end].items()
                    if row.applies(side, layer, m, ())
                ]
                found.append([m for _, m in sorted(known)])
            if len(found[0]) == len(found[1]):
                for src, dst in zip(*found, strict=True):
                    self.hyperparameters(row, src, dst)

    def hyperparameters(self, row: LayerRow, src: str, dst: str) -> None:
        """Compares what the two layers must agree in, where both models were at hand."""
        layers = self.draft.unrolled[0].layers.get(src), self.draft.unrolled[1].layers.get(dst)
        pair = self.draft.unrolled[0].own(src), self.draft.unrolled[1].own(dst)
        if layers[0] is None or layers[1] is None or pair in self.compared:
            return  # copies are all alike
        self.compared.add(pair)
        src, dst = pair
        for agree in row.agree:
            values = difference(agree, layers[0], layers[1])
            if values is None or agree.src is None or agree.dst is None:
                continue
            text = (
                f"the target's {layers[1].type.split('.')[-1]} at {dst!r} has {agree.name} {values[1]!r}, the source's"
                f" {layers[0].type.split('.')[-1]} at {src!r} has {values[0]!r}"
            )
            if agree.note:
                self.draft.notes.append((EXACT, f"note: {text}. {agree.effect}"))
                continue
            if any(
                t.match(dst) is not None and name == agree.name
                for p in self.draft.mapping.parts
                for t, name in p.accept
            ):
                self.draft.notes.append((NOT_EXACT, f"accepted: {text}"))
                continue
            if agree.remedy:
                remedy = agree.remedy
            elif agree.dst.name:
                remedy = f"pass {agree.dst.name}={values[0]!r} there"
            else:
                remedy = f"the target has no such setting: change the source's {agree.src.name or 'layer'}"
            effect = f" {agree.effect}" if agree.effect else ""
            self.draft.problems.append(
                f"{text}: {remedy}.{effect} To accept it: accept = {{ {dst!r} = ['{agree.name}'] }}"
            )


_RENAME = Rule((Template("{m:module}"),), (Template("{m:module}"),))


def _below(modules: Iterable[str], bases: Container[str]) -> dict[str, list[str]]:
    """Returns the modules that are, or are below, each of the bases."""
    found: dict[str, list[str]] = {}
    for module in modules:
        for base in above(module):
            if base in bases:
                found.setdefault(base, []).append(module)
    return found


def _same(path: str, dst: Found) -> str:
    """Returns the path of the entry of the same name in a layer of the target.

    What is no parameter lies in one collection in Haiku (`state`), in any in Flax: there the name alone decides.
    """
    collection, _, leaf = cut(path)
    goal = "/".join(filter(None, (collection, dst.path, leaf)))
    others = [p for p in dst.leaves if cut(p)[2] == leaf and (cut(p)[0] == "params") == (collection == "params")]
    return others[0] if goal not in dst.leaves and len(others) == 1 else goal


def _names(paths: Sequence[str]) -> str:
    return ", ".join(map(repr, paths[:6])) + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")


def _reaches(template: Template, module: str) -> bool:
    """Whether the template names the module, or one above it."""
    parts = module.split("/")
    return any(template.match("/".join(parts[: n + 1])) is not None for n in range(len(parts)))


def _calls(called: Sequence[str], unrolled: Unrolled) -> dict[str, int]:
    """Returns when each module is first called; all copies of a stack at once."""
    ranks = {path: n for n, path in enumerate(called)}
    copies = {copy: ranks[path] for copy, path in unrolled.modules.items() if path in ranks}
    return {**ranks, **copies}


def _flows(found: Mapping[str, Found], spec: Spec, unrolled: Unrolled) -> dict[str, Flow]:
    """Returns when each layer is first used, and on what; copies of a stack that is read backwards in that order."""
    flows = {}
    for module, layer in found.items():
        mask, after, ranks = 0, 0, []
        for path in layer.leaves if spec.uses else ():
            copy = unrolled.copies.get(path)
            if use := spec.uses.get(copy.path if copy else path):
                mask |= 1 << use.own
                after |= use.after
                ranks.append((use.rank, -copy.number if copy and use.backwards else 0))
        if ranks:
            flows[module] = Flow(min(ranks), mask, after)
    return flows
