"""Pieces: both ends of a group of leaves, cut along axes until each piece of the one is, whole, a piece of the other.

Invariant: every element of the source has a code of its own, and the target is an arrangement of all codes. Labels on the
codes say where one must cut: what comes from or goes to different leaves, has different values, or is out of order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from bridges._infer._digits import digits, rearranged
from bridges.core._errors import UnsupportedError
from bridges.mapping._each import Add, Each, Reshape, Scale
from bridges.mapping._lists import Reorder, Split, Unstack
from bridges.mapping._op import Abstract, Op

_ROUNDS = 8
_MOST = 4096  # pieces of a group


class Undecodable(UnsupportedError):
    """Elements are placed in a way that no ops of the mapping language say."""


def numbered(sizes: Sequence[int]) -> list[np.ndarray]:
    ends = np.cumsum([0, *sizes])
    return [np.arange(a, b) for a, b in itertools.pairwise(ends)]


class Pieces:
    """Cuts both ends of a group until their pieces are the same."""

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        sizes: Sequence[int],
        arranged: list[np.ndarray],
        scales: list[np.ndarray],
        shifts: list[np.ndarray],
    ):
        self.src = [a.reshape(s) for a, s in zip(numbered(sizes), shapes, strict=True)]
        self.dst = arranged
        total = int(sum(sizes))
        self.scale, self.shift = np.ones(total), np.zeros(total)
        labels = np.zeros((4, total), np.int64)
        for n, part in enumerate(self.src):
            labels[0, part] = n
        for n, (codes, scale, shift) in enumerate(zip(arranged, scales, shifts, strict=True)):
            labels[1, codes] = n
            self.scale[codes], self.shift[codes] = scale, shift
        for row, values in ((2, self.scale), (3, self.shift)):
            if np.ptp(values):
                labels[row] = np.unique(values, return_inverse=True)[1]
        self.labels = _joined(labels)

    def ops(self) -> list[Op]:
        """Returns the ops from the source's arrays to the target's.

        Raises:
          Undecodable: There are none.
        """
        for _ in range(_ROUNDS):
            cuts, pieces = self._settled()
            order, inside = self._matched(pieces)
            odd = next((n for n, ops in enumerate(inside) if ops is None), None)
            if odd is not None:
                self._cut_more(pieces[0][order[odd]], pieces[1][odd])
                continue
            found = list(cuts[0])
            if order != sorted(order):
                found.append(Reorder(tuple(order)))
            with_values = [
                [*(ops or ()), *valued(float(self.scale[p.flat[0]]), float(self.shift[p.flat[0]]))]
                for ops, p in zip(inside, pieces[1], strict=True)
            ]
            found += _each(with_values)
            shapes = [[p.shape for p in stage] for stage in self._stages(self.dst, cuts[1])]
            return found + _undone(cuts[1], shapes)
        raise Undecodable("the pieces of both ends do not agree")

    def _settled(self) -> tuple[list[list[Op]], list[list[np.ndarray]]]:
        """Returns the ops that cut each end, and its pieces: as many at both ends, of the same elements."""
        for _ in range(_ROUNDS):
            cuts: list[list[Op]] = []
            pieces: list[list[np.ndarray]] = []
            for arrays in (self.src, self.dst):
                cut = _cut(arrays, self.labels)
                cuts.append(cut)
                pieces.append(self._stages(arrays, cut)[-1])
                number = np.empty_like(self.labels)
                for n, piece in enumerate(pieces[-1]):
                    number[piece] = n
                self.labels = _joined(np.stack([self.labels, number]))
            count = int(self.labels.max()) + 1
            if count > _MOST:
                raise Undecodable("it is cut into too many pieces")
            if len(pieces[0]) == len(pieces[1]) == count:
                return cuts, pieces
        raise Undecodable("the pieces of both ends do not agree")

    @staticmethod
    def _stages(arrays: list[np.ndarray], ops: Iterable[Op]) -> list[list[np.ndarray]]:
        stages = [arrays]
        for op in ops:
            outs = op.infer([Abstract(x.shape, x.dtype) for x in stages[-1]])
            assert outs is not None, "cuts say all their sizes"
            stages.append(op.apply(stages[-1], outs))
        return stages

    def _matched(self, pieces: list[list[np.ndarray]]) -> tuple[list[int], list[list[Op] | None]]:
        """Returns which piece of the source is each of the target's, and the ops between the two."""
        number = {int(self.labels[piece.flat[0]]): n for n, piece in enumerate(pieces[0])}
        order = [number[int(self.labels[piece.flat[0]])] for piece in pieces[1]]
        inside = []
        for n, piece in zip(order, pieces[1], strict=True):
            inside.append(rearranged(_places(pieces[0][n], piece), pieces[0][n].shape, piece.shape))
        return order, inside

    def _cut_more(self, src: np.ndarray, dst: np.ndarray) -> None:
        """Labels the parts of a pair of pieces between which the order of elements breaks off."""
        best: tuple[int, int, list[int]] | None = None
        for axis, size in enumerate(dst.shape):
            if size < 2:
                continue
            steps = _hashed(np.diff(_places(src, dst), axis=axis), axis)
            usual = np.unique(steps, return_counts=True)
            breaks = [int(n) + 1 for n in np.flatnonzero(steps != usual[0][np.argmax(usual[1])])]
            if breaks and (best is None or len(breaks) < best[0]):
                best = (len(breaks), axis, breaks)
        if best is None or best[0] >= _MOST:
            raise Undecodable("its elements are in an order that no ops say")
        _, axis, breaks = best
        parts = np.split(dst, breaks, axis)
        if len(parts) == dst.shape[axis] > 2 and all(digits(_places(src, part)) is None for part in parts):
            raise Undecodable("its elements are in an order that no ops say")
        number = np.zeros_like(self.labels)
        for n, part in enumerate(parts):
            number[part] = n + 1
        self.labels = _joined(np.stack([self.labels, number]))


