"""Placement: which layer of one model is which layer of the other, where names and shapes leave no doubt.

Both models are trees of modules. At each place of the two trees the children are paired, in this order:
1. modules alike (the same layers with the same shapes below them) that bear the same names at both ends;
2. runs of automatic names (`linear`, `linear_1`, … and `Dense_0`, `Dense_1`, …) with the same sequence of likes, and no
   other such run: by number, so that `linear_10` comes after `linear_2`;
3. modules of which only one at each end is alike;
4. modules that feed one another in a single chain at both ends (`b(a(x))`), or that other layers feed or are fed by: by the
   flow of data, whatever their names.
Names and numbers that the flow of data contradicts are not taken: `Dense(8)(Dense(8)(x))` makes the outer layer first.
What is left loses one level and is compared again, until there is none to lose (`mlp/linear_0`, … becomes `Dense_0`, …):
first where nothing at the other end is like the whole level, else everywhere. What then is not unique is reported, never
guessed. Levels that hold a single module and nothing else are looked through, and so are method scopes (`~`, `~encode`).

The copies in a stack (`blocks/[0]`, `blocks/[1]`, …) are a run. Where several runs have one sequence, those of stacks are
paired by name (`enc/[0]`, … with `enc_0`, …); stacks with numbers of their own follow one another (`scan_0/[2]` comes
before `scan_1/[0]`); and what odd layers before or after leave of a run, with no gaps, may be the run of a whole stack. Else
stacks go by the order of calls, where it is known of both models.
"""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from bridges.mapping._order import Flow, Order
from bridges.mapping._tree import Like, Tree, below, collapse, dissolved, is_list, paths, tree_of

_NUMBERED = re.compile(r"(.*?)_?([0-9]+)?", re.DOTALL)
_COPY = re.compile(r"(?:(.*)/)?\[([0-9]+)\]", re.DOTALL)
_Pair = Callable[[Iterable[Any], str], None]


class Doubt:
    """Modules of the source and of the target that are alike, and of which nothing tells which is which.

    Attributes:
      src, dst: Paths of the modules, at the level where the doubt is.
      why: What is not clear.
      layers: Paths of the layers that these are or hold, of the source and of the target.
    """

    def __init__(self, src: Sequence[Tree], dst: Sequence[Tree], why: str):
        self.why = why
        below = [[paths(tree) for tree in end] for end in (src, dst)]
        self.full = tuple([_common(paths) for paths in end] for end in below)
        self.src, self.dst = map(_shortened, self.full)
        self.layers = tuple([path for paths in end for path in paths] for end in below)


def _common(paths: Sequence[str]) -> str:
    """Returns the lowest module that is or holds all of these."""
    split = [path.split("/") for path in paths]
    same = itertools.takewhile(lambda segments: len(set(segments)) == 1, zip(*split, strict=False))
    return "/".join(segments[0] for segments in same)


def _shortened(paths: Sequence[str]) -> list[str]:
    """Returns the paths without the segments that all of them end with."""
    split = [path.split("/") for path in paths]
    while len(paths) > 1 and all(len(s) > 1 for s in split) and len({s[-1] for s in split}) == 1:
        split = [segments[:-1] for segments in split]
    return ["/".join(segments) for segments in split]


def _number(name: str) -> tuple[str, tuple[int, ...]]:
    """Returns what a name has in common with its run, and its place there.

    >>> _number('linear_10'), _number('blocks/[3]'), _number('scan_1/[3]')
    (('linear', (10,)), ('blocks/[]', (-1, 3)), ('scan/[]', (1, 3)))
    """
    numbers: list[int] = []
    indices = 0
    while (copy := _COPY.fullmatch(name)) is not None:
        name = copy[1] or ""
        numbers.insert(0, int(copy[2]))
        indices += 1
    found = _NUMBERED.fullmatch(name)
    base, number = (found[1], int(found[2] or -1)) if found else (name, -1)
    return base + "/[]" * indices, (number, *numbers)


def _stem(base: str) -> str:
    return re.sub("[^a-z0-9]", "", base.lower())


