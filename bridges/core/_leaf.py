"""What an entry holds: an array of a definite dtype, whose shape and sort of number stay."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges.core._errors import EntryShapeError, StructureError, describe


def as_leaf(path: str, value: Any) -> Any:
    """Returns the value as an array with a definite dtype; arrays, tracers and abstract values as they are."""
    if isinstance(value, (bool, int, float, complex)):
        value = jnp.asarray(value)
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise StructureError(
            f"The state entry {path!r} must be an array or a tree of arrays; got {type(value).__name__} {value!r}."
            " Keep anything else as an attribute of the module."
        )
    return jnp.asarray(value, dtype=value.dtype) if getattr(value, "weak_type", False) else value


def fitted(path: str, value: Any, existing: Any) -> Any:
    """Returns the value in the dtype of the existing one; an `EntryShapeError` where shape or sort of number differ."""
    if tuple(value.shape) != tuple(existing.shape):
        raise EntryShapeError(
            f"The state entry {path!r} is {describe(existing)} and was written with {describe(value)}: the shape"
            f" {tuple(existing.shape)} against {tuple(value.shape)}. Shapes are fixed when an entry is created: write a"
            " value of that shape, or initialise the state anew."
        )
    if value.dtype == existing.dtype:
        return value
    castable = not any(jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended) for x in (value, existing))
    if not castable or not np.can_cast(_plain(value.dtype), _plain(existing.dtype), "same_kind"):
        raise EntryShapeError(
            f"The state entry {path!r} is {describe(existing)} and was written with {describe(value)}: that cast would"
            " lose more than precision. Cast the value yourself if it is meant."
        )
    return jnp.asarray(value, dtype=existing.dtype)


def _plain(dtype: Any) -> np.dtype:
    """Returns the dtype, small floats such as bfloat16 as float16: NumPy knows no kind for them."""
    return np.dtype(np.float16) if jnp.issubdtype(dtype, np.floating) and dtype.itemsize <= 2 else np.dtype(dtype)
