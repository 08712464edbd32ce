"""One leaf of an NNX module or state: its place, its Variable type and metadata, and the entries that it gives.

A leaf is a Variable, or an array that is none (the mask of `nnx.Conv`). Its entry is called
`<collection>/<native path>`. The collection is the name that Flax itself has for the Variable type (`params` for
`nnx.Param`, what `nnx.register_variable_name` says, else the class's name, as in `RngKey`); arrays without a Variable
have the collection `arrays`. A tuple among the native keys is one segment, joined by '/' (and so escaped). A Variable
that holds a tree gives an entry a leaf of the tree.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from bridges.core import _flat
from bridges.core._errors import CollisionError, listing
from bridges.core._kind import BatchStat, Cache, Intermediate, Kind, Param, RngState, Variable
from bridges.core._spec import abstract

ARRAYS = "arrays"
_STANDARD: dict[str, type[Variable]] = {
    "params": Param,
    "batch_stats": BatchStat,
    "cache": Cache,
    "intermediates": Intermediate,
}
# A perturbation is a subclass of an intermediate, but an input of the call.
_KINDS: tuple[tuple[type, type[Variable]], ...] = (
    (nnx.Perturbation, Variable),
    (nnx.Param, Param),
    (nnx.BatchStat, BatchStat),
    (nnx.Cache, Cache),
    (nnx.Intermediate, Intermediate),
    (nnx.RngState, RngState),
)


def collection_of(cls: type[nnx.Variable]) -> str:
    """Returns the collection of a Variable type: the name that Flax knows it by, else that of the class.

    >>> collection_of(nnx.Param), collection_of(nnx.RngKey)
    ('params', 'RngKey')
    """
    try:
        return nnx.variable_name_from_type(cls)
    except ValueError:
        return cls.__name__


def segment(key: Any) -> str:
    """Returns a native key as one segment of a path, before it is escaped.

    >>> segment('kernel'), segment(3), segment(('kernel', 'u'))
    ('kernel', '3', 'kernel/u')
    """
    return _flat.SEPARATOR.join(map(str, key)) if isinstance(key, tuple) else str(key)


def native_path(keys: Iterable[Any]) -> str:
    """Returns the path of native keys, without a collection."""
    return _flat.join(map(segment, keys))


class Opaque:
    """Metadata that Python cannot hash, compared by value."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and bool(self.value == other.value)

    def __hash__(self) -> int:
        return hash(type(self.value))

    def __repr__(self) -> str:
        return repr(self.value)


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return Opaque(value)
    return value


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """Where a leaf is and what it is made of, without its value.

    Attributes:
      keys: The native path.
      type: The Variable type; None for an array that is no Variable.
      metadata: The Variable's metadata.
      wanted: The value's tree with `jax.ShapeDtypeStruct` leaves.
      entries: Path -> `jax.ShapeDtypeStruct` of the entries that it gives.
      kind: The kind of these entries.
    """

    keys: tuple[Any, ...]
    type: type[nnx.Variable] | None
    metadata: Mapping[str, Any]
    wanted: Any
    entries: Mapping[str, jax.ShapeDtypeStruct]
    kind: Kind

    @classmethod
    def of(cls, keys: tuple[Any, ...], leaf: Any) -> Leaf:
        """Returns the description of a leaf; its value may be abstract."""
        variable = isinstance(leaf, nnx.Variable)
        kind = leaf.var_type if variable else None
        metadata = leaf.get_metadata() if variable else {}
        wanted = jax.tree.map(abstract, value_of(leaf))
        path = _flat.join((ARRAYS if kind is None else collection_of(kind), *map(segment, keys)))
        return cls(keys, kind, metadata, wanted, _entries(path, wanted), _kind(leaf))

    @functools.cached_property
    def plain(self) -> bool:
        """Whether the value is one array, as nearly always."""
        return isinstance(self.wanted, jax.ShapeDtypeStruct)

    @functools.cached_property
    def path(self) -> str:
        """The path of its entry, or what the paths of its entries begin with."""
        return _flat.join((ARRAYS if self.type is None else collection_of(self.type), *map(segment, self.keys)))

    @functools.cached_property
    def _plainly(self) -> dict[str, Any]:
        return {**self.metadata, "hijax": False, "ref": False}

    def value(self, entries: Mapping[str, Any]) -> Any:
        """Returns the leaf's value from entries by path."""
        values = [entries[path] for path in self.entries]
        return values[0] if self.plain else jax.tree.unflatten(jax.tree.structure(self.wanted), values)

    def make(self, value: Any) -> Any:
        """Returns a new leaf with this value: a Variable that belongs to the trace that runs now, or the value itself."""
        if self.type is None:
            return value
        return self.type.from_metadata(value, self._plainly)

    def values(self, leaf: Any) -> dict[str, Any]:
        """Returns the entries of a leaf at this place."""
        value = value_of(leaf)
        if self.plain and hasattr(value, "shape"):
            return {next(iter(self.entries)): value}
        return _entries(self.path, value)


def _entries(path: str, value: Any) -> dict[str, Any]:
    return {f"{path}{_flat.SEPARATOR}{name}" if name else path: part for name, part in _flat.flatten(value).items()}


def value_of(leaf: Any) -> Any:
    """Returns what a leaf holds, as it is stored; of a mutable array its value of now."""
    if not isinstance(leaf, nnx.Variable):
        return leaf
    return leaf.get_value() if leaf.ref else leaf.get_raw_value()


def _kind(leaf: Any) -> Kind:
    if not isinstance(leaf, nnx.Variable):
        return Variable(collection=ARRAYS)
    base = next((ours for theirs, ours in _KINDS if issubclass(leaf.var_type, theirs)), Variable)
    required = nnx.Variable.required_metadata
    metadata = {k: _hashable(v) for k, v in leaf.get_metadata().items() if k not in required and v is not None}
    collection = collection_of(leaf.var_type)
    if _STANDARD.get(collection) is not base:
        metadata["collection"] = collection
    return base(**metadata) if metadata else base


def check_apart(leaves: Iterable[Leaf]) -> None:
    """Raises a `CollisionError` if entries of two leaves have one path, or one lies below another."""
    seen: dict[str, Leaf] = {}
    double = []
    for leaf in leaves:
        for path in leaf.entries:
            if path in seen:
                double.append(f"{path!r}: {seen[path].keys} and {leaf.keys}")
            seen[path] = leaf
    for path in seen:
        parts = path.split(_flat.SEPARATOR)
        above = (_flat.SEPARATOR.join(parts[:end]) for end in range(1, len(parts)))
        double += [f"{path!r} lies below {parent!r}, which is an array itself" for parent in above if parent in seen]
    if double:
        raise CollisionError(
            "Several leaves of this NNX module land on one path:\n" + listing(double) + "\nRename one of the keys."
        )


def is_array(value: Any) -> bool:
    """Whether a value is an array, concrete or abstract."""
    return isinstance(value, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))


def holds_data(value: Any) -> bool:
    """Whether an attribute's value is, or contains, an array, a Variable or a module."""
    return any(nnx.is_data(leaf) or is_array(leaf) for leaf in jax.tree.leaves(value, is_leaf=nnx.is_data))