class _Placer:
    def __init__(self, order: Order) -> None:
        self.order = order
        self.table: dict[Hashable, int] = {}
        self.memo: dict[Tree, int] = {}
        self.pairs: list[tuple[str, str, str]] = []
        self.doubts: list[Doubt] = []

    def like(self, tree: Tree) -> int:
        return below(tree, self.table, self.memo)

    def nodes(self, src: Tree, dst: Tree, how: str) -> None:
        if src.path is not None and dst.path is not None and src.like == dst.like:
            self.pairs.append((src.path, dst.path, how))
            self.children(src.children, dst.children)
        else:  # the layers at these very places, if any, are not alike: they compete with those below
            ends = []
            for tree in (src, dst):
                own = {"": Tree(tree.path, tree.like)} if tree.path is not None else {}
                ends.append({**own, **tree.children})
            self.children(*ends)

    def children(self, src: Mapping[str, Tree], dst: Mapping[str, Tree]) -> None:
        src, dst = dict(src), dict(dst)

        def pair(names: Iterable[tuple[str, str]], how: str) -> None:
            for a, b in names:
                self.nodes(src.pop(a), dst.pop(b), how)

        groups = [self._groups(end) for end in (src, dst)]
        for like, names in groups[0].items():
            if set(names) == set(groups[1].get(like, ())):
                trees = [[end[n] for n in names] for end in (src, dst)]
                why = self.order.contrary(trees) or self.order.misplaced(trees)
                numbered = len({_number(n)[0] for n in names}) == 1  # by the program, not its author
                turns = self.in_turn(*({n: end[n] for n in names} for end in (src, dst))) if why and numbered else []
                if turns:
                    pair(turns, "by the flow of data and shape")
                elif why:
                    self.doubts.append(Doubt([src.pop(n) for n in names], [dst.pop(n) for n in names], why))
                else:
                    pair([(n, n) for n in names], "by name and shape")
        self.runs(src, dst, pair)
        groups = [self._groups(end) for end in (src, dst)]
        for like, names in groups[0].items():
            if len(names) == len(groups[1].get(like, ())) == 1:
                pair([(names[0], groups[1][like][0])], "by shape")
        self.rests(src, dst, pair)
        self.flow(src, dst, pair)
        self.called_in_turn(src, dst, pair)
        self.only(src, dst, pair)
        self.doubt(src, dst, lambda names: any(_COPY.fullmatch(name) for name in names))
        if src and dst and any(tree.children for end in (src, dst) for tree in end.values()):
            self.children(*self.dissolved(src, dst))
            return
        self.doubt(src, dst, lambda names: True)

    def doubt(self, src: dict[str, Tree], dst: dict[str, Tree], when: Callable[[Iterable[str]], bool]) -> None:
        """Gives up the modules that fit each other in several ways; no level further down says which is which."""
        groups = [self._groups(end) for end in (src, dst)]
        for like, names in groups[0].items():
            there = groups[1].get(like, [])
            if there and when([*names, *there]):
                self.doubts.append(
                    Doubt([src.pop(n) for n in names], [dst.pop(n) for n in there], "fit each other in several ways")
                )

    def in_turn(self, src: Mapping[str, Tree], dst: Mapping[str, Tree]) -> list[tuple[str, str]]:
        """Returns the pairs of modules by the flow of data, or none if it does not tell."""
        pairs: list[tuple[str, str]] = []
        groups = [self._groups(end) for end in (src, dst)]
        for like, names in groups[0].items():
            found = self.told({n: src[n] for n in names}, {n: dst[n] for n in groups[1].get(like, ())})
            if len(found) < len(names):
                return []
            pairs += found
        return pairs

    def told(self, src: Mapping[str, Tree], dst: Mapping[str, Tree]) -> list[tuple[str, str]]:
        """Returns the pairs of alike modules that the flow of data tells, or numbers and calls among those of one role."""
        if len(src) != len(dst):
            return []
        chains = [self.order.chain(i, end) for i, end in enumerate((src, dst))]
        if chains[0] is not None and chains[1] is not None:
            return list(zip(*chains, strict=True))
        pairs: list[tuple[str, str]] = []
        parts = self.order.parts([list(src.values()), list(dst.values())])
        for role in dict.fromkeys(parts[0] if parts else ()):
            ends = [
                sorted((n for n, part in zip(end, found, strict=True) if part == role), key=_number)
                for end, found in zip((src, dst), parts, strict=True)
            ]
            runs = [[end[n] for n in names] for end, names in zip((src, dst), ends, strict=True)]
            numbered = all(len({_number(n)[0] for n in names}) == 1 for names in ends)
            if len(ends[0]) == 1 or (numbered and not self.order.crossed(runs, [0] * len(ends[0]))):
                pairs += zip(*ends, strict=True)
        return pairs

    def flow(self, src: dict[str, Tree], dst: dict[str, Tree], pair: _Pair) -> None:
        """Pairs the modules of which the flow of data tells which is which."""
        groups = [self._groups(end) for end in (src, dst)]
        for like, names in groups[0].items():
            found = self.told({n: src[n] for n in names}, {n: dst[n] for n in groups[1].get(like, ())})
            pair(found, "by the flow of data and shape")

    def runs(self, src: dict[str, Tree], dst: dict[str, Tree], pair: _Pair) -> None:
        """Pairs runs of names with one sequence of likes."""
        runs = [self._runs(end) for end in (src, dst)]
        for sequence, found in runs[0].items():
            other = runs[1].get(sequence, {})
            if len(found) == len(other) == 1:
                ends = [(end, next(iter(run.values()))) for end, run in ((src, found), (dst, other))]
                trees = [[end[name] for name in names] for end, names in ends]
                why = self.order.crossed(trees, [self.like(tree) for tree in trees[0]]) or self.order.misplaced(trees)
                if why and (turns := self.in_turn(*([{n: end[n] for n in names} for end, names in ends]))):
                    pair(turns, "by the flow of data and shape")
                elif why:
                    lost = [[end.pop(name) for name in names] for end, names in ends]
                    self.doubts.append(Doubt(lost[0], lost[1], why))
                else:
                    pair(zip(ends[0][1], ends[1][1], strict=True), "by order and shape")
            elif any(base.endswith("[]") for base in (*found, *other)):
                stems = [collections.Counter(map(_stem, bases)) for bases in (found, other)]
                for base, names in found.items():
                    stem = _stem(base)
                    if stem and stems[0][stem] == stems[1][stem] == 1:
                        there = next(names for b, names in other.items() if _stem(b) == stem)
                        pair(zip(names, there, strict=True), "by name, order and shape")

    def rests(self, src: Mapping[str, Tree], dst: Mapping[str, Tree], pair: _Pair) -> None:
        """Pairs a stack with what odd layers have left of a run, where both are the only ones."""
        runs = [self._runs(end) for end in (src, dst)]
        for sequence, found in runs[0].items():
            other = runs[1].get(sequence, {})
            if len(found) == len(other) == 1 and any(base.endswith("[]") for base in (*found, *other)):
                names = [next(iter(run.values())) for run in (found, other)]
                if all(map(_unbroken, names)):
                    pair(zip(*names, strict=True), "by order and shape")

    def only(self, src: Mapping[str, Tree], dst: Mapping[str, Tree], pair: _Pair) -> None:
        """Pairs the copies of a stack with as many modules in a run, where nothing else is left, however these are built."""
        runs = []
        for end in (src, dst):
            numbers = {name: _number(name) for name in end}
            runs.append(sorted(end, key={name: number for name, (_, number) in numbers.items()}.__getitem__))
            alike = len({base for base, _ in numbers.values()}) == len(self._groups(end)) == 1
            if not alike or not _unbroken(runs[-1]):
                return
        if len(src) == len(dst) and any(_COPY.fullmatch(name) for name in (*src, *dst)):
            pair(zip(*runs, strict=True), "by order")

    def called_in_turn(self, src: Mapping[str, Tree], dst: Mapping[str, Tree], pair: _Pair) -> None:
        """Pairs alike modules by the order of calls, where stacks are among them (5 + 1) and both models' order is known."""
        groups = [self._groups(end) for end in (src, dst)]
        for like, names in groups[0].items():
            there = groups[1].get(like, [])
            if len(names) == len(there) and any(_COPY.fullmatch(name) for name in (*names, *there)):
                ranks = [
                    {n: self.order.called(i, end[n]) for n in ns}
                    for i, (end, ns) in enumerate(((src, names), (dst, there)))
                ]
                if not any(None in found.values() for found in ranks):
                    keys = [{n: (rank, _number(n)[1]) for n, rank in found.items()} for found in ranks]
                    orders = [sorted(key, key=key.__getitem__) for key in keys]
                    pair(zip(*orders, strict=True), "by order of calls and shape")

    def dissolved(self, src: dict[str, Tree], dst: dict[str, Tree]) -> tuple[dict[str, Tree], dict[str, Tree]]:
        """Returns both ends with a level taken away, where that is of use to the other."""
        lists = [{n for n, tree in end.items() if is_list(tree)} for end in (src, dst)]
        if lists[0] or lists[1]:
            return dissolved(src, src.keys() - lists[0]), dissolved(dst, dst.keys() - lists[1])
        there = [self.all(end) for end in (dst, src)]
        keep = [{n for n, tree in end.items() if self.like(tree) in there[i]} for i, end in enumerate((src, dst))]
        if any(tree.children for i, end in enumerate((src, dst)) for n, tree in end.items() if n not in keep[i]):
            return dissolved(src, keep[0]), dissolved(dst, keep[1])
        return dissolved(src), dissolved(dst)

    def all(self, end: Mapping[str, Tree]) -> set[int]:
        """Returns the likes of all trees of an end and below them."""
        found, left = set(), list(end.values())
        while left:
            tree = left.pop()
            found.add(self.like(tree))
            left += tree.children.values()
        return found

    def _groups(self, end: Mapping[str, Tree]) -> dict[int, list[str]]:
        groups: dict[int, list[str]] = collections.defaultdict(list)
        for name, tree in end.items():
            groups[self.like(tree)].append(name)
        return groups

    def _runs(self, end: Mapping[str, Tree]) -> dict[tuple[int, ...], dict[str, list[str]]]:
        families: dict[str, list[tuple[tuple[int, ...], str]]] = collections.defaultdict(list)
        for name in end:
            base, number = _number(name)
            families[base].append((number, name))
        runs: dict[tuple[int, ...], dict[str, list[str]]] = collections.defaultdict(dict)
        for base, family in families.items():
            names = [name for _, name in sorted(family)]
            runs[tuple(self.like(end[name]) for name in names)][base] = names
        return runs


