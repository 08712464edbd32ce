"""Tracking: every leaf of a source is an object of its own, so that a target's leaf says which source leaf it is.

The way back needs to know where each leaf went. Identity tells, without a second description of every layout, as long as
no two leaves are one object: plain numbers and texts (Python has one `3`) are wrapped, a leaf that stands in two places of
a pickle is doubled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bridges.core import _flat
from converters._structure import mapped
from converters.formats import LazyLeaf


class Plain:
    """A number, text or NumPy scalar of a tree; for code that looks at leaves an array without axes."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value as an array."""
        return np.shape(self.value)

    @property
    def dtype(self) -> Any:
        """The dtype of the value as an array."""
        return np.asarray(self.value).dtype

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return int(np.asarray(self.value).nbytes)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.value, dtype)

    def __repr__(self) -> str:
        return repr(self.value)


class Leaf(LazyLeaf):
    """A leaf of a source.

    Attributes:
      seen: Called with the array each time that it is read, to have it summed and checked; None for nothing.
    """

    __slots__ = ("seen",)

    def __init__(self, leaf: Any):
        lazy = isinstance(leaf, LazyLeaf)
        pull = leaf.unchecked if lazy else lambda: leaf
        rest = (leaf.where, leaf.place, leaf.check) if lazy else ("", None, None)
        super().__init__(leaf.shape, leaf.dtype, pull, *rest)
        self.seen: Callable[[Any], None] | None = None

    def read(self) -> Any:
        if self.seen is None:
            return super().read()
        value = self.unchecked()
        self.seen(value)
        return value


def tracked(tree: Any) -> Any:
    """Returns the tree with leaves of which no two are one object; the arrays are shared."""
    return mapped(
        lambda _, leaf: Leaf(leaf) if isinstance(leaf, (LazyLeaf, np.ndarray, jax.Array)) else Plain(leaf), tree
    )


def places(tree: Any) -> dict[int, str]:
    """Returns the path of each leaf of a tree, by the leaf's identity."""
    return {id(leaf): path for path, leaf in _flat.flatten(tree).items()}


def plain(leaf: Any) -> Any:
    """Returns the leaf as a format takes it."""
    return leaf.value if isinstance(leaf, Plain) else leaf
