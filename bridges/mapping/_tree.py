"""Tree: the modules of a model as placement sees them, a node for every place where there is a layer or something below."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Hashable, Iterable, Mapping

_ITEM = re.compile(r"[0-9]+|\[[0-9]+\]")
Like = Hashable  # equal exactly for layers that can stand for one another


@dataclasses.dataclass(eq=False)
class Tree:
    """A place: the layer there, if there is one, what it is like, and the places below by name."""

    path: str | None = None  # of the layer at this very place
    like: Like = None
    children: dict[str, Tree] = dataclasses.field(default_factory=dict)


def tree_of(layers: Mapping[str, Like], base: str) -> Tree:
    """Returns the tree of the layers below the module `base`; method scopes (`~`) are no places."""
    root = Tree()
    for path, like in layers.items():
        node, scope = root, ""
        rest = path[len(base) :].lstrip("/") if base else path
        for segment in rest.split("/") if rest else []:
            if segment.startswith("~"):
                scope += segment + "/"
                continue
            node = node.children.setdefault(scope + segment, Tree())
            scope = ""
        if scope:
            node = node.children.setdefault(scope, Tree())
        node.path, node.like = path, like
    return root


def collapse(tree: Tree) -> Tree:
    """Returns the tree with single-module levels looked through."""
    tree.children = {name: collapse(child) for name, child in tree.children.items()}
    if tree.path is None and len(tree.children) == 1:
        return next(iter(tree.children.values()))
    return tree


def is_list(tree: Tree) -> bool:
    """Whether it is nothing but a stack or a list of modules."""
    return tree.path is None and bool(tree.children) and all(_ITEM.fullmatch(name) for name in tree.children)


def members(tree: Tree) -> Iterable[Tree]:
    """Yields the children; those of stacks and lists in place of these, so that scanned layers are like listed ones."""
    for child in tree.children.values():
        if is_list(child):
            yield from members(child)
        else:
            yield child


def below(tree: Tree, table: dict[Hashable, int], memo: dict[Tree, int]) -> int:
    """Returns a number that is equal exactly for trees that are alike."""
    if tree not in memo:
        key = (tree.path is not None, tree.like, tuple(sorted(below(c, table, memo) for c in members(tree))))
        memo[tree] = table.setdefault(key, len(table))
    return memo[tree]


def dissolved(end: Mapping[str, Tree], keep: Container[str] = ()) -> dict[str, Tree]:
    """Returns the children with one level taken away, but for those to keep."""
    out: dict[str, Tree] = {}
    for name, tree in end.items():
        if name in keep:
            out[name] = tree
            continue
        if tree.path is not None:
            out[name] = Tree(tree.path, tree.like)
        out.update({f"{name}/{child}": below for child, below in tree.children.items()})
    return out


def paths(tree: Tree) -> list[str]:
    """Returns the layers at a place and below it."""
    found, left = [], [tree]
    while left:
        node = left.pop()
        found += [node.path] if node.path is not None else []
        left += reversed(node.children.values())
    return found
