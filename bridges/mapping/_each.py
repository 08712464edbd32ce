"""Ops on each array by itself: axes, shape, sign, offset, dtype."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges.core._errors import MappingError
from bridges.mapping._op import Abstract, Arrays, Op, axis_of, like, shapes, xp


class Each(Op):
    """An op on each array by itself, or on one of them only (`part`)."""

    part: int | None = None

    def one(self, x: Abstract) -> Abstract | None:
        raise NotImplementedError

    def run(self, x: Any, out: Abstract) -> Any:
        raise NotImplementedError

    def on(self, part: int) -> Each:
        """Returns the same op on one of the arrays only."""
        return dataclasses.replace(self, part=part)  # type: ignore[call-arg]  # A field of every subclass, behind its own.

    def _on(self, i: int) -> bool:
        return self.part is None or self.part == i

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        if self.part is not None and not 0 <= self.part < len(ins):
            raise MappingError(f"{self}: there is no part {self.part} among {len(ins)} (counted from 0)")
        outs = [self.one(x) if self._on(i) else x for i, x in enumerate(ins)]
        known = [x for x in outs if x is not None]
        return known if len(known) == len(outs) else None

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        return [self.run(x, out) if self._on(i) else x for i, (x, out) in enumerate(zip(xs, outs, strict=True))]


@dataclasses.dataclass(frozen=True)
class Transpose(Each):
    """Permutes the axes; without `axes`, reverses them."""

    name = "transpose"
    axes: tuple[int, ...] | None = None
    part: int | None = None

    def one(self, x: Abstract) -> Abstract:
        axes = self.axes if self.axes is not None else tuple(range(len(x.shape)))[::-1]
        if sorted(axes) != list(range(len(x.shape))):
            raise MappingError(f"{self}: axes must be a permutation of 0…{len(x.shape) - 1} for shape {x.shape}")
        return like(x, [x.shape[a] for a in axes])

    def run(self, x: Any, out: Abstract) -> Any:
        return x.transpose(self.axes)

    @property
    def inverse(self) -> Op:
        back = None if self.axes is None else tuple(int(a) for a in np.argsort(self.axes))
        return Transpose(back, self.part)


@dataclasses.dataclass(frozen=True)
class Swap(Each):
    """Exchanges two axes, whatever the rank."""

    name = "swap"
    axes: tuple[int, int] = (-2, -1)
    part: int | None = None

    def one(self, x: Abstract) -> Abstract:
        a, b = (axis_of(axis, len(x.shape), str(self)) for axis in self.axes)
        shape = list(x.shape)
        shape[a], shape[b] = shape[b], shape[a]
        return like(x, shape)

    def run(self, x: Any, out: Abstract) -> Any:
        return x.swapaxes(*self.axes)

    @property
    def inverse(self) -> Op:
        return self


@dataclasses.dataclass(frozen=True)
class Reshape(Each):
    """Reshapes in row-major order; without `shape`, to what the other end has."""

    name = "reshape"
    shape: tuple[int, ...] | None = None
    part: int | None = None

    def one(self, x: Abstract) -> Abstract | None:
        if self.shape is None:
            return None
        size, known = math.prod(x.shape), math.prod(n for n in self.shape if n != -1)
        shape = tuple((size // known if known else 0) if n == -1 else n for n in self.shape)
        if math.prod(shape) != size or self.shape.count(-1) > 1:
            raise MappingError(f"{self}: {x.shape} has {size} elements and cannot take that shape")
        return like(x, shape)

    def run(self, x: Any, out: Abstract) -> Any:
        return x.reshape(out.shape)

    @property
    def inverse(self) -> Op:
        return Reshape(None, self.part)

    def check(self, ins: list[Abstract], outs: list[Abstract]) -> None:
        sizes = [[(math.prod(x.shape), x.dtype) for x in xs] for xs in (ins, outs)]
        if sizes[0] != sizes[1]:
            raise MappingError(f"{self}: from {shapes(ins)} it cannot reach {shapes(outs)}")


@dataclasses.dataclass(frozen=True)
class Squeeze(Each):
    """Removes axes of size 1."""

    name = "squeeze"
    axis: int | tuple[int, ...] = 0
    part: int | None = None

    def one(self, x: Abstract) -> Abstract:
        rank = len(x.shape)
        gone = {axis_of(a, rank, str(self)) for a in (self.axis if isinstance(self.axis, tuple) else (self.axis,))}
        if any(x.shape[a] != 1 for a in gone):
            raise MappingError(f"{self}: these axes of {x.shape} are not all of size 1")
        return like(x, [n for a, n in enumerate(x.shape) if a not in gone])

    def run(self, x: Any, out: Abstract) -> Any:
        return x.reshape(out.shape)

    @property
    def inverse(self) -> Op:
        return Expand(self.axis, self.part)


@dataclasses.dataclass(frozen=True)
class Expand(Each):
    """Inserts axes of size 1; `axis` counts in the result."""

    name = "expand"
    axis: int | tuple[int, ...] = 0
    part: int | None = None

    def one(self, x: Abstract) -> Abstract:
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        rank = len(x.shape) + len(axes)
        new = {axis_of(a, rank, str(self)) for a in axes}
        if len(new) < len(axes):
            raise MappingError(f"{self}: an axis is named twice")
        old = iter(x.shape)
        return like(x, [1 if a in new else next(old) for a in range(rank)])

    def run(self, x: Any, out: Abstract) -> Any:
        return x.reshape(out.shape)

    @property
    def inverse(self) -> Op:
        return Squeeze(self.axis, self.part)


@dataclasses.dataclass(frozen=True)
class Flip(Each):
    """Reverses the order along axes; with `but_last = n`, along all but the last n (2: a kernel's spatial axes)."""

    name = "flip"
    axis: int | tuple[int, ...] = 0
    but_last: int | None = None
    part: int | None = None

    def _axes(self, rank: int) -> tuple[int, ...]:
        if self.but_last is not None:
            return tuple(range(rank - self.but_last))
        return self.axis if isinstance(self.axis, tuple) else (self.axis,)

    def one(self, x: Abstract) -> Abstract:
        for axis in self._axes(len(x.shape)):
            axis_of(axis, len(x.shape), str(self))
        return x

    def run(self, x: Any, out: Abstract) -> Any:
        return xp(x).flip(x, self._axes(x.ndim))

    @property
    def inverse(self) -> Op:
        return self


def _number(op: Each, value: float, x: Abstract) -> None:
    if not math.isfinite(value):
        raise MappingError(f"{op}: the value must be finite")
    if not jax.dtypes.issubdtype(x.dtype, np.inexact) and int(value) != value:
        raise MappingError(f"{op}: {value} is not a value of {x.dtype}")


@dataclasses.dataclass(frozen=True)
class Add(Each):
    """Adds a constant. The way back rounds: it is exact to one unit in the last place of the larger of both."""

    name = "add"
    value: float = 0.0
    part: int | None = None

    def one(self, x: Abstract) -> Abstract:
        _number(self, self.value, x)
        return x

    def run(self, x: Any, out: Abstract) -> Any:
        return x + xp(x).asarray(self.value, x.dtype)

    @property
    def inverse(self) -> Op:
        return Add(-self.value, self.part)

    def loss(self, ins: list[Abstract], outs: list[Abstract]) -> str | None:
        exact = self.value == 0 or not jax.dtypes.issubdtype(ins[self.part or 0].dtype, np.inexact)
        return None if exact else f"rounding: {self}"

    def moment(self, power: int) -> Op | None:
        return None


@dataclasses.dataclass(frozen=True)
class Scale(Each):
    """Multiplies by a constant, or divides by it; bit-exact both ways for powers of two and their negatives."""

    name = "scale"
    value: float = 1.0
    divide: bool = False
    part: int | None = None

    def one(self, x: Abstract) -> Abstract:
        _number(self, self.value, x)
        if self.value == 0:
            raise MappingError(f"{self}: a scale of 0 has no inverse")
        if abs(self.value) != 1 and not jax.dtypes.issubdtype(x.dtype, np.inexact):
            raise MappingError(f"{self}: an array of {x.dtype} can only change its sign")
        return x

    def run(self, x: Any, out: Abstract) -> Any:
        value = xp(x).asarray(self.value, x.dtype)
        return (x / value).astype(x.dtype) if self.divide else x * value

    @property
    def inverse(self) -> Op:
        return Scale(self.value, not self.divide, self.part)

    def loss(self, ins: list[Abstract], outs: list[Abstract]) -> str | None:
        signed_zeros = any(jax.dtypes.issubdtype(x.dtype, np.complexfloating) for x in ins)
        return None if abs(math.frexp(self.value)[0]) == 0.5 and not signed_zeros else f"rounding: {self}"

    def moment(self, power: int) -> Op | None:
        value = self.value**power
        return None if value == 1 else Scale(value, not self.divide, self.part)


@dataclasses.dataclass(frozen=True)
class Cast(Each):
    """Changes the dtype; without `dtype`, to that of the other end."""

    name = "cast"
    dtype: str | None = None
    part: int | None = None

    def one(self, x: Abstract) -> Abstract | None:
        if self.dtype is None:
            return None
        try:
            return Abstract(x.shape, jnp.dtype(self.dtype))
        except TypeError as err:
            raise MappingError(f"{self}: {self.dtype!r} is not a dtype") from err

    def check(self, ins: list[Abstract], outs: list[Abstract]) -> None:
        if [x.shape for x in ins] != [x.shape for x in outs]:
            raise MappingError(f"{self}: from {shapes(ins)} it cannot reach {shapes(outs)}")

    def run(self, x: Any, out: Abstract) -> Any:
        return x.astype(out.dtype)

    @property
    def inverse(self) -> Op:
        return Cast(None, self.part)

    def loss(self, ins: list[Abstract], outs: list[Abstract]) -> str | None:
        for x, y in zip(ins, outs, strict=True):
            if jnp.promote_types(x.dtype, y.dtype) != y.dtype:
                return f"{x.dtype} becomes {y.dtype}"
        return None
