"""Placement: which layer of one model is which layer of the other, where names and shapes leave no doubt.

Both models are trees of modules. At each place of the two trees the children are paired, in this order:
1. modules alike (the same layers with the same shapes below them) that bear the same names at both ends;
2. runs of automatic names (`linear`, `linear_1`, … and `Dense_0`, `Dense_1`, …) with the same sequence of likes, and no
   other such run: by number, so that `linear_10` comes after `linear_2`;
3. modules of which only one at each end is alike.
What is left loses one level and is compared again, until there is none to lose (`mlp/linear_0`, … becomes `Dense_0`, …);
what then is not unique is reported, never guessed.
Levels that hold a single module and nothing else are looked through, and so are method scopes (`~`, `~encode`).
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Hashable, Iterable, Mapping

_NUMBERED = re.compile(r"(.*?)_?([0-9]+)?", re.DOTALL)
Like = Hashable  # equal exactly for layers that can stand for one another


@dataclasses.dataclass(eq=False)
class _Tree:
    path: str | None = None  # of the layer at this very place
    like: Like = None
    children: dict[str, _Tree] = dataclasses.field(default_factory=dict)


def _tree(layers: Mapping[str, Like], base: str) -> _Tree:
    root = _Tree()
    for path, like in layers.items():
        node, scope = root, ""
        rest = path[len(base) :].lstrip("/") if base else path
        for segment in rest.split("/") if rest else []:
            if segment.startswith("~"):
                scope += segment + "/"
                continue
            node = node.children.setdefault(scope + segment, _Tree())
            scope = ""
        if scope:
            node = node.children.setdefault(scope, _Tree())
        node.path, node.like = path, like
    return root


def _collapse(tree: _Tree) -> _Tree:
    """Returns the tree with single-module levels looked through."""
    tree.children = {name: _collapse(child) for name, child in tree.children.items()}
    if tree.path is None and len(tree.children) == 1:
        return next(iter(tree.children.values()))
    return tree


def _below(tree: _Tree, table: dict[Hashable, int], memo: dict[int, int]) -> int:
    if id(tree) not in memo:
        key = (tree.path is not None, tree.like, tuple(sorted(_below(c, table, memo) for c in tree.children.values())))
        memo[id(tree)] = table.setdefault(key, len(table))
    return memo[id(tree)]


def _dissolved(end: Mapping[str, _Tree]) -> dict[str, _Tree]:
    """Returns the children with one level taken away."""
    out: dict[str, _Tree] = {}
    for name, tree in end.items():
        if tree.path is not None:
            out[name] = _Tree(tree.path, tree.like)
        out.update({f"{name}/{child}": below for child, below in tree.children.items()})
    return out


def _number(name: str) -> tuple[str, int]:
    found = _NUMBERED.fullmatch(name)
    return (found[1], int(found[2] or -1)) if found else (name, -1)


class _Placer:
    def __init__(self) -> None:
        self.table: dict[Hashable, int] = {}
        self.memo: dict[int, int] = {}
        self.pairs: list[tuple[str, str, str]] = []
        self.doubts: list[tuple[list[str], list[str]]] = []

    def like(self, tree: _Tree) -> int:
        return _below(tree, self.table, self.memo)

    def nodes(self, src: _Tree, dst: _Tree, how: str) -> None:
        if src.path is not None and dst.path is not None and src.like == dst.like:
            self.pairs.append((src.path, dst.path, how))
            self.children(src.children, dst.children)
        else:  # the layers at these very places, if any, are not alike: they compete with those below
            ends = []
            for tree in (src, dst):
                own = {"": _Tree(tree.path, tree.like)} if tree.path is not None else {}
                ends.append({**own, **tree.children})
            self.children(*ends)

    def children(self, src: Mapping[str, _Tree], dst: Mapping[str, _Tree]) -> None:
        src, dst = dict(src), dict(dst)

        def pair(names: Iterable[tuple[str, str]], how: str) -> None:
            for a, b in names:
                self.nodes(src.pop(a), dst.pop(b), how)

        groups = [self._groups(end) for end in (src, dst)]
        for like, names in groups[0].items():
            if set(names) == set(groups[1].get(like, ())):
                pair([(n, n) for n in names], "by name and shape")
        runs = [self._runs(end) for end in (src, dst)]
        for sequence, found in runs[0].items():
            other = runs[1].get(sequence, [])
            if len(found) == len(other) == 1:
                pair(zip(found[0], other[0], strict=True), "by order and shape")
        groups = [self._groups(end) for end in (src, dst)]
        for like, names in groups[0].items():
            if len(names) == len(groups[1].get(like, ())) == 1:
                pair([(names[0], groups[1][like][0])], "by shape")
        if src and dst and any(tree.children for end in (src, dst) for tree in end.values()):
            self.children(_dissolved(src), _dissolved(dst))
            return
        groups = [self._groups(end) for end in (src, dst)]
        for like, names in groups[0].items():
            if like in groups[1]:
                ends = (src, names), (dst, groups[1][like])
                here, there = ([str(end[name].path) for name in found] for end, found in ends)
                self.doubts.append((here, there))

    def _groups(self, end: Mapping[str, _Tree]) -> dict[int, list[str]]:
        groups: dict[int, list[str]] = collections.defaultdict(list)
        for name, tree in end.items():
            groups[self.like(tree)].append(name)
        return groups

    def _runs(self, end: Mapping[str, _Tree]) -> dict[tuple[int, ...], list[list[str]]]:
        families: dict[str, list[tuple[int, str]]] = collections.defaultdict(list)
        for name in end:
            base, number = _number(name)
            families[base].append((number, name))
        runs: dict[tuple[int, ...], list[list[str]]] = collections.defaultdict(list)
        for family in families.values():
            names = [name for _, name in sorted(family)]
            runs[tuple(self.like(end[name]) for name in names)].append(names)
        return runs


def place(
    src: Mapping[str, Like], dst: Mapping[str, Like], src_base: str = "", dst_base: str = ""
) -> tuple[list[tuple[str, str, str]], list[tuple[list[str], list[str]]]]:
    """Returns the pairs `(source path, target path, why)`, and the groups that fit each other in several ways.

    Args:
      src: Module path -> what it is like; equal for two layers that could stand for one another.
      dst: The same for the target.
      src_base, dst_base: A module above all of these, for which the other is known to stand.

    >>> pairs, doubts = place({'mlp/~/linear_0': 'a', 'mlp/~/linear_1': 'b'}, {'Dense_0': 'a', 'Dense_1': 'b'})
    >>> pairs[1]
    ('mlp/~/linear_1', 'Dense_1', 'by order and shape')
    """
    placer = _Placer()
    trees = [_collapse(_tree(layers, base)) for layers, base in ((src, src_base), (dst, dst_base))]
    placer.nodes(trees[0], trees[1], "by shape")
    return placer.pairs, placer.doubts
