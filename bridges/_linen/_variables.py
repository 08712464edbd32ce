"""Linen variables <-> entries: `<collection>/<native path>`, a kind by collection, boxes beside the arrays.

Invariant: for every variable tree, `unflatten(flatten(variables), like=variables)` is that tree; without `like` it is
that tree as far as paths and kinds can say it (nested dictionaries with string keys; boxes come back, tuples do not).

A *box* (`nn.Partitioned`, `nn.LogicallyPartitioned`, any `flax.core.AxisMetadata` around one array) gives one entry that
holds the array; the empty box is metadata of its kind. A *node* is an object without arrays that stands beside arrays
(the `AxisMetadata` that `flax.linen.partitioning` sows into `params_axes`): it gives an entry of no elements, and is
itself metadata of that entry's kind.

What it does not do: it never casts or copies an array. Empty dictionaries and `None` are structure and not entries; they
come back with `like`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.core import AxisMetadata, FrozenDict

from bridges.core import _flat
from bridges.core._errors import StructureError, describe
from bridges.core._kind import BatchStat, Cache, Intermediate, Kind, Param, Variable
from bridges.core._spec import Spec
from bridges.core._state import State

KINDS: dict[str, type[Variable]] = {
    "params": Param,
    "batch_stats": BatchStat,
    "cache": Cache,
    "intermediates": Intermediate,
}
_CONTAINERS = (dict, FrozenDict, list, tuple, type(None))
_COMMON = frozenset([dict, np.ndarray, jax.ShapeDtypeStruct])
_ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)


class Box:
    """An empty box: what is left of `nn.Partitioned` and its like when the array is taken out.

    Two are equal when their types and static fields are (`nn.LogicallyPartitioned` compares by value only, so that its
    own `==` would take boxes of different axis names for one). Attributes are those of the empty box.

    >>> from flax import linen as nn
    >>> box = Box.of(nn.Partitioned(np.ones(2), names=('model',)))
    >>> box.names, box.empty.value is None
    (('model',), True)
    """

    __slots__ = ("empty", "_structure")

    def __init__(self, empty: Any):
        self.empty = empty
        self._structure: Any = jax.tree.structure(empty, is_leaf=_is_none)

    @classmethod
    def of(cls, box: Any) -> Box:
        """Returns the empty box of a box, or of any object without leaves."""
        return cls(jax.tree.map(lambda _: None, box))

    def fill(self, value: Any) -> Any:
        """Returns the box with a value in it."""
        return jax.tree.unflatten(self._structure, [value] * self._structure.num_leaves)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in Box.__slots__:
            raise AttributeError(name)
        return getattr(self.empty, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and bool(self._structure == other._structure)

    def __hash__(self) -> int:
        return hash(type(self.empty))

    def __repr__(self) -> str:
        return repr(self.empty)

    def __reduce__(self) -> tuple[Any, ...]:
        return Box, (self.empty,)


def _is_none(value: Any) -> bool:
    return value is None


def _is_box(value: Any) -> bool:
    return isinstance(value, AxisMetadata) and len(jax.tree.leaves(value)) == 1


def _is_node(value: Any) -> bool:
    return not isinstance(value, _CONTAINERS) and not isinstance(value, _ARRAYS) and not jax.tree.leaves(value)


def is_leaf(value: Any) -> bool:
    """Whether a part of a variable tree is one entry: a box around one array, or an object without arrays."""
    if type(value) in _COMMON:  # asking whether something is a jax.Array takes longer
        return False
    return not isinstance(value, _CONTAINERS) and not isinstance(value, _ARRAYS) and (_is_box(value) or _is_node(value))


def kind_of(collection: str, sown: bool = False, **metadata: Any) -> Kind:
    """Returns the kind of an entry of a collection; a collection of the user's own is remembered as metadata.

    >>> kind_of('params') is Param, kind_of('losses'), kind_of('losses', sown=True)
    (True, Variable(collection='losses'), Intermediate(collection='losses'))
    """
    base = Intermediate if sown else KINDS.get(collection, Variable)
    if KINDS.get(collection) is not base:
        metadata["collection"] = collection
    return base(**metadata) if metadata else base


def entry_of(leaf: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the array of a leaf, and the metadata (`box` or `node`) that restores the leaf around it."""
    if isinstance(leaf, _ARRAYS):
        return leaf, {}
    if _is_box(leaf):
        return jax.tree.leaves(leaf)[0], {"box": Box.of(leaf)}
    if _is_node(leaf):
        return np.zeros((0,), np.bool_), {"node": Box.of(leaf)}
    return leaf, {}


