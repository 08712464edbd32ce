"""The structure of optimizer states: which nodes have the parameters' structure, and what a leaf of one belongs to.

A node has it if each of its leaves lies at a parameter's path; a parameter may be masked, or be a short list of arrays (an
accumulator an axis, a real and an imaginary part). Values are never looked at. NNX Variables are leaves here, boxes are
not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.tree_util import GetAttrKey, SequenceKey, tree_flatten_with_path

from bridges.core import _flat
from bridges.core._errors import BridgeError, StructureError, describe, hint, listing
from bridges.core._flat import escape, under, unescape


def is_masked(node: Any) -> bool:
    """Whether the node is optax's `MaskedNode`, by its name."""
    return isinstance(node, tuple) and len(node) == 0 and type(node).__name__ == "MaskedNode"


def is_variable(node: Any) -> bool:
    """Whether the node is an NNX `Variable`, by what it can do."""
    return hasattr(node, "get_value") and hasattr(node, "get_metadata")


def value_of(leaf: Any) -> Any:
    """Returns the array of a Variable, any other leaf as it is."""
    return leaf.get_value() if is_variable(leaf) else leaf


def _is_empty(node: Any) -> bool:
    return isinstance(node, (dict, list, tuple)) and len(node) == 0


def _stops(node: Any) -> bool:
    return _is_empty(node) or is_variable(node)


def flatten(tree: Any) -> dict[str, Any]:
    """Returns `{path: leaf}` of an optimizer state or of parameters, Variables being leaves."""
    return _flat.flatten(tree, is_leaf=is_variable)


def aligned(params: Any, spec: Mapping[str, Any], end: str) -> dict[str, str]:
    """Returns the tree's own leaf paths -> the plan's paths, in the tree's order.

    Args:
      params: A native tree: with or without the level `params`, with variables or boxes, or a `State`.
      spec: The plan's entries at this end.
      end: 'src' or 'dst', for errors.

    Raises:
      StructureError: A leaf is not in the plan, or has another shape there.
    """
    own = flatten(params)
    keys = [keys for keys, _ in tree_flatten_with_path(params, is_leaf=is_variable)[0]]
    boxed = bool(keys) and all(isinstance(k[-1], GetAttrKey) if k else False for k in keys)
    collections = tuple(dict.fromkeys(path.partition("/")[0] + "/" for path in spec))
    best: list[str] | None = None
    for prefixes in (("",), ("params/",), collections):
        for form in (str, _opened, _flat_path):
            paths: dict[str, str] = {}
            lacking = []
            for path in own:
                plain = form(path.rpartition("/")[0] if boxed else path)
                found = [prefix + plain for prefix in prefixes if prefix + plain in spec]
                if len(found) == 1:
                    paths[path] = found[0]
                else:
                    lacking.append(prefixes[0] + plain)
            if not lacking and len(set(paths.values())) == len(paths):
                _check_shapes(own, paths, spec, end)
                return paths
            best = lacking if best is None or len(lacking) < len(best) else best
    lines = [f"{path!r}.{hint(path, spec)}" for path in best or ()]
    raise StructureError(f"These leaves of {end}_params are not entries of the plan:\n" + listing(lines))


def _opened(path: str) -> str:
    """Returns the path with module names, which hold slashes in Haiku, taken apart."""
    *parents, leaf = path.split("/")
    return "/".join([escape(s) for p in parents for s in unescape(p).split("/")] + [leaf])


def _flat_path(path: str) -> str:
    """Returns the path that a plain dictionary's key is: `{'dense/kernel': array}`."""
    return unescape(path) if "/" not in path else path


def _check_shapes(own: Mapping[str, Any], paths: Mapping[str, str], spec: Mapping[str, Any], end: str) -> None:
    wrong = [
        f"{p!r}: got {describe(own[path])}, planned {describe(spec[p])}"
        for path, p in paths.items()
        if tuple(np.shape(own[path])) != tuple(spec[p].shape)
    ]
    if wrong:
        raise StructureError(f"{end}_params are not the plan's:\n" + listing(wrong))


def matched(node: Any, paths: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the plan's path -> the subtree there if the node has the parameters' structure, None if it has not.

    Args:
      node: A node of an optimizer state.
      paths: What `aligned` returned for the parameters.
    """
    if not isinstance(node, (Mapping, list, tuple)) and jax.tree_util.all_leaves([node], is_leaf=is_variable):
        return None
    if is_masked(node):
        return None
    try:
        flat = _flat.flatten(node, is_leaf=_stops)
    except BridgeError:
        return None
    found: dict[str, Any] = {}
    masked: list[str] = []
    parts: dict[str, str] = {}  # a parameter -> some leaf below it
    for path, leaf in flat.items():
        if path in paths:
            found[path] = leaf
        elif is_masked(leaf):
            masked.append(path)
        elif (above := _above(path, paths)) is not None:
            parts[above] = path
        elif not _is_empty(leaf):
            return None
    if parts:
        keys = dict(zip(flat, (k for k, _ in tree_flatten_with_path(node, is_leaf=_stops)[0]), strict=True))
        for path, leaf in parts.items():
            deeper = leaf.count("/") - path.count("/")
            subtree = node
            for key in keys[leaf][:-deeper]:
                subtree = _step(subtree, key)
            if not _is_list(subtree):
                return None
            found[path] = subtree
    for above in masked:
        below = [path for path in paths if under(path, above)]
        if not below:
            return None
        found.update({path: flat[above] for path in below})
    return {p: found[path] for path, p in paths.items()} if len(found) == len(paths) else None


def _above(path: str, paths: Mapping[str, str]) -> str | None:
    while path:
        path = path.rpartition("/")[0]
        if path in paths:
            return path
    return None


def _is_list(node: Any) -> bool:
    """Whether the node is a list of arrays, or optax's pair of a real and an imaginary part."""
    named = type(node).__name__ == "SplitRealAndImaginaryArrays"
    return (type(node) in (list, tuple) or named) and jax.tree_util.all_leaves([x for x in node if x is not None])


def _step(node: Any, key: Any) -> Any:
    if isinstance(key, GetAttrKey):
        return getattr(node, key.name)
    if isinstance(key, SequenceKey):
        return node[key.idx]
    return node[key.key]


def owner(root: Any, keys: tuple[Any, ...], classify: Callable[[Any], str]) -> tuple[str, str]:
    """Returns the class and the field that a node belongs to: of its nearest ancestor that has a class.

    Args:
      root: The whole optimizer state.
      keys: The key path from there.
      classify: A node -> the name of its class, '' for a container.
    """
    node, found = root, ("", "")
    for key in keys:
        if isinstance(key, SequenceKey):
            pass
        elif name := classify(node):
            found = (name, str(key.name if isinstance(key, GetAttrKey) else key.key))
        elif not found[0]:
            found = ("", str(getattr(key, "key", key)))
        node = _step(node, key)
    return found
