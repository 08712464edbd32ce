"""Namespace: nested names with NNX Variables at their ends, and nothing else.

The names are keys of nested dictionaries and no attributes, so that no name of a wrapped layer (`train`, `items`, `sow`,
`~`) can hide anything, and NNX and JAX flatten them without calling Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import nnx

from bridges.core._errors import CollisionError, MissingEntryError, hint
from bridges.core._flat import SEPARATOR


@jax.tree_util.register_pytree_with_keys_class
class Namespace(Mapping[str, Any]):
    """A tree of Variables by name, for reading: `variables['params']['mlp']['~']['linear_0']['w']`.

    `variables['params/mlp/~/linear_0/w']` is the same. Segments are as they stand in paths of a `State`: `/` and `%` in a
    native name are percent-escaped.

    Args:
      tree: Nested dictionaries with Variables at their ends.
    """

    __slots__ = ("tree",)

    def __init__(self, tree: dict[str, Any]):
        self.tree = tree

    def __getitem__(self, path: str) -> Any:
        node: Any = self.tree
        for name in path.split(SEPARATOR):
            try:
                node = node[name] if isinstance(node, dict) else _absent(path, self.tree)
            except KeyError:
                _absent(path, self.tree)
        return Namespace(node) if isinstance(node, dict) else node

    def __contains__(self, path: object) -> bool:
        try:
            self[str(path)]
        except MissingEntryError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self.tree)

    def __len__(self) -> int:
        return len(self.tree)

    def __repr__(self) -> str:
        return f"Namespace({', '.join(variables_in(self.tree))})"

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
        names = tuple(sorted(self.tree))
        return [(jax.tree_util.DictKey(name), self.tree[name]) for name in names], names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], children: Any) -> Namespace:
        return cls(dict(zip(names, children, strict=True)))


def variables_in(tree: Mapping[str, Any]) -> dict[str, nnx.Variable]:
    """Returns the Variables of nested dictionaries by path, sorted by name."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda node: isinstance(node, nnx.Variable))
    return {SEPARATOR.join(key.key for key in keys): leaf for keys, leaf in leaves}


def place(tree: dict[str, Any], path: str, variable: nnx.Variable) -> None:
    """Puts a new Variable at a path of nested dictionaries.

    Raises:
      CollisionError: There is one above it, or names below it.
    """
    *parents, last = path.split(SEPARATOR)
    for name in parents:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise CollisionError(f"The entry {path!r} would lie below {name!r}, which is a Variable: rename one.")
    if last in tree:
        raise CollisionError(f"There are names below {path!r}, which would be a Variable: rename one of the two.")
    tree[last] = variable


def remove(tree: dict[str, Any], path: str) -> None:
    """Removes the Variable at a path of nested dictionaries, and the dictionaries that are empty without it."""
    *parents, last = path.split(SEPARATOR)
    nodes = [tree]
    for name in parents:
        nodes.append(nodes[-1][name])
    del nodes[-1][last]
    for node, name in zip(reversed(nodes[:-1]), reversed(parents), strict=True):
        if not node[name]:
            del node[name]


def _absent(path: str, tree: dict[str, Any]) -> Any:
    known = variables_in(tree)
    raise MissingEntryError(f"There is no Variable {path!r} among {len(known)}.{hint(path, known)}")
