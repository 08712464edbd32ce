"""Inputs and variables in another precision: what is an array among them, and what of it is real.

What it does not do: it leaves integers, keys and static values (flags) as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges.core._spec import abstract
from bridges.core._state import State
from bridges.mapping._plan import Plan


def is_array(x: Any) -> bool:
    """Whether a leaf of the inputs is an array rather than a static value such as a flag."""
    return isinstance(x, (jax.Array, np.ndarray, np.floating, np.integer, float))


def is_real(x: Any) -> bool:
    """Whether x is an array of floating or complex numbers: what has a precision and a gradient."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, np.inexact)


def cast(x: Any, dtype: Any) -> Any:
    """Returns a real array in the given precision, anything else unchanged; NumPy arrays stay NumPy.

    >>> cast(np.ones(2, np.float32), np.float64).dtype, cast(np.arange(2), np.float64).dtype
    (dtype('float64'), dtype('int64'))
    """
    if isinstance(x, float):
        x = np.asarray(x, np.float32)
    if not is_real(x) or jnp.issubdtype(x.dtype, np.complexfloating):
        return x
    return np.asarray(x).astype(dtype)


def cast_all(flat: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    return {path: cast(x, dtype) for path, x in flat.items()}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of a call, taken apart: arrays by path, the rest in their places.

    >>> Inputs.of((np.ones(2), True)).arrays.keys()
    dict_keys(['0'])
    """

    arrays: dict[str, Any]
    leaves: tuple[Any, ...]
    treedef: Any

    @classmethod
    def of(cls, inputs: Sequence[Any], floats: bool = True) -> Inputs:
        """Returns the inputs taken apart; a Python float is an array if `floats`, else a setting that stays."""
        items, treedef = jax.tree_util.tree_flatten_with_path(tuple(inputs))
        leaves = [leaf for _, leaf in items]
        names = ["/".join(str(getattr(k, "idx", getattr(k, "key", k))) for k in keys) for keys, _ in items]
        given = [is_array(leaf) and (floats or not isinstance(leaf, float)) for leaf in leaves]
        arrays = {name: leaf for name, leaf, array in zip(names, leaves, given, strict=True) if array}
        filling = (n if array else _Static(x) for n, x, array in zip(names, leaves, given, strict=True))
        return cls(arrays, tuple(filling), treedef)

    def filled(self, arrays: Mapping[str, Any]) -> tuple[Any, ...]:
        """Returns the inputs with these arrays."""
        leaves = [leaf.value if isinstance(leaf, _Static) else arrays[leaf] for leaf in self.leaves]
        return jax.tree.unflatten(self.treedef, leaves)


@dataclasses.dataclass(frozen=True)
class _Static:
    value: Any


def plan_in(plan: Plan, dtype: Any) -> Plan:
    """Returns the same plan between variables of the given precision, so that an offset is added in it too."""

    def wide(x: Any) -> Any:
        real = jnp.issubdtype(x.dtype, np.floating)
        return jax.ShapeDtypeStruct(x.shape, np.dtype(dtype)) if real else abstract(x)

    def state(s: State) -> State:
        return State({path: wide(x) for path, x in s.items()}, s.declared)

    items = tuple(
        dataclasses.replace(item, stages=tuple(tuple(map(wide, stage)) for stage in item.stages)) for item in plan.items
    )
    return dataclasses.replace(plan, items=items, src=state(plan.src), dst=state(plan.dst))


def cotangent(out: Any) -> Any:
    """Returns the sum of all real outputs, each times a fixed random number: its gradient sees every output."""
    rng = np.random.default_rng(7)
    total: Any = 0.0
    for leaf in jax.tree.leaves(out):
        if is_real(leaf):
            weights = rng.normal(size=leaf.shape)
            real = jnp.real(leaf) if jnp.issubdtype(leaf.dtype, np.complexfloating) else leaf
            total = total + jnp.sum(real * jnp.asarray(weights, real.dtype))
    return total
