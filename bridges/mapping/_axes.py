"""What becomes of labels on axes (mesh axes of a sharding, names of partitioning metadata) on the way through a plan.

A *label* says of one axis of one array how it is divided: None for not at all. An op moves, joins or divides axes; the
label goes along where the axis does. Where it cannot (an axis that merges into another as its minor part, one that is
taken apart), it is *lost*, and the loss is said in words.

Rules for a reshape: with row-major order, axes fall into groups that are divided and merged among themselves. The label
of a group's first axis stays with the first axis of what the group becomes, since contiguous blocks stay contiguous
blocks, as long as they are whole: the axis must divide into as many parts as the label makes. A label of a later axis of
a merged group has no place.

What it does not do: it moves no data; whether moving is cheap is XLA's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bridges.core._errors import MappingError, describe, hint, listing
from bridges.mapping._each import Each, Expand, Reshape, Squeeze, Swap, Transpose
from bridges.mapping._lists import Concat, Copy, Lead, Pick, Reorder, Split, Stack, Sum, Unstack
from bridges.mapping._op import Abstract, Op, axis_of
from bridges.mapping._over import Fold, Over, Unfold
from bridges.mapping._plan import Item, Plan

Label = Any
Labels = tuple[Label, ...]  # of one array, one an axis
Parts = Callable[[Label], int]


@dataclasses.dataclass(frozen=True)
class Carried:
    """Labels at the end of a way.

    Attributes:
      labels: Of each array, one an axis.
      lost: What could not follow, in words.
    """

    labels: tuple[Labels, ...]
    lost: tuple[str, ...] = ()


def carried(item: Item, labels: Sequence[Labels], parts: Parts = lambda _: 1) -> Carried:
    """Returns the labels of an item's targets for those of its sources.

    Args:
      item: Of a plan.
      labels: Of each source, one an axis; shorter ones end in None.
      parts: Into how many parts a label divides its axis; 1 for names, which any axis can have.
    """
    return _along(item.ops, item.stages, labels, parts)


def carried_back(item: Item, labels: Sequence[Labels], parts: Parts = lambda _: 1) -> Carried:
    """Returns the labels of an item's sources for those of its targets."""
    return _along([op.inverse for op in reversed(item.ops)], item.stages[::-1], labels, parts)


@dataclasses.dataclass(frozen=True)
class AxisNames:
    """Names of axes at one end of a plan.

    Attributes:
      names: Path -> one name an axis, None where it has none. Only entries with a name.
      lost: Which names could not follow, in words, with the paths.
    """

    names: Mapping[str, Labels]
    lost: tuple[str, ...] = ()


def names_at_target(plan: Plan, names: Mapping[str, Labels]) -> AxisNames:
    """Returns the names of the axes of a plan's targets for those of its sources; see `Plan.axis_names`."""
    ways = [(item.targets, carried(item, _rows(item.sources, names, plan.src))) for item in plan if item.sources]
    _known(names, plan.src, plan.src_random)
    return _named(ways)


def names_at_source(plan: Plan, names: Mapping[str, Labels]) -> AxisNames:
    """Returns the names of the axes of a plan's sources for those of its targets; see `Plan.axis_names_back`."""
    ways = [(item.sources, carried_back(item, _rows(item.targets, names, plan.dst))) for item in plan if item.targets]
    _known(names, plan.dst, plan.dst_random)
    return _named(ways)


def _rows(paths: Sequence[str], names: Mapping[str, Labels], end: Mapping[str, Any]) -> list[Labels]:
    for path in paths:
        if len(names.get(path, ())) > len(end[path].shape):
            raise MappingError(f"{path!r} {describe(end[path])} has fewer axes than the names {names[path]}.")
    return [tuple(names.get(path, ())) for path in paths]


def _known(names: Mapping[str, Labels], end: Mapping[str, Any], random: Sequence[str]) -> None:
    if wrong := [f"{path!r}.{hint(path, end)}" for path in names if path not in end and path not in random]:
        raise MappingError("These are no entries at that end of the plan:\n" + listing(wrong))


def _named(ways: Sequence[tuple[Sequence[str], Carried]]) -> AxisNames:
    found = {
        path: row
        for paths, way in ways
        for path, row in zip(paths, way.labels, strict=False)
        if any(label is not None for label in row)
    }
    return AxisNames(found, tuple(f"{', '.join(paths)}: {reason}" for paths, way in ways for reason in way.lost))


def _along(ops: Sequence[Op], stages: Sequence[Sequence[Abstract]], labels: Sequence[Labels], parts: Parts) -> Carried:
    now = [(*row, *(None,) * (len(x.shape) - len(row))) for row, x in zip(labels, stages[0], strict=True)]
    lost: list[str] = []
    for op, ins, outs in zip(ops, stages, stages[1:], strict=False):
        now = _through(op, ins, outs, now, parts, lost)
    return Carried(tuple(now), tuple(dict.fromkeys(lost)))


