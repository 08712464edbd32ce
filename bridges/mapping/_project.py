"""Projection: what a mapping makes of a source alone, where no model of the target is at hand.

The mapping is read forwards: each rule's targets are written from its matches, their shapes inferred from op to op, and
each layer that `[modules]` names takes its convention's leaves along. What a target's shape cannot be inferred for, or
what goes nowhere, is a problem, as in a plan; all are in one error. A plan is then made as ever, between the source and
the projection.

What it does not do: place modules by order and shape (there is nothing to place them among), or compare hyperparameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bridges.core._errors import MappingError, describe, hint, listing
from bridges.core._flat import under
from bridges.core._spec import Spec
from bridges.mapping._each import Reshape
from bridges.mapping._identify import Found, cut, identify
from bridges.mapping._lists import Copy
from bridges.mapping._mapping import Mapping
from bridges.mapping._op import Abstract, Op, like, shapes
from bridges.mapping._row import LayerRow
from bridges.mapping._rule import Rule
from bridges.mapping._template import Index

Entries = dict[str, Abstract]
# Layers of which every leaf that is reshaped is a vector in Flax, whatever axes of size 1 Haiku gives them.
_VECTORS = (
    "BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm", "Conv", "DepthwiseConv", "ConvTranspose"
)  # fmt: skip
_REMEDY = "Name the target's model, whose spec says the rest."


def project(mapping: Mapping, src: Spec, framework: str = "flat") -> Entries:
    """Returns the abstract entries that the mapping makes of the source's, path by path.

    Args:
      mapping: Its `[modules]` must name each layer that conventions are to carry; `"{m:module}" = "{m:module}"` keeps all
        names.
      src: The source's spec, or a spec of arrays only.
      framework: That of the target.

    Raises:
      MappingError: An entry goes nowhere, or a target's shape depends on the target; all are listed.

    >>> import numpy as np
    >>> m = Mapping.of(rules=[{'src': '{m:path}/w', 'dst': '{m:path}/kernel', 'ops': ['transpose']}])
    >>> project(m, Spec.of({'params/a/w': np.ones((2, 3), np.float32)}))
    {'params/a/kernel': ShapeDtypeStruct(shape=(3, 2), dtype=float32)}
    """
    return _Projection(mapping, src, framework).entries()


class _Projection:
    def __init__(self, mapping: Mapping, src: Spec, framework: str):
        self.mapping, self.src, self.framework = mapping, src, framework
        self.problems: list[str] = []
        self.done: set[str] = set()
        self.out: Entries = {}

    def entries(self) -> Entries:
        for part in self.mapping.parts:
            self.rules(part.rules)
        self.layers()
        for path, value in self.src.entries.items():
            if path not in self.done:
                near = hint(path, (t.text for p in self.mapping.parts for r in p.rules for t in r.src))
                self.problems.append(f"{path!r} {describe(value)} goes nowhere: write a rule, or `drop` it.{near}")
        if self.problems:
            raise MappingError(
                "The mapping alone does not say what the target holds:\n"
                + listing(dict.fromkeys(self.problems), 100)
                + f"\n{_REMEDY}"
            )
        return dict(sorted(self.out.items()))

    def rules(self, rules: Sequence[Rule]) -> None:
        """Writes the targets of the rules of one part, for sources that no earlier part has taken."""
        index: Index[tuple[int, int]] = Index()
        for n, rule in enumerate(rules):
            for slot, template in enumerate(rule.src):
                index.add(template, (n, slot))
            if not rule.src:
                self.problems.append(f"rule {rule} fills an entry whose shape and dtype only the target knows")
        groups: dict[Any, dict[int, list[tuple[int, str]]]] = {}
        for path, value in self.src.entries.items():
            for (n, slot), values in index.match(path) if path not in self.done else ():
                rule = rules[n]
                if rule.src_rank and len(value.shape) not in rule.src_rank:
                    continue
                number = rule.indices[0] if rule.dst else None
                key = n, tuple(sorted((k, v) for k, v in values.items() if k != number)), "" if rule.dst else path
                groups.setdefault(key, {}).setdefault(slot, []).append((values[number] if number else 0, path))
        taken: set[str] = set()
        for (n, values, _), slots in groups.items():
            rule = rules[n]
            taken.update(path for pairs in slots.values() for _, path in pairs)
            if not rule.dst:
                continue
            if lacking := [rule.src[slot].format(dict(values)) for slot in range(len(rule.src)) if slot not in slots]:
                self.problems.append(f"rule {rule} also needs {', '.join(map(repr, lacking))}, which the source lacks")
                continue
            pairs = sorted(slots[0]) if rule.indices[0] else [slots[slot][0] for slot in range(len(rule.src))]
            self.made(rule, dict(values), [path for _, path in pairs])
        self.done |= taken

    def made(self, rule: Rule, values: dict[str, Any], sources: Sequence[str]) -> None:
        """Writes the targets of one match."""
        count = None if rule.indices[1] else len(rule.dst)
        outs = self.inferred(rule.ops, [self.src.entries[p] for p in sources], count, f"rule {rule}")
        if outs is None:
            return
        try:
            if number := rule.indices[1]:
                targets = [rule.dst[0].format({**values, number: i}) for i in range(len(outs))]
            else:
                targets = [template.format(values) for template in rule.dst]
        except MappingError as err:
            self.problems.append(f"rule {rule} cannot place {sources[0]!r}: {err}")
            return
        self.write(targets, outs, f"rule {rule}")

    def inferred(
        self, ops: Sequence[Op], ins: Sequence[Abstract], count: int | None, what: str, vector: bool = False
    ) -> list[Abstract] | None:
        """Returns what the ops make of `ins`; None, and a problem, where only the target could tell.

        Args:
          ops: The ops.
          ins: What they are given.
          count: How many arrays there must be in the end, where that is known.
          what: What the ops are of, for the problem.
          vector: Whether a reshape that leaves its shape open makes a vector.
        """
        xs = list(ins)
        for op in ops:
            try:
                if isinstance(op, Copy) and count and len(xs) == 1:
                    found: list[Abstract] | None = [xs[0]] * count
                elif vector and isinstance(op, Reshape) and op.shape is None:
                    found = [like(x, (math.prod(x.shape),)) for x in xs]
                else:
                    found = op.infer(xs)
            except MappingError as err:
                self.problems.append(f"{what}: {err}")
                return None
            if found is None:
                self.problems.append(f"{what}: what {op} makes of {shapes(xs)} depends on the target")
                return None
            xs = found
        if count is not None and len(xs) != count:
            self.problems.append(f"{what}: it makes {len(xs)} arrays, and has {count} targets")
            return None
        return xs

    def write(self, targets: Sequence[str], outs: Sequence[Abstract], what: str) -> None:
        for path, value in zip(targets, outs, strict=True):
            if path in self.out:
                self.problems.append(f"{path!r} is written twice, the second time by {what}")
            self.out[path] = value

    def layers(self) -> None:
        """Writes what the layers that `[modules]` names become."""
        given = [line for part in self.mapping.parts for line in part.modules]
        if not given:
            return
        rows: list[LayerRow] = []
        for part in self.mapping.parts:
            earlier = {row.type for row in rows}
            rows += [row for row in part.layers if row.type not in earlier and not row.refuse]
        refusals = {t: row.refuse for part in self.mapping.parts for row in part.layers if row.refuse for t in row.src}
        left = {path: value for path, value in self.src.entries.items() if path not in self.done}
        index: Index[int] = Index()
        for n, (template, _) in enumerate(given):
            index.add(template, n)
        for module, found in identify(left, self.src.layers, rows, "src").items():
            matches = index.match(module)
            if not matches:
                continue
            n, values = min(matches, key=lambda match: match[0])
            goal = given[n][1].format(values)
            above = [m for m in self.src.layers if under(module, m) and self.src.layers[m].type in refusals]
            if above and not found.rows:
                reason = refusals[self.src.layers[above[0]].type]
                self.problems.append(f"{above[0]!r} is a {self.src.layers[above[0]].type}: {reason}")
            else:
                self.layer(found, goal, rows)
            self.done |= found.leaves

    def layer(self, found: Found, goal: str, rows: Sequence[LayerRow]) -> None:
        """Writes the leaves of one layer to the module `goal`."""
        outcomes: list[tuple[int, dict[str, Abstract]]] = []
        refusals: list[str] = []
        explained: set[str] = set()
        for r, whole in found.rows.items():
            before = len(self.problems)
            made: dict[str, Abstract] = {}
            for k, sources in whole.items():
                rule = rows[r].rules[k]
                explained.update(sources)
                targets = [template.format({"m": goal}) for template in rule.dst]
                if rule.refuse and not targets:
                    self.problems.append(f"{sources[0]!r}: {rule.refuse}. If it is, name it under `drop`")
                if not targets:
                    continue
                vector = rows[r].type in _VECTORS and self.framework in ("linen", "nnx")
                ins, what = [self.src.entries[p] for p in sources], f"{rows[r].type} {found.path!r}"
                outs = self.inferred(rule.ops, ins, len(targets), what, vector)
                if outs is not None:
                    made.update(zip(targets, outs, strict=True))
            refusals += self.problems[before:]
            if len(self.problems) == before:
                outcomes.append((r, made))
            del self.problems[before:]
        # Of two things that one type of layer can become, one that needs the target is out of the question without it.
        possible = {t for r, _ in outcomes for t in rows[r].src}
        failed = [r for r in found.rows if r not in dict(outcomes) and not possible.issuperset(rows[r].src)]
        if found.rows and not outcomes:
            self.problems += refusals
            return
        ways = {
            repr([(rows[r].rules[k].ops, paths) for k, paths in found.rows[r].items()] + sorted(made))
            for r, made in outcomes
        }
        if len(ways) + len(failed) > 1:
            types = " or ".join(dict.fromkeys(rows[r].type for r in [*dict(outcomes), *failed]))
            self.problems.append(
                f"{found.path!r} could be {types}, which are stored differently: name the source's model, whose spec tells"
            )
            return
        for path in sorted(found.leaves - explained):
            collection, _, leaf = cut(path)
            goal_path = "/".join(filter(None, (collection, goal, leaf)))
            self.write([goal_path], [self.src.entries[path]], f"[modules] {found.path!r}")
        for path, value in outcomes[0][1].items() if outcomes else ():
            self.write([path], [value], f"[modules] {found.path!r}")