def leaf_of(value: Any, kind: Kind | None) -> Any:
    """Returns the native leaf of an entry; the inverse of `entry_of`."""
    if kind is None or isinstance(kind, type):
        return value
    metadata = kind.metadata
    if "box" in metadata:
        return metadata["box"].fill(value)
    return metadata["node"].empty if "node" in metadata else value


def leaves(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `{path: leaf}` with boxes and nodes as they stand."""
    return _flat.flatten(dict(variables), is_leaf)


def flatten(variables: Mapping[str, Any]) -> State:
    """Returns the state of Linen variables: paths `<collection>/<native path>`, arrays as they are.

    Args:
      variables: What `module.init` returns: a dictionary or `FrozenDict` of collections. Leaves may be arrays, boxed
        arrays or `jax.ShapeDtypeStruct`.

    Returns:
      A `State`. Kinds: `params` -> `Param`, `batch_stats` -> `BatchStat`, `cache` -> `Cache`, `intermediates` ->
      `Intermediate`, any other -> `Variable(collection=…)`. A box is metadata of the kind: `Param(box=…)`.

    Raises:
      StructureError: `variables` is no mapping, or its keys do not sort.
      CollisionError: Keys of one dictionary spell one path (`1` and `'1'`).

    >>> state = flatten({'params': {'kernel': np.ones((2, 3))}, 'batch_stats': {'Dense_0/kernel/u': np.ones((1, 3))}})
    >>> for path in state: print(path, state.kind(path).__name__)
    batch_stats/Dense_0%2Fkernel%2Fu BatchStat
    params/kernel Param
    """
    if not isinstance(variables, Mapping):
        raise StructureError(
            f"Linen variables are a dictionary of collections, got {describe(variables)}."
            " Pass what module.init returned, for example {'params': …, 'batch_stats': …}."
        )
    if isinstance(variables, State):
        return variables
    entries, kinds = {}, {}
    for path, leaf in leaves(variables).items():
        entries[path], metadata = entry_of(leaf)
        kinds[path] = kind_of(_flat.unescape(path.partition(_flat.SEPARATOR)[0]), **metadata)
    return State(entries, kinds)


def unflatten(state: Mapping[str, Any], like: Any = None) -> Any:
    """Returns the Linen variables of a state; the inverse of `flatten`.

    Args:
      state: A `State` or plain dictionary of paths.
      like: What says the structure that paths cannot: the native variables, or the `Spec` that `spec` returned.
        Integer keys, `FrozenDict`, tuples, empty collections and boxes are then those of `like`. Without it, nested
        dictionaries with string keys, and the boxes that the kinds remember.

    Raises:
      StructureError: With `like`, entries are missing or unknown; all are listed.
      EntryShapeError: With `like`, shapes differ; all are listed.
      CollisionError: A path is both an entry and the parent of another.

    >>> unflatten({'params/Dense_0/bias': 1, 'params/Dense_0/kernel': 2})
    {'params': {'Dense_0': {'bias': 1, 'kernel': 2}}}
    """
    kinds: Mapping[str, Kind] = state.kinds if isinstance(state, State) else {}
    if like is None:
        return _flat.nest({path: leaf_of(value, kinds.get(path)) for path, value in state.items()})
    native = like.native if isinstance(like, Spec) else like
    if native is None:
        return unflatten(state)
    wanted = leaves(native)
    filled, pairs = dict(state), []
    for path, leaf in wanted.items():
        array, metadata = entry_of(leaf)
        if "node" in metadata:
            filled[path] = leaf
        elif path in filled:
            pairs.append((path, filled[path], array))
            if "box" in metadata:
                filled[path] = metadata["box"].fill(filled[path])
    tree = _flat.unflatten(filled, native, is_leaf)
    _flat.check_shapes(pairs)
    return tree