def distinct(x: np.ndarray) -> list[int]:
    """Returns the different values of integers, in order."""
    if not x.size:
        return []
    low, high = int(x.min()), int(x.max())
    return [low] if low == high else [int(i) for i in np.unique(x)]


def _places(src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    """Returns where in the source piece each element of the target piece is."""
    flat = src.ravel()
    if flat[-1] - flat[0] == flat.size - 1 and np.all(np.diff(flat) == 1):
        return dst - flat[0]
    order = np.argsort(flat, kind="stable")
    return order[np.searchsorted(flat, dst, sorter=order)]


def _joined(labels: np.ndarray) -> np.ndarray:
    """Returns one label for each column of labels, from 0 on."""
    joint = np.zeros(labels.shape[1], np.int64)
    for row in labels:
        joint = joint * (int(row.max()) + 1) + row
        most = int(joint.max()) + 1
        if most <= 4 * joint.size + 1024:  # counting is quicker than sorting
            number = np.cumsum(np.bincount(joint, minlength=most) > 0) - 1
            joint = number[joint]
        else:
            joint = np.unique(joint, return_inverse=True)[1]
    return joint


def _hashed(x: np.ndarray, axis: int) -> np.ndarray:
    """Returns a number for each slice along an axis: slices that are equal have equal ones."""
    slices = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).astype(np.int64)
    weights = np.random.default_rng(0).integers(1, 1 << 40, slices.shape[1])
    return (slices * weights).sum(1)  # modulo 2**64


def _cut(arrays: Sequence[np.ndarray], labels: np.ndarray) -> list[Op]:
    """Returns ops that cut arrays along axes into pieces of one label each; none where each has one label already.

    An axis along which labels recur is taken apart first, so that a period of it is an axis of its own.
    """
    if all(np.ptp(labels[x]) == 0 for x in arrays):
        return []
    shapes: list[tuple[int, ...]] = []
    cuts: set[tuple[tuple[int, tuple[int, ...]], ...]] = set()
    for x in arrays:
        shape: list[int] = []
        mine: list[tuple[int, tuple[int, ...]]] = []
        for axis, size in enumerate(x.shape):
            hashes = _hashed(labels[x], axis)
            period = next(p for p in range(1, size + 1) if size % p == 0 and not np.ptp(hashes.reshape(-1, p), 0).any())
            if period < size and period > 1:
                shape.append(size // period)
            if period > 1:
                ends = [0, *(np.flatnonzero(np.diff(hashes[:period])) + 1).tolist(), period]
                mine.append((len(shape), tuple(int(b - a) for a, b in itertools.pairwise(ends))))
            shape.append(period if period > 1 else size)
        shapes.append(tuple(shape))
        cuts.add(tuple(mine))
    if len(cuts) > 1:
        raise Undecodable("its leaves are cut in different ways")
    ops: list[Op] = []
    different = len(set(shapes)) > 1
    for n, (x, cut) in enumerate(zip(arrays, shapes, strict=True)):
        if x.shape != cut and (different or n == 0):
            ops.append(Reshape(cut, n if different else None))
    gone = 0
    for axis, sizes in cuts.pop():
        if set(sizes) == {1}:
            ops.append(Unstack(axis - gone, len(sizes)))
            gone += 1
        else:
            ops.append(Split(axis - gone, sizes))
    return ops


def _undone(ops: Sequence[Op], shapes: Sequence[Sequence[tuple[int, ...]]]) -> list[Op]:
    """Returns the ops that go back, with all their sizes; `shapes` are those before, between and after the ops."""
    back: list[Op] = []
    for op, before in reversed(list(zip(ops, shapes, strict=False))):
        if isinstance(op, Reshape):
            back.append(Reshape(before[op.part or 0], op.part))
        else:
            back.append(op.inverse)
    return back


def valued(scale: float, shift: float) -> list[Op]:
    ops: list[Op] = []
    if scale != 1:
        divide = abs(scale) < 1 and float(1 / scale).is_integer()
        ops.append(Scale(1 / scale, True) if divide else Scale(scale))
    return [*ops, Add(shift)] if shift else ops


def _each(pieces: Sequence[list[Op]]) -> list[Op]:
    """Returns the ops of every piece as ops on the list: one for all where all have the same, else one for each."""
    if all(ops == pieces[0] for ops in pieces):
        return list(pieces[0])
    names = [[type(op) for op in ops] for ops in pieces]
    out: list[Op] = []
    if all(n == names[0] for n in names):
        for step in zip(*pieces, strict=True):
            out += [step[0]] if len(set(step)) == 1 else [_on(op, n) for n, op in enumerate(step)]
        return out
    return [_on(op, n) for n, ops in enumerate(pieces) for op in ops]


def _on(op: Op, part: int) -> Op:
    assert isinstance(op, Each), "pieces are rearranged one by one"
    return op.on(part)
