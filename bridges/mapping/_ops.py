"""Ops: what a rule does to the arrays on their way, each with its inverse.

Every op takes a list of arrays to a list of arrays. `apply` works in the arrays' own namespace: NumPy stays NumPy (no
device, no copy where a view will do, float64 and bfloat16 survive), JAX arrays and tracers stay JAX. Sizes that a user
left out (the shape of a reshape, the parts of a split) come from the specs of both ends, so an inverse never guesses.

Invariant: where `loss` returns None, `op.inverse.apply(op.apply(xs, outs), ins)` is `xs` bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bridges.core._errors import MappingError, UnsupportedError, describe, hint

Abstract = jax.ShapeDtypeStruct
Arrays = list[Any]


def _xp(x: Any) -> Any:
    return np if isinstance(x, (np.ndarray, np.generic)) else jnp


def _axis(axis: int, rank: int, op: str) -> int:
    if not -rank <= axis < rank:
        raise MappingError(f"{op}: axis {axis} is outside an array of rank {rank}")
    return axis % rank


def _like(x: Any, shape: Sequence[int]) -> Abstract:
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
        args = ", ".join(f"{k}={v}" for k, v in self.to_dict().items() if k != "op")
        return f"{self.name}({args})" if args else self.name


class _Each(Op):
    """An op on each array by itself, or on one of them only (`part`)."""

    part: int | None = None

    def one(self, x: Abstract) -> Abstract | None:
        raise NotImplementedError

    def run(self, x: Any, out: Abstract) -> Any:
        raise NotImplementedError

    def _on(self, i: int) -> bool:
        return self.part is None or self.part == i

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        if self.part is not None and not 0 <= self.part < len(ins):
            raise MappingError(f"{self}: there is no part {self.part} among {len(ins)} (counted from 0)")
        outs = [self.one(x) if self._on(i) else x for i, x in enumerate(ins)]
        return None if any(x is None for x in outs) else outs  # type: ignore[return-value]

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        return [self.run(x, out) if self._on(i) else x for i, (x, out) in enumerate(zip(xs, outs, strict=True))]


@dataclasses.dataclass(frozen=True)
class Transpose(_Each):
    """Permutes the axes; without `axes`, reverses them."""

    name = "transpose"
    axes: tuple[int, ...] | None = None
    part: int | None = None

    def one(self, x: Abstract) -> Abstract:
        axes = self.axes if self.axes is not None else tuple(range(len(x.shape)))[::-1]
        if sorted(axes) != list(range(len(x.shape))):
            raise MappingError(f"{self}: axes must be a permutation of 0…{len(x.shape) - 1} for shape {x.shape}")
        return _like(x, [x.shape[a] for a in axes])

    def run(self, x: Any, out: Abstract) -> Any:
        return x.transpose(self.axes)

    @property
    def inverse(self) -> Op:
        back = None if self.axes is None else tuple(int(a) for a in np.argsort(self.axes))
        return Transpose(back, self.part)


@dataclasses.dataclass(frozen=True)
class Reshape(_Each):
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
        return _like(x, shape)

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
class Squeeze(_Each):
    """Removes axes of size 1."""

    name = "squeeze"
    axis: int | tuple[int, ...] = 0
    part: int | None = None

    def one(self, x: Abstract) -> Abstract:
        rank = len(x.shape)
        gone = {_axis(a, rank, str(self)) for a in (self.axis if isinstance(self.axis, tuple) else (self.axis,))}
        if any(x.shape[a] != 1 for a in gone):
            raise MappingError(f"{self}: these axes of {x.shape} are not all of size 1")
        return _like(x, [n for a, n in enumerate(x.shape) if a not in gone])

    def run(self, x: Any, out: Abstract) -> Any:
        return x.reshape(out.shape)

    @property
    def inverse(self) -> Op:
        return Expand(self.axis, self.part)


@dataclasses.dataclass(frozen=True)
class Expand(_Each):
    """Inserts axes of size 1; `axis` counts in the result."""

    name = "expand"
    axis: int | tuple[int, ...] = 0
    part: int | None = None

    def one(self, x: Abstract) -> Abstract:
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        rank = len(x.shape) + len(axes)
        new = {_axis(a, rank, str(self)) for a in axes}
        if len(new) < len(axes):
            raise MappingError(f"{self}: an axis is named twice")
        old = iter(x.shape)
        return _like(x, [1 if a in new else next(old) for a in range(rank)])

    def run(self, x: Any, out: Abstract) -> Any:
        return x.reshape(out.shape)

    @property
    def inverse(self) -> Op:
        return Squeeze(self.axis, self.part)


@dataclasses.dataclass(frozen=True)
class Flip(_Each):
    """Reverses the order along axes (of spatial kernels)."""

    name = "flip"
    axis: int | tuple[int, ...] = 0
    part: int | None = None

    def one(self, x: Abstract) -> Abstract:
        for axis in self.axis if isinstance(self.axis, tuple) else (self.axis,):
            _axis(axis, len(x.shape), str(self))
        return x

    def run(self, x: Any, out: Abstract) -> Any:
        return _xp(x).flip(x, self.axis)

    @property
    def inverse(self) -> Op:
        return self


def _number(op: _Each, value: float, x: Abstract) -> None:
    if not math.isfinite(value):
        raise MappingError(f"{op}: the value must be finite")
    if not jax.dtypes.issubdtype(x.dtype, np.inexact) and int(value) != value:
        raise MappingError(f"{op}: {value} is not a value of {x.dtype}")


@dataclasses.dataclass(frozen=True)
class Add(_Each):
    """Adds a constant. The way back rounds: it is exact to one unit in the last place of the larger of both."""

    name = "add"
    value: float = 0.0
    part: int | None = None

    def one(self, x: Abstract) -> Abstract:
        _number(self, self.value, x)
        return x

    def run(self, x: Any, out: Abstract) -> Any:
        return x + _xp(x).asarray(self.value, x.dtype)

    @property
    def inverse(self) -> Op:
        return Add(-self.value, self.part)

    def loss(self, ins: list[Abstract], outs: list[Abstract]) -> str | None:
        exact = self.value == 0 or not jax.dtypes.issubdtype(ins[self.part or 0].dtype, np.inexact)
        return None if exact else f"rounding: {self}"

    def moment(self, power: int) -> Op | None:
        return None


@dataclasses.dataclass(frozen=True)
class Scale(_Each):
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
        value = _xp(x).asarray(self.value, x.dtype)
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
class Cast(_Each):
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


@dataclasses.dataclass(frozen=True)
class Split(Op):
    """Cuts each array into parts along an axis: by `sizes`, or by the sizes that the other end has, equal or not.

    `parts` says how many where an earlier or later op divides the list as well.
    """

    name = "split"
    axis: int = -1
    sizes: tuple[int, ...] | None = None
    parts: int | None = None

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        if self.sizes is None:
            return None
        outs = []
        for x in ins:
            axis = _axis(self.axis, len(x.shape), str(self))
            if sum(self.sizes) != x.shape[axis]:
                raise MappingError(f"{self}: the sizes add up to {sum(self.sizes)}, the axis has {x.shape[axis]}")
            outs += [_like(x, (*x.shape[:axis], n, *x.shape[axis + 1 :])) for n in self.sizes]
        return outs

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        count, parts = len(outs) // len(xs), []
        for i, x in enumerate(xs):
            ends = np.cumsum([out.shape[self.axis] for out in outs[i * count : (i + 1) * count]])
            parts += _xp(x).split(x, [int(n) for n in ends[:-1]], self.axis)
        return parts

    @property
    def inverse(self) -> Op:
        return Concat(self.axis, self.sizes, self.parts)


@dataclasses.dataclass(frozen=True)
class Concat(Op):
    """Joins arrays along an axis, all of them or in groups of `parts`; the way back has the sizes that came in."""

    name = "concat"
    axis: int = -1
    sizes: tuple[int, ...] | None = None
    parts: int | None = None

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        count = self.parts or len(self.sizes or ()) or len(ins)
        if not ins or len(ins) % count:
            raise MappingError(f"{self}: {len(ins)} arrays do not make groups of {count}")
        outs = []
        for i in range(0, len(ins), count):
            group = ins[i : i + count]
            axis = _axis(self.axis, len(group[0].shape), str(self))
            rest = {(x.dtype, *x.shape[:axis], None, *x.shape[axis + 1 :]) for x in group}
            sizes = tuple(x.shape[axis] if axis < len(x.shape) else 0 for x in group)
            if len(rest) > 1 or (self.sizes is not None and sizes != self.sizes):
                raise MappingError(f"{self}: these do not join: {shapes(group)}")
            outs.append(_like(group[0], (*group[0].shape[:axis], sum(sizes), *group[0].shape[axis + 1 :])))
        return outs

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        count = len(xs) // len(outs)
        return [_xp(xs[i]).concatenate(xs[i : i + count], self.axis) for i in range(0, len(xs), count)]

    @property
    def inverse(self) -> Op:
        return Split(self.axis, self.sizes, self.parts)


@dataclasses.dataclass(frozen=True)
class Stack(Op):
    """Stacks all arrays along a new axis."""

    name = "stack"
    axis: int = 0

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        if len({(x.shape, x.dtype) for x in ins}) != 1:
            raise MappingError(f"{self}: all must have one shape and dtype: {[x.shape for x in ins]}")
        shape = list(ins[0].shape)
        shape.insert(_axis(self.axis, len(shape) + 1, str(self)), len(ins))
        return [_like(ins[0], shape)]

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        return [_xp(xs[0]).stack(xs, self.axis)]

    @property
    def inverse(self) -> Op:
        return Unstack(self.axis)


@dataclasses.dataclass(frozen=True)
class Unstack(Op):
    """Takes one array apart along an axis, which goes away."""

    name = "unstack"
    axis: int = 0

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        if len(ins) != 1:
            raise MappingError(f"{self}: it takes one array, not {len(ins)}")
        axis = _axis(self.axis, len(ins[0].shape), str(self))
        shape = (*ins[0].shape[:axis], *ins[0].shape[axis + 1 :])
        return [_like(ins[0], shape)] * ins[0].shape[axis]

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        x = xs[0]
        axis = _axis(self.axis, x.ndim, str(self))
        return [x[(slice(None),) * axis + (i,)] for i in range(x.shape[axis])]

    @property
    def inverse(self) -> Op:
        return Stack(self.axis)


@dataclasses.dataclass(frozen=True)
class Pick(Op):
    """Keeps the first of the arrays; the way back writes it to all of them."""

    name = "pick"

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        return ins[:1]

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        return xs[:1]

    @property
    def inverse(self) -> Op:
        return Copy()

    def loss(self, ins: list[Abstract], outs: list[Abstract]) -> str | None:
        return None if len(ins) == 1 else "keeps the first source only"

    def moment(self, power: int) -> Op | None:
        raise UnsupportedError("one of several entries was picked, and the optimizer has a state for each")


@dataclasses.dataclass(frozen=True)
class Copy(Op):
    """Writes one array to every target; the way back keeps the first."""

    name = "copy"

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        return None

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        return xs[:1] * len(outs)

    @property
    def inverse(self) -> Op:
        return Pick()

    def moment(self, power: int) -> Op | None:
        raise UnsupportedError("one entry becomes several copies, which train apart from then on")


OPS: dict[str, type[Op]] = {
    op.name: op
    for op in (
        *(Transpose, Reshape, Squeeze, Expand, Flip, Add, Scale, Cast),
        *(Split, Concat, Stack, Unstack, Pick, Copy),
    )
}


def op_from_dict(given: Mapping[str, Any] | str) -> Op:
    """Returns the op of its plain data; a bare name is an op with no arguments.

    >>> op_from_dict({'op': 'transpose', 'axes': [1, 0]})
    Transpose(axes=(1, 0), part=None)
    """
    if isinstance(given, str):
        given = {"op": given}
    args = dict(given)
    name = args.pop("op", None)
    if name not in OPS:
        raise MappingError(f"{name!r} is not an op.{hint(str(name), OPS)} There are {', '.join(OPS)}.")
    known = [f.name for f in dataclasses.fields(OPS[name])]
    wrong = [key for key in args if key not in known]
    if wrong:
        raise MappingError(f"The op {name} has no argument {wrong[0]!r}; it has {', '.join(known) or 'none'}.")
    return OPS[name](**args)
