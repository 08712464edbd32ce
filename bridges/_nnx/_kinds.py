"""Kinds of entries <-> types and metadata of NNX Variables.

Invariant: `kind_of(made(value, kind))` is the kind, whatever its metadata; but the axis names of a partitioned entry are
those that the Variable has, which NNX changes when it stacks or splits it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from flax import nnx

from bridges._nnx._leaves import collection_of
from bridges.core import BatchStat, Cache, Intermediate, Param, RngState, Variable
from bridges.core._kind import Kind, kind_type

# From the most specific to the least.
_TYPES: dict[type[Variable], type[nnx.Variable]] = {
    Param: nnx.Param,
    BatchStat: nnx.BatchStat,
    Cache: nnx.Cache,
    Intermediate: nnx.Intermediate,
    RngState: nnx.RngState,
    Variable: nnx.Variable,
}
_NAMED: dict[str, type[nnx.Variable]] = {"RngKey": nnx.RngKey, "RngCount": nnx.RngCount}
_SHARDING = ("out_sharding", "sharding_rules", "mesh")


def variable_type(kind: Kind, known: Mapping[str, type[nnx.Variable]] | None = None) -> type[nnx.Variable]:
    """Returns the NNX Variable type of a kind, for filters.

    Args:
      kind: A kind.
      known: Types by collection that come before those that Flax knows: those that an NNX part uses itself.

    A kind of the user's own has a type of its name; a collection that has no kind has the type that Flax registers
    for its name, `nnx.variable_type_from_name(collection)`.

    >>> class Calls(Variable): ...
    >>> variable_type(Param), variable_type(Calls).__name__, variable_type(Variable(collection='losses')).__name__
    (<class 'flax.nnx.variablelib.Param'>, 'Calls', 'losses')
    """
    cls, collection = kind_type(kind), None if isinstance(kind, type) else kind.metadata.get("collection")
    if cls not in _TYPES:
        return _own(cls)  # type: ignore[arg-type]  # Of the class, not of its instances, the hash is wanted.
    base = _TYPES[cls]
    if collection is None:
        return base
    found = (known or {}).get(collection) or _NAMED.get(collection)
    found = found or nnx.variable_type_from_name(collection, base=base, allow_register=True)
    return found if issubclass(found, base) else _named(collection, base)


@functools.cache
def _own(cls: type[Variable]) -> type[nnx.Variable]:
    base = next(ours for ours in _TYPES if issubclass(cls, ours))
    return type(cls.__name__, (_TYPES[base],), {"bridges_kind": cls, "__slots__": ()})


@functools.cache
def _named(collection: str, base: type[nnx.Variable]) -> type[nnx.Variable]:
    return type(collection, (base,), {"__slots__": ()})


def made(value: Any, kind: Kind, known: Mapping[str, type[nnx.Variable]] | None = None) -> nnx.Variable:
    """Returns a new Variable of this kind.

    What Linen says of an entry's axes (`nn.with_partitioning`) becomes `out_sharding`, as NNX has it; it is a note, and
    places nothing. `known` is as for `variable_type`.
    """
    metadata = {} if isinstance(kind, type) else kind.metadata
    metadata.pop("collection", None)
    box = metadata.get("box")
    if box is not None and hasattr(type(box.empty), "to_nnx_metadata"):
        noted = box.fill(None).to_nnx_metadata()
        metadata.update({name: noted[name] for name in _SHARDING if noted.get(name) is not None})
        metadata["linen_meta_type"] = type(box.empty)
    if "out_sharding" in metadata:
        metadata["eager_sharding"] = False
    return variable_type(kind, known)(value, **metadata)


def kind_of(variable: nnx.Variable) -> Kind:
    """Returns the kind of a Variable; the inverse of `made`."""
    cls = variable.var_type
    skipped = {*nnx.Variable.required_metadata, "linen_meta_type"}
    metadata = {k: v for k, v in variable.get_metadata().items() if k not in skipped}
    base = getattr(cls, "bridges_kind", None)
    if base is None:
        base = next(ours for ours, theirs in _TYPES.items() if issubclass(cls, theirs))
        if _TYPES[base] is not cls:
            metadata["collection"] = collection_of(cls)
    box = metadata.get("box")
    if box is not None and hasattr(type(box.empty), "from_nnx_metadata"):
        noted = {name: metadata.pop(name) for name in _SHARDING if name in metadata}
        blank = {name: None for name in _SHARDING}
        metadata["box"] = type(box).of(type(box.empty).from_nnx_metadata({**blank, **noted, "value": None}))
    return base(**metadata) if metadata else base
