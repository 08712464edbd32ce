"""Op: what a rule does to arrays on their way; the base of `_each` (one array at a time) and `_lists` (several).

Every op takes a list of arrays to a list of arrays. `apply` works in the arrays' own namespace: NumPy stays NumPy (no
device, no copy where a view will do, float64 and bfloat16 survive), JAX arrays and tracers stay JAX. Sizes that a user
left out (the shape of a reshape, the parts of a split) come from the specs of both ends, so an inverse never guesses.

Invariant: where `loss` returns None, `op.inverse.apply(op.apply(xs, outs), ins)` is `xs` bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bridges.core._errors import MappingError, describe

Abstract = jax.ShapeDtypeStruct
Arrays = list[Any]


def xp(x: Any) -> Any:
    return np if isinstance(x, (np.ndarray, np.generic)) else jnp


def axis_of(axis: int, rank: int, op: str) -> int:
    if not -rank <= axis < rank:
        raise MappingError(f"{op}: axis {axis} is outside an array of rank {rank}")
    return axis % rank


def like(x: Any, shape: Sequence[int]) -> Abstract:
    return Abstract(tuple(shape), x.dtype)


def signature(xs: Sequence[Abstract]) -> list[Any]:
    """Returns shapes and dtypes in a form that compares."""
    return [(tuple(x.shape), x.dtype) for x in xs]


def shapes(xs: Sequence[Abstract]) -> str:
    """Returns `float32[3,4] + float32[4]` for an error or a table."""
    return " + ".join(map(describe, xs)) or "nothing"


def _ints(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation. Subclasses are frozen data; their fields are the keys in TOML and JSON."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _ints(getattr(self, field.name)))

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        """Returns shapes and dtypes of the results; None where only the other end can tell. Raises MappingError."""
        raise NotImplementedError

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        """Returns the results, which have the shapes and dtypes `outs`."""
        raise NotImplementedError

    def check(self, ins: list[Abstract], outs: list[Abstract]) -> None:
        """Raises a MappingError unless the op can take `ins` to `outs`; called where `infer` returned None."""
        back = self.inverse.infer(outs)
        if back is not None and signature(back) != signature(ins):
            raise MappingError(f"{self}: from {shapes(ins)} it cannot reach {shapes(outs)}")

    @property
    def inverse(self) -> Op:
        """The op that goes back."""
        raise NotImplementedError

    def loss(self, ins: list[Abstract], outs: list[Abstract]) -> str | None:
        """Returns what the op loses, in words, or None where it is exact."""
        return None

    def moment(self, power: int) -> Op | None:
        """Returns the op for a moment of the gradients (power 1: `mu`; 2: `nu`); None for no change."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Returns the op as plain data: `{'op': name, …}` with the fields that are not at their default."""
        out: dict[str, Any] = {"op": self.name}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                out[field.name] = list(value) if isinstance(value, tuple) else value
        return out

    def __str__(self) -> str:
        given = {k: v for k, v in self.to_dict().items() if k != "op"}
        args = ", ".join(k if v is True else f"{k}={v}" for k, v in given.items())
        return f"{self.name}({args})" if args else self.name
