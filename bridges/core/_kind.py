"""Kinds: what the entries of a state are for."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


class Variable:
    """What an entry is for. Subclass it for a kind of your own; an instance carries metadata beside the entry.

    A kind is a subclass (`Param`) or an instance that holds metadata (`Param(sharding=('in', 'out'))`). Metadata values
    must be hashable: they are part of the tree structure.

    >>> class Calls(Variable): ...
    >>> Param(sharding=('in', None))
    Param(sharding=('in', None))
    """

    __slots__ = ("_metadata",)

    def __init__(self, **metadata: Any):
        self._metadata = tuple(sorted(metadata.items()))

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata as a new dictionary."""
        return dict(self._metadata)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._metadata == other._metadata

    def __hash__(self) -> int:
        return hash((type(self), self._metadata))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._metadata)})"


class Param(Variable):
    """A trainable weight."""


class BatchStat(Variable):
    """A running statistic: updated by the forward pass, never by a gradient."""


class Cache(Variable):
    """What autoregressive decoding carries from step to step."""


class Intermediate(Variable):
    """A value recorded by a call for inspection; it may be removed from a state, and the next call records it again."""


class RngState(Variable):
    """A random key, or a counter of keys, that is part of the state."""


# What Flax calls the collection of a kind, and NNX took for a filter.
COLLECTIONS: dict[str, type[Variable]] = {
    "params": Param,
    "batch_stats": BatchStat,
    "cache": Cache,
    "intermediates": Intermediate,
}

Kind = type[Variable] | Variable


def kind_type(kind: Kind) -> type[Variable]:
    """Returns the class of a kind, whether given as a class or as an instance with metadata."""
    return kind if isinstance(kind, type) else type(kind)


def default_kind(value: Any) -> Kind:
    """Returns `Param` for floating and complex arrays, `RngState` for typed keys, `Variable` for all else."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return Variable
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return RngState
    return Param if jax.dtypes.issubdtype(dtype, np.inexact) else Variable


def is_transient(kind: Kind | None) -> bool:
    """Whether entries of this kind record what a call computed, so that any call may make them anew."""
    return kind is not None and issubclass(kind_type(kind), Intermediate)
