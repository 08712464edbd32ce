"""Table: the source's values, to be found by their numbers, with the identity of every element.

Two arrays hold the same value when their sorted elements agree: a transposed, reshaped or otherwise rearranged array is
found, and it is known then which element is which. Where numbers do not say (zeros behind a relu), the elements that they
were made of do, or the order of axes.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from bridges._infer._keys import U, total
from bridges._infer._match import informative, sums

SAME = 1e-10  # of the largest: rounding in float64
MOST_SLICES = 64  # parts of a value that are looked at
NEAR = 2e-7  # constants are float32 in some models and Python's in others


@dataclasses.dataclass(frozen=True)
class Row:
    """A value: its numbers, the keys of its elements, and keys of what the elements were made of (`hint`), if known."""

    num: np.ndarray
    gid: np.ndarray
    hint: np.ndarray | None
    place: int


class Table:
    """Values by their numbers."""

    def __init__(self) -> None:
        self._rows: dict[int, list[Row]] = {}
        self._sums: dict[int, np.ndarray] = {}
        self._slices: dict[int, tuple[list[tuple[Row, int, int, int]], np.ndarray]] = {}

    def add(self, num: np.ndarray, gid: np.ndarray, hint: np.ndarray | None = None, place: int = -1) -> None:
        """Takes a value in."""
        rows = self._rows.setdefault(num.size, [])
        have = self._sums.get(num.size)
        if have is None or len(rows) == len(have):
            more = np.full((max(16, 2 * len(rows)), 6), np.nan)
            if have is not None:
                more[: len(rows)] = have[: len(rows)]
            self._sums[num.size] = have = more
        have[len(rows)] = sums(num)
        rows.append(Row(num, gid, hint, place))

    def find(self, num: np.ndarray) -> list[Row]:
        """Returns the values with these elements, up to layout."""
        n = num.size
        if n not in self._rows or num.dtype.kind not in "fiu" or not informative(num):
            return []
        mine = sums(num)
        size = np.array([n, n, 1, 1, mine[1] + 1e-300, 0]) * max(mine[2], -mine[3], 1e-300)
        table = self._sums[n][: len(self._rows[n])]
        with np.errstate(invalid="ignore"):
            near = np.flatnonzero(np.all(np.abs(table - mine) <= 4 * NEAR * size, axis=1))
        return [self._rows[n][i] for i in near]

    def find_slices(self, num: np.ndarray) -> list[Row]:
        """Returns the equal parts of values along an axis that have these elements, up to layout."""
        n = num.size
        if n < 2 or num.dtype.kind != "f" or not informative(num):
            return []
        if n not in self._slices:
            places, table = [], [np.zeros((0, 6))]
            for size, rows in self._rows.items():
                count = size // n
                if size % n or not 1 < count <= MOST_SLICES:
                    continue
                for row in rows:
                    for axis, m in enumerate(row.num.shape):
                        if m % count == 0 and row.num.dtype.kind == "f":
                            parts = parted(row.num, axis, count)
                            places += [(row, axis, count, i) for i in range(count)]
                            table.append(_sums_of(parts))
            self._slices[n] = places, np.concatenate(table)
        places, sums_of_all = self._slices[n]
        mine = sums(num)
        size_of = np.array([n, n, 1, 1, mine[1] + 1e-300, 0]) * max(mine[2], -mine[3], 1e-300)
        with np.errstate(invalid="ignore"):
            near = np.flatnonzero(np.all(np.abs(sums_of_all - mine) <= 100 * SAME * size_of, axis=1))
        found = []
        for k in near[:8]:
            row, axis, count, i = places[k]
            at = [slice(None)] * row.num.ndim
            step = row.num.shape[axis] // count
            at[axis] = slice(i * step, (i + 1) * step)
            hint = None if row.hint is None else row.hint[tuple(at)]
            found.append(Row(row.num[tuple(at)], row.gid[tuple(at)], hint, row.place))
        return found


def parted(x: np.ndarray, axis: int, count: int) -> np.ndarray:
    """Returns [count, elements]: equal parts along an axis."""
    step = x.shape[axis] // count
    return np.moveaxis(x.reshape(*x.shape[:axis], count, step, *x.shape[axis + 1 :]), axis, 0).reshape(count, -1)


def _sums_of(x: np.ndarray) -> np.ndarray:
    """`sums` of each row."""
    small = np.abs(x) < 1e15
    usual = np.where(small, x, 0.0)
    return np.stack(
        [usual.sum(1), np.abs(usual).sum(1), usual.max(1), usual.min(1), (usual * usual).sum(1), (~small).sum(1)], 1
    )


def aligned(num: np.ndarray, hint: np.ndarray | None, row: Row) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Returns the keys and the numbers of a found value in the layout of `num`, and how far the numbers are apart.

    None if the elements differ after all.
    """
    if row.num.dtype.kind != "f" or num.dtype.kind != "f":
        allowed = 0.0
    else:
        usual = np.abs(num[np.abs(num) < 1e15]) if num.size else num
        allowed = NEAR * float(usual.max()) if usual.size else 0.0
    for view in _views(row, num.shape):
        moved, keys, their = view
        if hint is not None and their is not None and not np.array_equal(hint, their):
            continue
        if (gap := _gap(num, moved, allowed)) is not None:
            return keys, moved, gap
    if hint is not None and row.hint is not None and total(hint) == total(row.hint):
        mine, theirs = np.argsort(hint, axis=None, kind="stable"), np.argsort(row.hint, axis=None, kind="stable")
        if np.array_equal(hint.ravel()[mine], row.hint.ravel()[theirs]):
            found = _placed(num, row, mine, theirs, allowed)
            if found is not None:
                return found
    mine, theirs = np.argsort(num, axis=None, kind="stable"), np.argsort(row.num, axis=None, kind="stable")
    return _placed(num, row, _untied(num, row, mine, theirs), theirs, allowed)