def _through(
    op: Op, ins: Sequence[Abstract], outs: Sequence[Abstract], rows: list[Labels], parts: Parts, lost: list[str]
) -> list[Labels]:
    """Returns the labels after one op; what is lost is added to `lost`."""
    if isinstance(op, Each):
        return [
            _one(op, x, y, row, parts, lost) if op.part is None or op.part == i else row
            for i, (x, y, row) in enumerate(zip(ins, outs, rows, strict=True))
        ]
    if isinstance(op, Reorder):
        return [rows[i] for i in op.order]
    if isinstance(op, (Copy, Lead)):
        return [rows[0] for _ in outs]
    if isinstance(op, Pick):
        return rows[:1]
    if isinstance(op, Sum):
        return [_agreed(op, rows, lost)]
    if isinstance(op, Split):
        count = len(outs) // len(ins)
        return [_fitting(op, y, rows[i // count], parts, lost) for i, y in enumerate(outs)]
    if isinstance(op, Concat):
        count = len(ins) // len(outs)
        groups = [_agreed(op, rows[i * count : (i + 1) * count], lost) for i in range(len(outs))]
        return [_fitting(op, y, row, parts, lost) for y, row in zip(outs, groups, strict=True)]
    if isinstance(op, Stack):
        row = _agreed(op, rows, lost)
        axis = axis_of(op.axis, len(row) + 1, str(op))
        return [(*row[:axis], None, *row[axis:])]
    if isinstance(op, Unstack):
        axis = axis_of(op.axis, len(rows[0]), str(op))
        if rows[0][axis] is not None:
            lost.append(f"{rows[0][axis]!r}, of the axis that {op} takes apart")
        return [(*rows[0][:axis], *rows[0][axis + 1 :]) for _ in outs]
    if isinstance(op, Over):
        return _over(op, ins, outs, rows, parts, lost)
    lost.extend(f"{label!r}: {op} has no rule for labels" for row in rows for label in row if label is not None)
    return [(None,) * len(y.shape) for y in outs]


def _over(
    op: Over, ins: Sequence[Abstract], outs: Sequence[Abstract], rows: list[Labels], parts: Parts, lost: list[str]
) -> list[Labels]:
    """Returns the labels after ops on the slices along the first axis, which keeps its own."""
    (first,) = _agreed(op, [row[:1] for row in rows], lost)
    way = _along(op.ops, op.stages(list(ins), list(outs)), [row[1:] for row in rows], parts)
    lost.extend(way.lost)
    return [(first, *row) for row in way.labels]


def _one(op: Each, x: Abstract, y: Abstract, row: Labels, parts: Parts, lost: list[str]) -> Labels:
    if isinstance(op, Transpose):
        axes = op.axes if op.axes is not None else range(len(row))[::-1]
        return tuple(row[a] for a in axes)
    if isinstance(op, Swap):
        a, b = (axis_of(axis, len(row), str(op)) for axis in op.axes)
        out = list(row)
        out[a], out[b] = out[b], out[a]
        return tuple(out)
    if isinstance(op, (Reshape, Squeeze, Expand)):
        return _reshaped(op, x.shape, y.shape, row, parts, lost)
    if isinstance(op, Fold):
        order = _in_front(op.axes, len(row))
        return _reshaped(op, [x.shape[a] for a in order], y.shape, tuple(row[a] for a in order), parts, lost)
    if isinstance(op, Unfold):
        order = _in_front(op.axes, len(y.shape))
        found = _reshaped(op, x.shape, [y.shape[a] for a in order], row, parts, lost)
        return tuple(found[order.index(a)] for a in range(len(order)))
    return row


def _in_front(axes: Sequence[int], rank: int) -> list[int]:
    front = [axis % rank for axis in axes]
    return front + [axis for axis in range(rank) if axis not in front]


def _agreed(op: Op, rows: Sequence[Labels], lost: list[str]) -> Labels:
    out = []
    for axis, column in enumerate(zip(*rows, strict=True)):
        same = all(label == column[0] for label in column)
        if not same:
            lost.append(f"{', '.join(map(repr, dict.fromkeys(column)))} of axis {axis}, which {op} joins")
        out.append(column[0] if same else None)
    return tuple(out)


def _fitting(op: Op, y: Abstract, row: Labels, parts: Parts, lost: list[str]) -> Labels:
    out = []
    for size, label in zip(y.shape, row, strict=True):
        fits = label is None or size % parts(label) == 0
        if not fits:
            lost.append(f"{label!r}: after {op} the axis has {size} elements, which do not divide by {parts(label)}")
        out.append(label if fits else None)
    return tuple(out)


def _reshaped(
    op: Op, before: Sequence[int], after: Sequence[int], row: Labels, parts: Parts, lost: list[str]
) -> Labels:
    out: list[Label] = [None] * len(after)
    for ins, outs in groups(before, after):
        labelled = [axis for axis in ins if row[axis] is not None]
        wide = [axis for axis in ins if before[axis] != 1] or labelled[
            :1
        ]  # of axes of size 1 the first keeps its label
        for axis in labelled:
            label = row[axis]
            first = next((a for a in outs if after[a] != 1), outs[0] if outs else None)
            if first is None or axis != wide[0]:
                lost.append(f"{label!r}: {op} merges its axis {axis} into another, or removes it")
            elif after[first] % parts(label):
                lost.append(f"{label!r}: {op} leaves {after[first]} elements, which do not divide by {parts(label)}")
            else:
                out[first] = label
    return tuple(out)


def groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Returns the axes of both shapes that become one another, in groups as small as they can be.

    >>> groups((6, 4), (2, 3, 4)), groups((2, 3, 4), (2, 12))
    ([([0], [0, 1]), ([1], [2])], [([0], [0]), ([1, 2], [1])])
    """
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        ins: list[int] = []
        outs: list[int] = []
        left = right = 1
        while True:
            if i < len(before) and (not ins or left < right):
                ins.append(i)
                left *= before[i]
                i += 1
            elif j < len(after) and (not outs or right < left):
                outs.append(j)
                right *= after[j]
                j += 1
            else:
                break
        if ins and not outs and found:  # axes of size 1 at the end
            found[-1][0].extend(ins)
        elif outs and not ins and found:
            found[-1][1].extend(outs)
        else:
            found.append((ins, outs))
    return found
