"""Contraction: a place where data meets a kernel in a sum of products, in one form for dots, convolutions and lookups.

Every output element is a row of data times a unit of the kernel: `out = sum over k of rows[row, k] * kernel[unit, k]`. A
convolution's rows are its patches; a lookup's rows have one element, which says what was looked up. Of data only the keys
of its elements are kept, of the kernel only references into leaves: which numbers they are plays no part here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bridges._infer._keys import U, mix, of_number, total
from bridges._infer._numbers import operand


@dataclasses.dataclass(frozen=True)
class Contraction:
    """A contraction.

    Attributes:
      row: int [out]: the row of each output element.
      unit: int [out]: its unit.
      group: int [units]: units of different groups never meet the same row.
      keys: uint64 [rows]: the sum of the keys of a row.
      rows: From row numbers to the keys of their elements, uint64 [n, K].
      kernel: int [units, K] into the kernel's elements.
      step: The step that it is.
    """

    row: np.ndarray
    unit: np.ndarray
    group: np.ndarray
    keys: np.ndarray
    rows: Callable[[np.ndarray], np.ndarray]
    kernel: np.ndarray
    step: int

    @property
    def width(self) -> int:
        return int(self.kernel.shape[1])


def row_keys(gid: np.ndarray) -> np.ndarray:
    """Returns the keys of rows [n, K] by their elements, whatever their order."""
    return np.asarray(total(mix(gid, 3), axis=-1))


def of_dot(params: Mapping[str, Any], gid: np.ndarray, shape: tuple[int, ...], left: bool, step: int) -> Contraction:
    """Returns the contraction of a `dot_general`.

    Args:
      params: Of the step.
      gid: The keys of the data.
      shape: The kernel's.
      left: Whether the data is the first operand.
      step: The step's number.
    """
    contracted, batched = params["dimension_numbers"]
    mine, other = (0, 1) if left else (1, 0)
    data, _batch, _ = operand(gid, contracted[mine], batched[mine])
    index = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    kernel, _, _ = operand(index, contracted[other], batched[other])
    (b, n, k), m = data.shape, kernel.shape[1]
    group = np.arange(b)
    rows = group[:, None] * n + np.arange(n)
    units = group[:, None] * m + np.arange(m)
    if left:
        row, unit = np.broadcast_arrays(rows[:, :, None], units[:, None, :])
    else:
        row, unit = np.broadcast_arrays(rows[:, None, :], units[:, :, None])
    flat = data.reshape(b * n, k)
    return Contraction(
        row.ravel(),
        unit.ravel(),
        np.repeat(group, m),
        row_keys(flat),
        lambda r: flat[r],
        kernel.reshape(b * m, k),
        step,
    )


def of_conv(params: Mapping[str, Any], gid: np.ndarray, shape: tuple[int, ...], step: int) -> Contraction:
    """Returns the contraction of a `conv_general_dilated` whose kernel has leaves; arguments as those of `of_dot`."""
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    x = gid.transpose(numbers.lhs_spec)  # [N, C, spatial]
    index = (
        np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape).transpose(numbers.rhs_spec)
    )  # [O, C/g, spatial]
    patches = _patches(x, index.shape[2:], params)  # [N, out spatial, C, kernel spatial]
    n, *spatial = patches.shape[: 1 + len(index.shape[2:])]
    window = int(np.prod(index.shape[2:]))
    width = (x.shape[1] // groups) * window
    flat = patches.reshape(n * int(np.prod(spatial)) * groups, width)  # row = place * groups + group
    out = index.shape[0]
    group = np.arange(out) // (out // groups)
    place = np.arange(n * int(np.prod(spatial))).reshape(n, 1, *spatial)
    unit = np.arange(out).reshape(1, out, *[1] * len(spatial))
    row = place * groups + group.reshape(unit.shape)
    back = np.argsort(numbers.out_spec)
    row, unit = (np.ascontiguousarray(a.transpose(back)) for a in np.broadcast_arrays(row, unit))
    kernel = index.reshape(out, -1)
    return Contraction(row.ravel(), unit.ravel(), group, row_keys(flat), lambda r: flat[r], kernel, step)


def _patches(x: np.ndarray, window: tuple[int, ...], params: Mapping[str, Any]) -> np.ndarray:
    """Returns [N, out spatial, C, window]: what each place of the output sees, 0 for padding."""
    dims = len(window)
    for i, by in enumerate(params["lhs_dilation"]):
        if by > 1:
            shape = list(x.shape)
            shape[2 + i] = (x.shape[2 + i] - 1) * by + 1
            wide = np.zeros(shape, x.dtype)
            wide[(slice(None),) * (2 + i) + (slice(None, None, by),)] = x
            x = wide
    for i, (low, high) in enumerate(params["padding"]):
        pads = [(0, 0)] * x.ndim
        pads[2 + i] = (max(low, 0), max(high, 0))
        x = np.pad(x, pads)
        cut = slice(max(-low, 0), x.shape[2 + i] - max(-high, 0))
        x = x[(slice(None),) * (2 + i) + (cut,)]
    reach = [(w - 1) * d + 1 for w, d in zip(window, params["rhs_dilation"], strict=True)]
    seen = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, 2 + dims)))
    every = tuple(slice(None, None, s) for s in params["window_strides"])
    inside = tuple(slice(None, None, d) for d in params["rhs_dilation"])
    seen = seen[(slice(None), slice(None), *every, *inside)]
    order = [0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims)]
    return seen.transpose(order)


def of_lookup(picked: np.ndarray, index: np.ndarray, size: int, step: int) -> Contraction:
    """Returns the contraction of a lookup in a table: a gather, a slice at a place that data says, a one-hot dot.

    Args:
      picked: int [out]: the element of the table that each output element is; -1 for none.
      index: [out]: the number that it was looked up by.
      size: The table's number of elements.
      step: The step's number.
    """
    numbers, row = np.unique(index.ravel(), return_inverse=True)
    keys = np.maximum(mix(of_number(numbers + 1.5), 6), U(1))[:, None]
    kernel = np.arange(size, dtype=np.int64)[:, None]
    return Contraction(
        row.ravel(), picked.ravel(), np.zeros(size, np.int64), row_keys(keys), lambda r: keys[r], kernel, step
    )
