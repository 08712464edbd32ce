"""Ops on a list of arrays: taking one apart, joining several, changing their order."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges.core._errors import MappingError, UnsupportedError, describe
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
    """Stacks arrays along a new axis, all of them or in groups of `parts`."""

    name = "stack"
    axis: int = 0
    parts: int | None = None

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        count = self.parts or len(ins)
        if not ins or len(ins) % count:
            raise MappingError(f"{self}: {len(ins)} arrays do not make groups of {count}")
        outs = []
        for i in range(0, len(ins), count):
            group = ins[i : i + count]
            if len({(x.shape, x.dtype) for x in group}) != 1:
                raise MappingError(f"{self}: all must have one shape and dtype: {_odd(group)}")
            shape = list(group[0].shape)
            shape.insert(axis_of(self.axis, len(shape) + 1, str(self)), count)
            outs.append(like(group[0], shape))
        return outs

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        count = len(xs) // len(outs)
        return [xp(xs[i]).stack(xs[i : i + count], self.axis) for i in range(0, len(xs), count)]

    @property
    def inverse(self) -> Op:
        return Unstack(self.axis, self.parts)


def _odd(group: list[Abstract]) -> str:
    """Returns the shapes, or of many that are alike but for a few, these few with their numbers."""
    counts = collections.Counter((tuple(x.shape), x.dtype) for x in group)
    usual, number = counts.most_common(1)[0]
    if len(group) < 3 or number <= len(group) // 2:
        return shapes(group)
    first = next(x for x in group if (tuple(x.shape), x.dtype) == usual)
    odd = [f"number {i} is {describe(x)}" for i, x in enumerate(group) if (tuple(x.shape), x.dtype) != usual]
    return f"{', '.join(odd[:6])}, the others are {describe(first)}"


@dataclasses.dataclass(frozen=True)
class Unstack(Op):
    """Takes each array apart along an axis, which goes away; `parts`, if given, is how many come of each."""

    name = "unstack"
    axis: int = 0
    parts: int | None = None

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        outs = []
        for x in ins:
            axis = axis_of(self.axis, len(x.shape), str(self))
            count = self.parts or x.shape[axis]
            if x.shape[axis] != count or (len(ins) > 1 and count != ins[0].shape[axis]):
                raise MappingError(f"{self}: {shapes(ins)} are not {count} along axis {self.axis}")
            outs += [like(x, (*x.shape[:axis], *x.shape[axis + 1 :]))] * count
        return outs

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        parts = []
        for x in xs:
            axis = axis_of(self.axis, x.ndim, str(self))
            parts += [x[(slice(None),) * axis + (i,)] for i in range(x.shape[axis])]
        return parts

    @property
    def inverse(self) -> Op:
        return Stack(self.axis, self.parts)


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
    """Keeps the first of the arrays, of all or of each group of `parts`; the way back writes it to all of them.

    With `equal`, the arrays are known to be one, and values that differ in a bit are an error. Under a JAX transformation
    values are not there to be compared, and are not.
    """

    name = "pick"
    parts: int | None = None
    equal: bool = False

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        count = self.parts or len(ins)
        if not ins or len(ins) % count:
            raise MappingError(f"{self}: {len(ins)} arrays do not make groups of {count}")
        if self.equal and any(
            signature(ins[i : i + count]) != signature([ins[i]] * count) for i in range(0, len(ins), count)
        ):
            raise MappingError(f"{self}: all must have one shape and dtype: {_odd(ins)}")
        return ins[::count]

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        count = len(xs) // len(outs)
        if self.equal and not any(isinstance(x, jax.core.Tracer) for x in xs):
            for i in range(0, len(xs), count):
                rest = range(i + 1, i + count)
                if differ := [
                    f"number {n} from number {i} {text}" for n in rest if (text := _difference(xs[i], xs[n]))
                ]:
                    raise UnsupportedError(
                        f"these are one entry at the other end, and their values differ: {'; '.join(differ[:6])}."
                        " `equal = false` at the op of a rule keeps the first."
                    )
        return xs[::count]

    @property
    def inverse(self) -> Op:
        return Copy(self.parts, self.equal)

    def loss(self, ins: list[Abstract], outs: list[Abstract]) -> str | None:
        return None if len(ins) == len(outs) or self.equal else "keeps the first source only"

    def moment(self, power: int) -> Op | None:
        raise UnsupportedError("one of several entries was picked, and the optimizer has a state for each")


def _difference(a: Any, b: Any) -> str:
    """Returns in how many elements, and by how much, arrays of one shape and dtype differ; nothing where in no bit."""
    if a is b:
        return ""
    a, b = (np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x) for x in (a, b))
    if a.tobytes() == b.tobytes():
        return ""
    rows = [np.frombuffer(x.tobytes(), np.uint8).reshape(x.size, -1) for x in (a, b)]
    other = np.any(rows[0] != rows[1], axis=1)
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    with np.errstate(invalid="ignore"):  # infinity less infinity
        by = np.abs(a.astype(wide) - b.astype(wide)).ravel()[other]
    nan = np.isnan(by)
    most = f"by at most {np.max(by[~nan], initial=0.0):.3g}" + (" or NaN" if nan.any() else "")
    return f"in {by.size} of {a.size} elements, {most}"


@dataclasses.dataclass(frozen=True)
class Copy(Op):
    """Writes each array to every target (of its group of `parts`).

    The way back takes copies that are `equal`, and refuses others: they were trained apart, and which of them is meant
    nobody can say. Not `equal`, it keeps the first.
    """

    name = "copy"
    parts: int | None = None
    equal: bool = True

    def infer(self, ins: list[Abstract]) -> list[Abstract] | None:
        return None if self.parts is None else [x for x in ins for _ in range(self.parts)]

    def apply(self, xs: Arrays, outs: list[Abstract]) -> Arrays:
        return [x for x in xs for _ in range(len(outs) // len(xs))]

    @property
    def inverse(self) -> Op:
        return Pick(self.parts, self.equal)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "equal": self.equal}  # said in any case: what was written before meant False

    def moment(self, power: int) -> Op | None:
        raise UnsupportedError("one entry becomes several copies, which train apart from then on")
