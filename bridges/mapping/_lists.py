"""Ops on a list of arrays: taking one apart, joining several, changing their order."""

from __future__ import annotations

import dataclasses

import numpy as np

from bridges.core._errors import MappingError, UnsupportedError
from bridges.mapping._op import Abstract, Arrays, Op, axis_of, like, shapes, signature, xp


@dataclasses.dataclass(frozen=True)
class Split(Op):
    """Cuts each array into parts along an axis: by `sizes`, or by the sizes that the other end has, equal or not.

    `parts` says how many where an earlier or later op divides the list as well; `equal`, that all are of one size.
    """

    name = "split"
    axis: int = -1
    sizes: tuple[int, ...] | None = None
    parts: int | None = None
    equal: bool = False

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        if self.sizes is None and not (self.equal and self.parts):
            return None
        outs = []
        for x in ins:
            axis = axis_of(self.axis, len(x.shape), str(self))
            sizes = self.sizes or (x.shape[axis] // (self.parts or 1),) * (self.parts or 1)
            if sum(sizes) != x.shape[axis]:
                raise MappingError(f"{self}: the sizes add up to {sum(sizes)}, the axis has {x.shape[axis]}")
            outs += [like(x, (*x.shape[:axis], n, *x.shape[axis + 1 :])) for n in sizes]
        return outs

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        count, parts = len(outs) // len(xs), []
        for i, x in enumerate(xs):
            ends = np.cumsum([out.shape[self.axis] for out in outs[i * count : (i + 1) * count]])
            parts += xp(x).split(x, [int(n) for n in ends[:-1]], self.axis)
        return parts

    @property
    def inverse(self) -> Op:
        return Concat(self.axis, self.sizes, self.parts, self.equal)


@dataclasses.dataclass(frozen=True)
class Concat(Op):
    """Joins arrays along an axis, all of them or in groups of `parts`; the way back has the sizes that came in."""

    name = "concat"
    axis: int = -1
    sizes: tuple[int, ...] | None = None
    parts: int | None = None
    equal: bool = False

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        count = self.parts or len(self.sizes or ()) or len(ins)
        if not ins or len(ins) % count:
            raise MappingError(f"{self}: {len(ins)} arrays do not make groups of {count}")
        outs = []
        for i in range(0, len(ins), count):
            group = ins[i : i + count]
            axis = axis_of(self.axis, len(group[0].shape), str(self))
            rest = {(x.dtype, *x.shape[:axis], None, *x.shape[axis + 1 :]) for x in group}
            sizes = tuple(x.shape[axis] if axis < len(x.shape) else 0 for x in group)
            if len(rest) > 1 or (self.sizes or sizes) != sizes or (self.equal and len(set(sizes)) > 1):
                raise MappingError(f"{self}: these do not join: {shapes(group)}")
            outs.append(like(group[0], (*group[0].shape[:axis], sum(sizes), *group[0].shape[axis + 1 :])))
        return outs

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        count = len(xs) // len(outs)
        return [xp(xs[i]).concatenate(xs[i : i + count], self.axis) for i in range(0, len(xs), count)]

    @property
    def inverse(self) -> Op:
        return Split(self.axis, self.sizes, self.parts, self.equal)


@dataclasses.dataclass(frozen=True)
class Stack(Op):
    """Stacks all arrays along a new axis."""

    name = "stack"
    axis: int = 0

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        if len({(x.shape, x.dtype) for x in ins}) != 1:
            raise MappingError(f"{self}: all must have one shape and dtype: {[x.shape for x in ins]}")
        shape = list(ins[0].shape)
        shape.insert(axis_of(self.axis, len(shape) + 1, str(self)), len(ins))
        return [like(ins[0], shape)]

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        return [xp(xs[0]).stack(xs, self.axis)]

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
        axis = axis_of(self.axis, len(ins[0].shape), str(self))
        shape = (*ins[0].shape[:axis], *ins[0].shape[axis + 1 :])
        return [like(ins[0], shape)] * ins[0].shape[axis]

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        x = xs[0]
        axis = axis_of(self.axis, x.ndim, str(self))
        return [x[(slice(None),) * axis + (i,)] for i in range(x.shape[axis])]

    @property
    def inverse(self) -> Op:
        return Stack(self.axis)


@dataclasses.dataclass(frozen=True)
class Reorder(Op):
    """Changes the order of the arrays: the result has number `order[i]` of them at place i."""

    name = "reorder"
    order: tuple[int, ...] = ()

    def _checked(self, xs: Arrays) -> tuple[int, ...]:
        if sorted(self.order) != list(range(len(xs))):
            raise MappingError(f"{self}: the order must be a permutation of the numbers of {len(xs)} arrays, from 0")
        return self.order

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        return [ins[i] for i in self._checked(ins)]

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        return [xs[i] for i in self.order]

    @property
    def inverse(self) -> Op:
        return Reorder(tuple(int(i) for i in np.argsort(self.order)))


_APART = "the two entries train on their own at one end and are one at the other"


@dataclasses.dataclass(frozen=True)
class Sum(Op):
    """Adds the arrays up; the way back writes the sum to the first and zeros to the others."""

    name = "sum"

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        if len(set(map(str, signature(ins)))) != 1:
            raise MappingError(f"{self}: all must have one shape and dtype: {shapes(ins)}")
        return ins[:1]

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        total = xs[0]
        for x in xs[1:]:
            total = total + x
        return [total]

    @property
    def inverse(self) -> Op:
        return Lead()

    def loss(self, ins: list[Abstract], outs: list[Abstract]) -> str | None:
        return None if len(ins) == 1 else "keeps the sum only"

    def moment(self, power: int) -> Op | None:
        raise UnsupportedError(_APART)


@dataclasses.dataclass(frozen=True)
class Lead(Op):
    """Writes the array to the first target and zeros to the others; the way back adds them up.

    The zeros are negative, since -0.0 is what any number can be added to without a change, itself included.
    """

    name = "lead"

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        return None

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        return [xs[0], *(-xp(xs[0]).zeros_like(xs[0]) for _ in outs[1:])]

    @property
    def inverse(self) -> Op:
        return Sum()

    def moment(self, power: int) -> Op | None:
        raise UnsupportedError(_APART)


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
