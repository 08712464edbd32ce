"""Contractions of data with leaves: dots, convolutions, lookups, and what is written as one of them in another way.

A dot with rows of a single one is a lookup; a product that is summed up is a dot. All are given as forms of the outputs'
global numbers, behind which the side keeps the contraction.

Invariant: a contraction is taken in only where its kernel consists of leaf elements.
"""

from __future__ import annotations

import numpy as np

from bridges._infer._contraction import Contraction, of_conv, of_dot, of_lookup, row_keys
from bridges._infer._form import Form, Refs
from bridges._infer._graph import Step
from bridges._infer._side import Side
from bridges._infer._value import Value, keys_of


def convolved(side: Side, i: int, step: Step, ins: list[Value], shape: tuple[int, ...]) -> Form | None:
    """Returns the form of a convolution of data with leaves; None if it is none."""
    data, kernel = ins
    refs = side.param(kernel, i)
    if refs is None or data.num is None or step.params["batch_group_count"] != 1:
        return None
    return side.contract(of_conv(step.params, keys_of(data), kernel.shape, i), refs, shape)


def dotted(side: Side, i: int, step: Step, ins: list[Value], shape: tuple[int, ...]) -> Form | None:
    """Returns the form of a dot of data with leaves; None if it is none."""
    for data, kernel, left in ((ins[0], ins[1], True), (ins[1], ins[0], False)):
        if kernel.data or kernel.form is None or data.num is None:
            continue
        refs = side.param(kernel, i)
        if refs is None:
            return None
        keys = keys_of(data)
        if not keys.any():
            return Form(const=np.zeros(shape))
        hot = _one_hot(side, step, data.num, kernel, left, refs, i, shape) if data.data else None
        if hot is not None:
            return hot
        return side.contract(of_dot(step.params, keys, kernel.shape, left, i), refs, shape)
    return None


def _one_hot(
    side: Side, step: Step, num: np.ndarray, kernel: Value, left: bool, refs: Refs, i: int, shape: tuple[int, ...]
) -> Form | None:
    """Returns the form of a lookup that was written as a dot with rows of a single one; None if it is none."""
    if num.size > 1 << 24 or np.count_nonzero(num) * 2 > num.size or not np.all((num == 0) | (num == 1)):
        return None
    made = of_dot(step.params, np.where(num == 1, np.uint64(1), np.uint64(0)), kernel.shape, left, i)
    rows = made.rows(np.arange(int(made.row.max()) + 1))
    if not np.all(rows.sum(1) == 1):
        return None
    hot = rows.argmax(1)[made.row]
    return side.contract(of_lookup(made.kernel[made.unit, hot], hot, refs.ref.size, i), refs, shape)


def reduced(side: Side, i: int, step: Step, value: Value, shape: tuple[int, ...]) -> Form | None:
    """Returns the form of a sum over axes of data times leaves, a contraction; None if it is none."""
    form = value.form
    if form is None or form.dots or form.atoms or form.const is not None or len(form.monos) != 1:
        return None
    (mono,) = form.monos
    if mono.num is None or mono.gid is None or len(mono.refs) != 1:
        return None
    axes = tuple(step.params["axes"])
    last = tuple(range(-len(axes), 0))
    count = int(np.prod([value.shape[a] for a in axes]))
    if not count:
        return Form(const=np.zeros(shape))

    def lined(x: np.ndarray) -> np.ndarray:
        return np.moveaxis(np.broadcast_to(x, value.shape), axes, last).reshape(-1, count)

    keys = lined(mono.gid)
    kernel = mono.refs[0].each(lined)
    units, unit = np.unique(kernel.ref, axis=0, return_inverse=True)
    first = np.unique(unit, return_index=True)[1]
    kernel = kernel.each(lambda x: x[first])
    index = np.arange(units.size, dtype=np.int64).reshape(units.shape)
    made = Contraction(
        np.arange(len(keys)), unit.ravel(), np.arange(len(units)), row_keys(keys), lambda r: keys[r], index, i
    )
    return side.contract(made, kernel, shape)


def looked_up(side: Side, i: int, step: Step, refs: Refs, at: np.ndarray) -> Form:
    """Returns the form of leaf elements that data chooses.

    Args:
      side: Whose they are.
      i, step: The step, a gather or a dynamic slice.
      refs: What is chosen from.
      at: Each element's place in it.
    """
    shape = refs.ref.shape
    if step.name == "gather":
        axes = list(step.params["dimension_numbers"].start_index_map)
    else:
        axes = [a for a, (n, m) in enumerate(zip(shape, step.params["slice_sizes"], strict=True)) if n != m] or [0]
    places = np.unravel_index(np.where(at < 0, 0, at), shape)
    index = np.zeros(at.shape)
    for axis in axes:
        index = index * 100003 + places[axis]
    return side.contract(of_lookup(at, index, int(np.prod(shape)), i), refs, at.shape)
