"""Ops on stacks: arrays that hold the copies of a layer along an axis.

A rule says what happens to one layer. `Fold` brings the axes of a stack to the front and makes them one, `Over` does to
each copy along that axis what the rule says, `Unfold` puts the axes where the other end has them; `Permute` changes the
order of the copies. Between them stand the ops of `_lists`: `Stack` and `Unstack` for copies that are entries of their
own, `Concat` and `Split` for stacks of unlike lengths (5 + 1).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from bridges.core._errors import MappingError
from bridges.mapping._each import Each
from bridges.mapping._op import Abstract, Arrays, Op, axis_of, like, shapes
from bridges.mapping._resolve import resolve


@dataclasses.dataclass(frozen=True)
class Fold(Each):
    """Makes one first axis of several, the first of them outermost; with no axes, a first axis of size 1."""

    name = "fold"
    axes: tuple[int, ...] = (0,)
    part: int | None = None

    def one(self, x: Abstract) -> Abstract:
        axes = _distinct(self, self.axes, len(x.shape))
        rest = [n for a, n in enumerate(x.shape) if a not in axes]
        return like(x, (math.prod(x.shape[a] for a in axes), *rest))

    def run(self, x: Any, out: Abstract) -> Any:
        axes = [a % x.ndim for a in self.axes]
        order = axes + [a for a in range(x.ndim) if a not in axes]
        return (x if order == sorted(order) else x.transpose(order)).reshape(out.shape)

    @property
    def inverse(self) -> Op:
        return Unfold(self.axes, None, self.part)


@dataclasses.dataclass(frozen=True)
class Unfold(Each):
    """Takes the first axis apart into axes at these places of the result, of these sizes; the inverse of `Fold`."""

    name = "unfold"
    axes: tuple[int, ...] = (0,)
    sizes: tuple[int, ...] | None = None
    part: int | None = None

    def one(self, x: Abstract) -> Abstract | None:
        sizes = self.sizes
        if sizes is None:
            if len(self.axes) > 1:
                return None
            sizes = x.shape[:1] if self.axes else ()
        if not x.shape or math.prod(sizes) != x.shape[0] or len(sizes) != len(self.axes):
            raise MappingError(f"{self}: the first axis of {x.shape} does not make {sizes}")
        rest = iter(x.shape[1:])
        rank = len(x.shape) - 1 + len(sizes)
        places = dict(zip(_distinct(self, self.axes, rank), sizes, strict=True))
        return like(x, [places[a] if a in places else next(rest) for a in range(rank)])

    def run(self, x: Any, out: Abstract) -> Any:
        rank = len(out.shape)
        axes = [a % rank for a in self.axes]
        order = axes + [a for a in range(rank) if a not in axes]
        x = x.reshape([out.shape[a] for a in order])
        return x if order == sorted(order) else x.transpose([order.index(a) for a in range(rank)])

    @property
    def inverse(self) -> Op:
        return Fold(self.axes, self.part)


def _distinct(op: Op, axes: tuple[int, ...], rank: int) -> list[int]:
    found = [axis_of(axis, rank, str(op)) for axis in axes]
    if len(set(found)) < len(found):
        raise MappingError(f"{op}: an axis is named twice")
    return found


@dataclasses.dataclass(frozen=True)
class Permute(Each):
    """Changes the order along the first axis: the result has number `order[i]` at place i."""

    name = "permute"
    order: tuple[int, ...] = ()
    part: int | None = None

    def one(self, x: Abstract) -> Abstract:
        if not x.shape or sorted(self.order) != list(range(x.shape[0])):
            raise MappingError(f"{self}: the order must be a permutation of the first axis of {x.shape}")
        return x

    def run(self, x: Any, out: Abstract) -> Any:
        return x[np.asarray(self.order)]

    @property
    def inverse(self) -> Op:
        return Permute(tuple(int(i) for i in np.argsort(self.order)), self.part)


@dataclasses.dataclass(frozen=True)
class Over(Op):
    """Applies ops to each of the slices along the first axis of all arrays, and stacks what comes out."""

    name = "over"
    ops: tuple[Op, ...] = ()

    def _slices(self, xs: list[Abstract]) -> list[Abstract]:
        if len({x.shape[:1] for x in xs}) != 1 or not xs[0].shape or not xs[0].shape[0]:
            raise MappingError(f"{self}: these have no first axis of one size: {shapes(xs)}")
        return [like(x, x.shape[1:]) for x in xs]

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        xs: list[Abstract] | None = self._slices(ins)
        for op in self.ops:
            xs = op.infer(xs or [])
            if xs is None:
                return None
        return [like(x, (ins[0].shape[0], *x.shape)) for x in xs or []]

    def check(self, ins: list[Abstract], outs: list[Abstract]) -> None:
        if ins[0].shape[:1] != outs[0].shape[:1]:
            raise MappingError(f"{self}: the first axis of {shapes(ins)} is not that of {shapes(outs)}")
        self.stages(ins, outs)

    def stages(self, ins: list[Abstract], outs: list[Abstract], check: bool = True) -> tuple[tuple[Abstract, ...], ...]:
        """Returns shapes and dtypes of the slices before, between and after the ops on them."""
        return resolve(self.ops, self._slices(ins), self._slices(outs), check)

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        if any(op.name == "cast" for op in self.ops):
            stages = self.stages([like(x, x.shape) for x in xs], outs, check=False)
        else:  # a moment may have a dtype of its own
            stages = self.stages([like(x, x.shape) for x in xs], [like(xs[0], out.shape) for out in outs], check=False)

        def one(*slices: Any) -> tuple[Any, ...]:
            values = list(slices)
            for op, found in zip(self.ops, stages[1:], strict=True):
                values = op.apply(values, list(found))
            return tuple(values)

        if all(isinstance(x, np.ndarray) for x in xs):
            made = [one(*(x[i] for x in xs)) for i in range(xs[0].shape[0])]
            return [np.stack(copies) for copies in zip(*made, strict=True)]
        return list(jax.vmap(one)(*xs))

    @property
    def inverse(self) -> Op:
        return Over(tuple(op.inverse for op in reversed(self.ops)))

    def loss(self, ins: list[Abstract], outs: list[Abstract]) -> str | None:
        stages = self.stages(ins, outs)
        losses = (op.loss(list(a), list(b)) for op, a, b in zip(self.ops, stages, stages[1:], strict=False))
        return next((loss for loss in losses if loss), None)

    def moment(self, power: int) -> Op | None:
        changed = [op.moment(power) for op in self.ops]
        if all(a is b for a, b in zip(changed, self.ops, strict=True)):
            return self
        kept = tuple(op for op in changed if op is not None)
        return Over(kept) if kept else None

    def to_dict(self) -> dict[str, Any]:
        return {"op": self.name, "ops": [op.to_dict() for op in self.ops]}

    def __str__(self) -> str:
        return f"over({', '.join(map(str, self.ops))})"
