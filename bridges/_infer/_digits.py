"""Digits: an order of elements as the ops that make it: reshape, flip, transpose, repeat, reshape.

A position in row-major order is a number in mixed radix, and each axis is a digit of it. Reshapes group digits, transposes
reorder them, flips count one down, repeats add one that counts for nothing. So a sequence of positions is such a
rearrangement exactly when it is, block within block, an arithmetic progression; the progressions are the digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bridges.mapping._each import Flip, Reshape, Transpose
from bridges.mapping._heads import Repeat
from bridges.mapping._op import Op


class Digit(NamedTuple):
    """A digit: how many values it takes, and by how much the position moves from one to the next."""

    size: int
    stride: int


def digits(positions: np.ndarray) -> list[Digit] | None:
    """Returns the digits of a sequence of positions, the outermost first; None where it has none.

    >>> digits(np.arange(6).reshape(2, 3).T.ravel())
    [Digit(size=3, stride=1), Digit(size=2, stride=3)]
    >>> digits(np.array([0, 1, 3, 2])) is None
    True
    """
    found: list[Digit] = []
    left = np.ravel(positions)
    while left.size > 1:
        stride = int(left[1] - left[0])
        breaks = np.flatnonzero(np.diff(left) != stride)
        size = int(breaks[0]) + 1 if breaks.size else left.size
        if left.size % size:
            return None
        blocks = left.reshape(-1, size)
        if not np.array_equal(blocks, blocks[:, :1] + stride * np.arange(size)):
            return None
        found.append(Digit(size, stride))
        left = blocks[:, 0]
    return found[::-1]


def _ends(shape: Sequence[int]) -> set[int]:
    """Returns where axes begin, counted in elements from the inside: 1, the last size, the product of the last two, …"""
    return {math.prod(shape[k:]) for k in range(len(shape) + 1)}


def _cut(found: list[Digit], src: Sequence[int], dst: Sequence[int]) -> list[Digit]:
    """Returns the digits cut where an axis of either shape begins, so that axes stay whole where they can."""
    out: list[Digit] = []
    place = 1  # of the digit, in the target
    for size, stride in reversed(found):
        spans = [(place, _ends(dst)), *([(abs(stride), _ends(src))] if stride else [])]
        inner = {end // start for start, ends in spans for end in ends if end % start == 0}
        done = 1
        for cut in sorted(n for n in inner if 1 < n < size):
            if cut % done == 0 and size % cut == 0:
                out.append(Digit(cut // done, stride * done))
                done = cut
        out.append(Digit(size // done, stride * done))
        place *= size
    return out[::-1]


def rearranged(positions: np.ndarray, src: Sequence[int], dst: Sequence[int]) -> list[Op] | None:
    """Returns the ops from an array of one shape to one of another that has these positions of it; None if there are none.

    Args:
      positions: For each element of the target, in row-major order, the position of its source in the source.
      src: The source's shape. Every element of it must be used.
      dst: The target's shape.

    >>> rearranged(np.arange(6).reshape(2, 3).T, (2, 3), (3, 2))
    [Transpose(axes=(1, 0), part=None)]
    >>> rearranged(np.repeat(np.arange(2), 3), (2,), (2, 3))
    [Repeat(times=3, axis=0, part=None), Reshape(shape=(2, 3), part=None)]
    """
    src, dst = tuple(src), tuple(dst)
    found = digits(positions)
    if found is None:
        return None
    found = _cut(found, src, dst)
    real = [d for d in found if d.stride]
    order = sorted(range(len(real)), key=lambda n: -abs(real[n].stride))  # of the digits in the source
    sizes = [real[n].size for n in order]
    if math.prod(sizes) != math.prod(src):
        return None
    if any(abs(real[n].stride) != math.prod(sizes[k + 1 :]) for k, n in enumerate(order)):
        return None
    flipped = [k for k, n in enumerate(order) if real[n].stride < 0]
    if int(np.ravel(positions)[0]) != sum((sizes[k] - 1) * math.prod(sizes[k + 1 :]) for k in flipped):
        return None
    axes = [order.index(n) for n in range(len(real))]
    ops: list[Op] = []
    shape = src
    moved = axes != sorted(axes)
    if (moved or flipped) and shape != tuple(sizes):
        ops.append(Reshape(tuple(sizes)))
        shape = tuple(sizes)
    if flipped:
        ops.append(Flip(flipped[0] if len(flipped) == 1 else tuple(flipped)))
    if moved:
        ops.append(Transpose(tuple(axes)))
        shape = tuple(shape[a] for a in axes)
    if len(real) < len(found):
        once: list[int] = []
        times: list[int] = []
        for digit in found:
            if digit.stride or not times or times[-1] > 1:
                once.append(1)
                times.append(1)
            if digit.stride:
                once[-1] = digit.size
            else:
                times[-1] = digit.size
        if shape != tuple(once):
            ops.append(Reshape(tuple(once)))
        shape = tuple(n * k for n, k in zip(once, times, strict=True))
        ops += [Repeat(k, axis) for axis, k in enumerate(times) if k > 1]
    if shape != dst:
        ops.append(Reshape(dst))
    return ops