def _unbroken(names: Iterable[str]) -> bool:
    """Whether the numbers of a run follow one another."""
    numbers = [_number(name)[1] for name in names]
    return all(len(a) > 1 or b[-1] == max(a[-1], 0) + 1 for a, b in itertools.pairwise(numbers))


def place(
    src: Mapping[str, Like],
    dst: Mapping[str, Like],
    src_base: str = "",
    dst_base: str = "",
    calls: Sequence[Mapping[str, int]] = ({}, {}),
    flows: Sequence[Mapping[str, Flow]] = ({}, {}),
) -> tuple[list[tuple[str, str, str]], list[Doubt]]:
    """Returns the pairs `(source path, target path, why)`, and the groups of paths that are left in doubt, with the reason.

    Args:
      src: Module path -> what it is like; equal for two layers that could stand for one another.
      dst: The same for the target.
      src_base, dst_base: A module above all of these, for which the other is known to stand.
      calls: For both ends, module path -> when the model first calls it, where that is known.
      flows: The same from the flow of data, which goes before the order of calls.

    >>> pairs, doubts = place({'mlp/~/linear_0': 'a', 'mlp/~/linear_1': 'b'}, {'Dense_0': 'a', 'Dense_1': 'b'})
    >>> pairs[1]
    ('mlp/~/linear_1', 'Dense_1', 'by order and shape')
    """
    placer = _Placer(Order(calls, flows, (src, dst)))
    trees = [collapse(tree_of(layers, base)) for layers, base in ((src, src_base), (dst, dst_base))]
    placer.nodes(trees[0], trees[1], "by shape")
    return placer.pairs, placer.doubts
