"""LazyLeaf: an array of a checkpoint that is read when somebody asks for its values, and not kept.

A tree of lazy leaves stands for a file of any size. `np.asarray(leaf)` reads it; two calls read it twice. A writer pulls
one leaf at a time, in whatever order its format wants, so that only one is in memory; a lazy leaf that computes its
values from others (a step of a plan) makes a conversion a stream. JAX takes a lazy leaf for a leaf of a tree.

Invariant: `np.asarray(leaf)` has `leaf.shape` and `leaf.dtype`, or an error is raised.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bridges.core._errors import describe
from converters._errors import CheckpointError
from converters.formats._source import Place


class LazyLeaf:
    """An array that is not read yet.

    Args:
      shape: Its shape.
      dtype: Its dtype; a typed PRNG key's, too.
      read: Gives the array, NumPy's (for PRNG keys JAX's). May be a view into a memory map, which then must not be
        written to. Raises `CheckpointError` where the file is damaged.
      where: What an error calls it: the file and the path in it.
      place: Where its bytes lie in a file, if they lie there as `blocks` yields them: in row-major order, little endian.
      check: Takes the CRC-32 of these bytes, and raises `CheckpointError` if the file says another; None if it says none.
    """

    __slots__ = ("shape", "dtype", "_read", "where", "place", "check")

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        read: Callable[[], Any],
        where: str = "",
        place: Place | None = None,
        check: Callable[[int], None] | None = None,
    ):
        self.shape = tuple(shape)
        self.dtype = dtype if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) else np.dtype(dtype)
        self._read, self.where, self.place, self.check = read, where, place, check

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.size * self.dtype.itemsize

    def read(self) -> Any:
        """Returns the array: read, mapped or computed now.

        Raises:
          CheckpointError: It cannot be read, or is not what was promised.
        """
        value = self.unchecked()
        if self.check is not None:
            self.check(zlib.crc32(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data))
        return value

    def unchecked(self) -> Any:
        """Returns the array; who sums it anyway gives the sum to `check`, before anything relies on the values."""
        value = self._read()
        if tuple(value.shape) != self.shape or value.dtype != self.dtype:
            raise CheckpointError(f"{self.where or 'a leaf'} was said to be {describe(self)} and is {describe(value)}.")
        return value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        value = np.asarray(self.read())
        if dtype is not None and value.dtype != np.dtype(dtype):
            return value.astype(dtype)
        return value.copy() if copy else value

    def __repr__(self) -> str:
        return f"<{describe(self)}, not read yet>"


def read_leaf(leaf: Any) -> Any:
    """Returns the array of a leaf: a lazy one's values, any other as it is."""
    return leaf.read() if isinstance(leaf, LazyLeaf) else leaf