def _views(row: Row, shape: tuple[int, ...]) -> Any:
    """The value in axis orders that give the shape, sizes of 1 aside; the same order first."""
    sizes = [n for n in shape if n != 1]
    theirs = [n for n in row.num.shape if n != 1]
    if sorted(sizes) != sorted(theirs) or len(sizes) > 5:
        if int(np.prod(shape)) == row.num.size:
            yield tuple(None if x is None else x.reshape(shape) for x in (row.num, row.gid, row.hint))
        return
    for order in itertools.permutations(range(len(theirs))):
        if [theirs[i] for i in order] == sizes:
            yield tuple(
                None if x is None else x.reshape(theirs).transpose(order).reshape(shape)
                for x in (row.num, row.gid, row.hint)
            )


def _gap(a: np.ndarray, b: np.ndarray, allowed: float) -> float | None:
    with np.errstate(invalid="ignore"):
        gap = np.abs(a - b)
        same = a == b
    if np.all(same | (gap <= allowed) | ((np.abs(a) >= 1e15) & (gap <= NEAR * np.abs(a)))):
        return float(np.max(np.where(same, 0, gap), initial=0)) / (allowed / NEAR if allowed else 1.0)
    return None


def _placed(num: np.ndarray, row: Row, mine: np.ndarray, theirs: np.ndarray, allowed: float) -> Any:
    moved, keys = np.empty(num.size, row.num.dtype), np.empty(num.size, U)
    moved[mine] = row.num.ravel()[theirs]
    gap = _gap(num.ravel(), moved, allowed)
    if gap is None:
        return None
    keys[mine] = row.gid.ravel()[theirs]
    return keys.reshape(num.shape), moved.reshape(num.shape), gap


def _untied(num: np.ndarray, row: Row, mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Returns `mine` with equal numbers in the order that the others show to be that of the axes."""
    values = num.ravel()[mine]
    alone = np.ones(num.size, bool)
    alone[1:] &= values[1:] != values[:-1]
    alone[:-1] &= values[1:] != values[:-1]
    if alone.all() or not alone.any():
        return mine
    # Where an element goes is a sum of one number for each index along each axis: known ones give those of the others.
    where = np.full(num.size, -1, np.int64)
    where[mine[alone]] = theirs[alone]
    guess = continued(where.reshape(num.shape))
    if guess is None:
        return mine
    rank = np.empty(num.size, np.int64)
    rank[theirs] = np.arange(num.size)
    tied = mine[~alone]
    place = guess.ravel()[tied]
    if np.any(place < 0) or np.any(place >= num.size):
        return mine
    positions = np.flatnonzero(~alone)
    taken = rank[place]
    if not np.array_equal(np.sort(taken), positions):
        return mine
    out = mine.copy()
    out[taken] = tied
    return out


def continued(where: np.ndarray, linear: bool = False) -> np.ndarray | None:
    """Returns the whole of an index map of which some is known (-1: not), as a sum over its axes; None if it is none.

    Args:
      where: int [shape]: a permutation of digits, or part of one.
      linear: Whether what an axis adds may be continued as a multiple of the index where no element of it is known.

    >>> continued(np.array([[0, 2, 4], [1, -1, 5]])).tolist()
    [[0, 2, 4], [1, 3, 5]]
    """
    known = where >= 0
    if not known.any():
        return None
    first = np.unravel_index(int(np.argmax(known)), where.shape)
    steps = [np.full(n, np.nan) for n in where.shape]
    for axis, step in enumerate(steps):
        step[first[axis]] = 0
    offset = float(where[first])
    cells = np.argwhere(known)
    values = where[known].astype(np.float64) - offset
    for _ in range(4):  # each round may use what the last one found
        parts = np.stack([step[cells[:, axis]] for axis, step in enumerate(steps)], 1)
        missing = np.isnan(parts)
        one = missing.sum(1) == 1
        if not one.any():
            break
        for axis, step in enumerate(steps):
            here = one & missing[:, axis]
            step[cells[here, axis]] = values[here] - np.nansum(parts[here], axis=1)
    for n, step in enumerate(steps):
        lacking = np.isnan(step)
        if lacking.any():
            have = np.flatnonzero(~lacking)
            if not linear or len(have) < 2:
                return None
            slope = (step[have[-1]] - step[have[0]]) / (have[-1] - have[0])
            line = step[have[0]] + slope * (np.arange(len(step)) - have[0])
            if slope != int(slope) or not np.array_equal(line[have], step[have]):
                return None
            steps[n] = line
    whole = np.full(where.shape, offset)
    for axis, step in enumerate(steps):
        whole = whole + step.reshape([-1 if i == axis else 1 for i in range(where.ndim)])
    if not np.array_equal(whole[known], where[known]):
        return None
    return whole.astype(np.int64)
