"""The second round of planning: layers that `[modules]` places, then those that names and shapes place without a doubt."""

from __future__ import annotations

import collections
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from bridges.core._spec import Spec
from bridges.mapping._agree import normal
from bridges.mapping._draft import Draft
from bridges.mapping._identify import Found, above, cut, identify, like
from bridges.mapping._lines import lines_for, odd_ones
from bridges.mapping._op import Abstract
from bridges.mapping._order import Flow
from bridges.mapping._pairs import Pairs
from bridges.mapping._place import place
from bridges.mapping._row import LayerRow, holds
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
        self.refused: tuple[dict[str, str], dict[str, str]] = ({}, {})  # module -> what is wrong with it
        self.pairs = Pairs(draft, self.rows, self.refused)

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
                self.pairs.match(every[0][s], every[1][d], how, any(tied))
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
                    self.pairs.match(found, every[goal], "given", len(goals) > 1 or goal in filled)
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
                    self.pairs.hyperparameters(row, src, dst)


def _below(modules: Iterable[str], bases: Container[str]) -> dict[str, list[str]]:
    """Returns the modules that are, or are below, each of the bases."""
    found: dict[str, list[str]] = {}
    for module in modules:
        for base in above(module):
            if base in bases:
                found.setdefault(base, []).append(module)
    return found


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
