"""Checkpoint: what a file holds, as a native tree of lazy leaves."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from converters.formats._lazy import read_leaf


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened file or directory.

    Attributes:
      path: Where it is.
      format: The name of its format, see `converters.formats.FORMATS`.
      tree: What it holds: dictionaries, lists, tuples and NamedTuples as the format has them; each leaf is a
        `LazyLeaf`, an array, or a plain value that the format keeps beside arrays (a step, a string, None).
      metadata: Texts that the format keeps beside the tree.
    """

    path: pathlib.Path
    format: str
    tree: Any
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def load(self) -> Any:
        """Returns the tree with every leaf read."""
        return jax.tree.map(read_leaf, self.tree)
