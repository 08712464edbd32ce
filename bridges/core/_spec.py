"""Spec: what a model's variables look like, with nothing allocated.

An adapter's `spec(model, *inputs)` makes one; the mapping engine plans between two of them. Beside shapes, dtypes and
kinds it carries the layers that the model is made of, with the hyperparameters that decide what their parameters mean
(epsilon, decay, padding), where the model itself was at hand to be asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bridges.core._state import State


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer instance of a model.

    Attributes:
      type: `'<framework>.<class>'`, for example `'haiku.BatchNorm'` or `'linen.Dense'`.
      hyperparameters: Constructor arguments by name, as the framework's instance reports them; plain values.
    """

    type: str
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Spec:
    """The abstract variables of a model.

    Attributes:
      entries: Path -> `jax.ShapeDtypeStruct`, with kinds.
      framework: `'haiku'`, `'linen'`, `'nnx'` or `'flat'`.
      layers: Module path (without the collection) -> `Layer`; empty when only the variables were at hand.
      native: The framework's own variable tree with `jax.ShapeDtypeStruct` leaves; a `like` for `unflatten`.
    """

    entries: State
    framework: str = "flat"
    layers: Mapping[str, Layer] = dataclasses.field(default_factory=dict)
    native: Any = None

    @classmethod
    def of(cls, entries: Mapping[str, Any] | Spec, framework: str = "flat") -> Spec:
        """Returns the spec of a state or plain dict of arrays (a spec is returned as it is).

        >>> Spec.of({'w': np.ones((2, 3), np.float32)}).entries['w']
        ShapeDtypeStruct(shape=(2, 3), dtype=float32)
        """
        if isinstance(entries, Spec):
            return entries
        state = entries if isinstance(entries, State) else State(entries)
        return cls(State({p: abstract(v) for p, v in state.items()}, state.declared), framework)


def abstract(value: Any) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of an array, a scalar or a `jax.ShapeDtypeStruct`, allocating nothing."""
    if type(value) is jax.ShapeDtypeStruct:
        return value
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        value = np.asarray(value)
    return jax.ShapeDtypeStruct(tuple(value.shape), value.dtype)
