"""The one tree walker: any pytree <-> a flat dict of `'/'`-joined paths.

Invariant: for every tree that `flatten` accepts, `unflatten(flatten(tree), tree)` is that tree, and no two leaves ever
share a path. A segment that holds `/` or `%` is percent-escaped, an empty one is written `%`; a collision is an error.
Structure that paths cannot say (tuples, integer keys, empty containers, boxes) comes from a `like` tree, never from
guessing at the strings.

What it does not do: it never copies, casts or looks into an array.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from bridges.core._errors import CollisionError, EntryShapeError, StructureError, describe, hint, listing

SEPARATOR = "/"


class PathKey(DictKey):
    """A pytree key that is a whole path already: `State` yields these, and its paths are joined as they are."""


def escape(segment: str) -> str:
    """Returns the segment as it stands in a path: `%` and `/` percent-escaped, the empty segment as `%`.

    >>> escape('a/b'), escape('100%'), escape('')
    ('a%2Fb', '100%25', '%')
    """
    if not segment:
        return "%"
    if "%" in segment or SEPARATOR in segment:
        return segment.replace("%", "%25").replace(SEPARATOR, "%2F")
    return segment


def unescape(segment: str) -> str:
    """Returns what `escape` was given.

    >>> [unescape(escape(s)) for s in ('a/b', '%2F', '')]
    ['a/b', '%2F', '']
    """
    if "%" not in segment:
        return segment
    return "" if segment == "%" else segment.replace("%2F", SEPARATOR).replace("%25", "%")


def join(segments: Iterable[str]) -> str:
    """Returns the path of the (raw, unescaped) segments.

    >>> join(['params', 'a/b', 'w'])
    'params/a%2Fb/w'
    """
    return SEPARATOR.join(map(escape, segments))


def split(path: str) -> tuple[str, ...]:
    """Returns the raw segments of a path; the inverse of `join`.

    >>> split('params/a%2Fb/w')
    ('params', 'a/b', 'w')
    """
    return tuple(map(unescape, path.split(SEPARATOR))) if path else ()


def under(path: str, prefix: str) -> bool:
    """Whether `path` is `prefix` or lies below it, whole segments only (`a/bc` is not under `a/b`)."""
    return not prefix or path == prefix or path.startswith(prefix + SEPARATOR)


def _segment(key: Any) -> str:
    if type(key) is DictKey and type(name := key.key) is str and name and "%" not in name and SEPARATOR not in name:
        return name  # by far the most common
    if isinstance(key, PathKey):
        return key.key
    if isinstance(key, DictKey):
        return escape(str(key.key))
    if isinstance(key, SequenceKey):
        return str(key.idx)
    if isinstance(key, GetAttrKey):
        return escape(key.name)
    if isinstance(key, FlattenedIndexKey):
        return escape(str(key.key))
    return escape(str(key))


def _paths(tree: Any, is_leaf: Callable[[Any], bool] | None) -> tuple[list[str], list[Any], Any]:
    try:
        items, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    except (TypeError, ValueError) as err:
        raise StructureError(
            f"This {type(tree).__name__} cannot be flattened: {err}. Dictionary keys of one dictionary must be"
            " sortable: make them all strings or all integers."
        ) from err
    paths = [SEPARATOR.join([_segment(key) for key in keys]) for keys, _ in items]
    if len(set(paths)) < len(paths):
        double = [path for path, count in collections.Counter(paths).items() if count > 1]
        raise CollisionError(
            "Several leaves of this tree land on one path:\n"
            + listing(map(repr, double))
            + "\nA dictionary that holds both 1 and '1' does this: rename one of the keys."
        )
    return paths, [value for _, value in items], treedef


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Returns `{path: leaf}` for any pytree, in the tree's own order.

    Args:
      tree: A pytree. Dictionary keys, sequence indices and attribute names become segments.
      is_leaf: As in `jax.tree.map`.

    Raises:
      CollisionError: Two leaves have the same path (a dictionary with the keys `1` and `'1'`).
      StructureError: JAX cannot flatten the tree (keys that do not sort).

    >>> flatten({'a': {'b/c': 1}, 'd': (2, 3)})
    {'a/b%2Fc': 1, 'd/0': 2, 'd/1': 3}
    """
    paths, values, _ = _paths(tree, is_leaf)
    return dict(zip(paths, values, strict=True))


def unflatten(flat: Mapping[str, Any], like: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """Returns the tree of `like`'s structure with the leaves of `flat`.

    Args:
      flat: `{path: leaf}`.
      like: A tree of the wanted structure; its leaves may be arrays or `jax.ShapeDtypeStruct`. Where they have a shape,
        it must be the shape of the leaf that takes the place.
      is_leaf: As given to `flatten`.

    Raises:
      StructureError: `flat` lacks paths of `like`, or has others; all are listed.
      EntryShapeError: Shapes differ; all are listed.

    >>> unflatten({'a/0': 1, 'a/1': 2}, {'a': (0, 0)})
    {'a': (1, 2)}
    """
    paths, wanted, treedef = _paths(like, is_leaf)
    have = set(paths)
    missing = [p for p in paths if p not in flat]
    extra = [p for p in flat if p not in have]
    if missing or extra:
        lines = [f"missing {p!r}.{hint(p, extra)}" for p in missing] + [f"unexpected {p!r}" for p in extra]
        raise StructureError("The flat state does not fit the structure it should fill:\n" + listing(lines))
    values = [flat[p] for p in paths]
    check_shapes(zip(paths, values, wanted, strict=True))
    return jax.tree.unflatten(treedef, values)


def check_shapes(items: Iterable[tuple[str, Any, Any]]) -> None:
    """Raises an `EntryShapeError` that lists every (path, value, wanted) whose shapes are known and differ."""
    wrong = [
        f"{path!r}: got {describe(value)}, wanted {describe(want)}; the shape {tuple(value.shape)} against"
        f" {tuple(want.shape)}"
        for path, value, want in items
        if hasattr(value, "shape") and hasattr(want, "shape") and tuple(value.shape) != tuple(want.shape)
    ]
    if wrong:
        raise EntryShapeError(
            "Shapes differ:\n" + listing(wrong) + "\nConvert the values, or build the model with the sizes they have."
        )


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dictionaries that the paths spell, with string keys.

    Raises:
      CollisionError: A path is both a leaf and the parent of another.

    >>> nest({'a/b%2Fc': 1, 'a/d': 2})
    {'a': {'b/c': 1, 'd': 2}}
    """
    root: dict[str, Any] = {}
    branches = {id(root)}
    for path, value in flat.items():
        *parents, leaf = split(path)
        node = root
        for segment in parents:
            child: Any = node.get(segment)
            if child is None and segment not in node:
                child = node[segment] = {}
                branches.add(id(child))
            if id(child) not in branches:
                raise CollisionError(f"{path!r} lies below {segment!r}, which is a leaf itself: rename one of the two.")
            node = child
        if leaf in node:
            raise CollisionError(f"{path!r} is both a leaf and the parent of others: rename one of the two.")
        node[leaf] = value
    return root
