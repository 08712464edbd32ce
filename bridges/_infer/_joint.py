"""Joint: values that are several values of the source side by side: weights that were fused, heads that were stacked.

A value of the target of which no value of the source is the whole is cut into equal parts along an axis, and each part is
looked up for itself. Here is where it may be cut, and what the parts' keys are; the search does the looking up.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bridges._infer._choices import Place
from bridges._infer._equate import units
from bridges._infer._form import Form
from bridges._infer._layout import moved_inputs, moves
from bridges._infer._side import Side
from bridges._infer._table import Table, aligned

MOST_PIECES = 16  # that a value is made of


def joint_keys(table: Table, num: np.ndarray) -> np.ndarray | None:
    """Returns the keys of a value of which no value of the source is the whole, but several are slices."""
    if num.dtype.kind != "f":
        return None
    for axis, size in enumerate(num.shape):
        for count in [c for c in range(2, min(size, MOST_PIECES) + 1) if size % c == 0]:
            if num.size // count < 4:
                continue
            keys = []
            for piece in np.split(num, count, axis):
                found = (aligned(piece, None, row) for row in table.find(piece))
                same = next((f for f in found if f is not None), None)
                if same is None:
                    break
                keys.append(same[0])
            else:
                return np.concatenate(keys, axis)
    return None


def is_split_later(side: Side, form: Form, shape: tuple[int, ...], place: Place) -> bool:
    """Whether the units of a value go apart before anything else is done with it: its parts are then looked for."""
    if not form.dots or place[1] < 0:
        return False
    whole = units(side, form, shape)
    count = np.unique(whole).size
    stack = [(side.graph.steps[place[0]].outs[place[1]], whole)]
    for _ in range(12):
        if not stack:
            break
        v, here = stack.pop()
        for i in side.graph.readers.get(v, ()):
            step = side.graph.steps[i]
            if step.name in ("add", "sub"):
                stack.append((step.outs[0], np.broadcast_to(here, side.graph.shape(step.outs[0]))))
                continue
            moved = moved_inputs(step)
            if moved is None or len(moved) != 1 or step.name == "convert_element_type":
                continue
            rest = [side.values.get(u) for u in step.ins[1:]]
            if any(x is None or x.num is None for x in rest):
                continue
            index = moves(step, [side.graph.shape(u) for u in step.ins], [None, *[x.num for x in rest if x]])
            for out, at in zip(step.outs, index, strict=True):
                inside = here.ravel()[np.maximum(at, 0)]
                if at.size < here.size and np.unique(inside).size < count:
                    return True
                stack.append((out, inside))
    return False


def cuts(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yields axes along which a value may be cut, and into how many parts: a stack first, then parts side by side."""
    ways = [(axis, n) for axis, n in enumerate(shape) if n > 1]
    ways += [(a, c) for a in reversed(range(len(shape))) for c in range(2, shape[a]) if shape[a] % c == 0]
    yield from (way for way in ways if way[1] <= MOST_PIECES)
