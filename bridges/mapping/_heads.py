"""Ops of attention: heads of unlike sizes, and keys and values that several heads share."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from bridges.core._errors import MappingError, UnsupportedError
from bridges.mapping._each import Each
from bridges.mapping._op import Abstract, Op, axis_of, like, shapes, xp


def _cut(flat: Abstract, split: Abstract, axis: int, op: object) -> tuple[int, tuple[int, ...]]:
    """Returns where the heads are in the array that has them apart, and its shape with the size that they really have."""
    at = axis_of(axis, len(flat.shape), str(op))
    heads = split.shape[at] if len(split.shape) == len(flat.shape) + 1 else 0
    rest = split.shape[:at] + split.shape[at + 2 :] == flat.shape[:at] + flat.shape[at + 1 :]
    if not heads or not rest or flat.shape[at] % heads or flat.dtype != split.dtype:
        raise MappingError(f"{op}: {shapes([flat])} has no such heads as {shapes([split])}")
    return at, (*split.shape[: at + 1], flat.shape[at] // heads, *split.shape[at + 2 :])


@dataclasses.dataclass(frozen=True)
class Heads(Each):
    """Cuts an axis into heads as the other end has them, and pads each with zeros to the size that it has there.

    The zeros get no gradient in an attention whose output's rows are padded alike, so that they stay zeros.
    """

    name = "heads"
    axis: int = -1
    part: int | None = None

    def one(self, x: Abstract) -> Abstract | None:
        return None

    def check(self, ins: list[Abstract], outs: list[Abstract]) -> None:
        for x, out in zip(ins, outs, strict=True):
            at, shape = _cut(x, out, self.axis, self)
            if shape[at + 1] > out.shape[at + 1]:
                raise MappingError(f"{self}: heads of {shape[at + 1]} do not fit into heads of {out.shape[at + 1]}")

    def run(self, x: np.ndarray, out: Abstract) -> np.ndarray:
        at, shape = _cut(Abstract(x.shape, out.dtype), out, self.axis, self)
        x = x.reshape(shape)
        lacking = out.shape[at + 1] - shape[at + 1]
        return xp(x).pad(x, [(0, lacking if a == at + 1 else 0) for a in range(x.ndim)]) if lacking else x

    @property
    def inverse(self) -> Op:
        return Merge(self.axis, self.part)


@dataclasses.dataclass(frozen=True)
class Merge(Each):
    """Joins heads to one axis again and leaves out the zeros that `heads` put there; planned only where there are none."""

    name = "merge"
    axis: int = -1
    part: int | None = None

    def one(self, x: Abstract) -> Abstract | None:
        return None

    def check(self, ins: list[Abstract], outs: list[Abstract]) -> None:
        for x, out in zip(ins, outs, strict=True):
            at, shape = _cut(out, x, self.axis, self)
            if math.prod(shape) != math.prod(x.shape):
                raise MappingError(f"{self}: heads of {x.shape[at + 1]} do not fit into heads of {shape[at + 1]}")

    def run(self, x: np.ndarray, out: Abstract) -> np.ndarray:
        at, shape = _cut(out, Abstract(x.shape, out.dtype), self.axis, self)
        return x[(slice(None),) * (at + 1) + (slice(shape[at + 1]),)].reshape(out.shape)

    @property
    def inverse(self) -> Op:
        return Heads(self.axis, self.part)


_SHARED = "several heads share these weights at one end and train apart at the other"


@dataclasses.dataclass(frozen=True)
class Repeat(Each):
    """Repeats each slice along an axis: keys and values that `times` heads share become those of each of them."""

    name = "repeat"
    times: int = 2
    axis: int = -2
    part: int | None = None

    def one(self, x: Abstract) -> Abstract:
        at = axis_of(self.axis, len(x.shape), str(self))
        return like(x, (*x.shape[:at], x.shape[at] * self.times, *x.shape[at + 1 :]))

    def run(self, x: np.ndarray, out: Abstract) -> np.ndarray:
        return xp(x).repeat(x, self.times, self.axis)

    @property
    def inverse(self) -> Op:
        return Every(self.times, self.axis, self.part)

    def moment(self, power: int) -> Op | None:
        raise UnsupportedError(_SHARED)


@dataclasses.dataclass(frozen=True)
class Every(Each):
    """Keeps the first of every `times` slices along an axis."""

    name = "every"
    times: int = 2
    axis: int = -2
    part: int | None = None

    def one(self, x: Abstract) -> Abstract:
        at = axis_of(self.axis, len(x.shape), str(self))
        if self.times < 1 or x.shape[at] % self.times:
            raise MappingError(f"{self}: the axis has {x.shape[at]}")
        return like(x, (*x.shape[:at], x.shape[at] // self.times, *x.shape[at + 1 :]))

    def run(self, x: np.ndarray, out: Abstract) -> np.ndarray:
        at = axis_of(self.axis, x.ndim, str(self))
        return x[(slice(None),) * at + (slice(None, None, self.times),)]

    @property
    def inverse(self) -> Op:
        return Repeat(self.times, self.axis, self.part)

    def loss(self, ins: list[Abstract], outs: list[Abstract]) -> str | None:
        return None if self.times == 1 else "keeps one of several heads"

    def moment(self, power: int) -> Op | None:
        raise UnsupportedError(_SHARED)
