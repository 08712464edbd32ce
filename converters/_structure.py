"""Structure: a native tree without its leaves, as plain data for JSON, and back.

Each node is a pair of a letter and its children: `d` dictionary (pairs of key and node, in its own order), `o` the same
as an OrderedDict, `l` list, `t`
tuple, `n` NamedTuple (its dotted name and fields, and nodes), `0` None, `x` a leaf (by number).

Invariant: `built(*described(tree))` is `tree`: containers of the same types, keys of the same types in the same order.
NamedTuples are optax's own where it is installed, and otherwise classes of the same name: nothing is imported because a
text names it.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bridges.core._errors import UnsupportedError
from bridges.core._flat import escape
from converters._errors import CheckpointError
from converters.formats import _pickle_tuples as tuples


def described(tree: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the structure, and the leaves by path in the order of the structure.

    Raises:
      UnsupportedError: A container is of a kind that cannot be written down.

    >>> described({'a': (1, None), 'b': []})
    (['d', [['a', ['t', [['x', 0], ['0']]]], ['b', ['l', []]]]], {'a/0': 1})
    """
    leaves: dict[str, Any] = {}
    return _described(tree, "", leaves), leaves


def _described(node: Any, path: str, leaves: dict[str, Any]) -> Any:
    if node is None:
        return ["0"]
    below = f"{path}/" if path else ""
    children: list[Any] = []
    if isinstance(node, Mapping):
        for key, child in node.items():
            if type(key) not in (str, int):
                raise UnsupportedError(f"{path!r}: the key {key!r} is neither a text nor a number.")
            children.append([key, _described(child, below + escape(str(key)), leaves)])
        return ["o" if isinstance(node, collections.OrderedDict) else "d", children]
    if tuples.is_namedtuple(type(node)):
        for name, child in zip(node._fields, node, strict=True):
            children.append(_described(child, below + escape(name), leaves))
        return ["n", ".".join(tuples.reference(type(node))), list(node._fields), children]
    if isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            children.append(_described(child, f"{below}{i}", leaves))
        return ["l" if isinstance(node, list) else "t", children]
    leaves[path] = node
    return ["x", len(leaves) - 1]


def built(structure: Any, leaves: Sequence[Any]) -> Any:
    """Returns the tree of a structure; the inverse of `described`.

    Raises:
      CheckpointError: It is none.
    """
    try:
        letter, *rest = structure
        if letter == "0":
            return None
        if letter == "x":
            return leaves[rest[0]]
        if letter in "do":
            made = collections.OrderedDict() if letter == "o" else {}
            for key, child in rest[0]:
                made[key] = built(child, leaves)
            return made
        children = []
        for child in rest[-1]:
            children.append(built(child, leaves))
        if letter in "lt":
            return children if letter == "l" else tuple(children)
        name, fields, _ = rest
        cls: Any = tuples.known(name, len(fields)) or tuples.made(name, tuple(fields))
        return cls(*children)
    except (TypeError, ValueError, IndexError, KeyError, RecursionError) as err:
        raise CheckpointError(f"The manifest's structure is damaged: {err}.") from err


def mapped(change: Callable[[str, Any], Any], tree: Any) -> Any:
    """Returns the tree with `change(path, leaf)` for each leaf; unlike JAX's, dictionaries keep their order."""
    structure, leaves = described(tree)
    return built(structure, [change(path, leaf) for path, leaf in leaves.items()])
