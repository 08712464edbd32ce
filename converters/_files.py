"""Loading and saving whole trees; see `converters.convert` for files that do not fit into memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from converters import formats


def load(path: str | os.PathLike[str], format: str | None = None, **options: Any) -> Any:
    """Returns the native tree of a checkpoint, with NumPy arrays.

    Args:
      path: A file or directory in any of `converters.formats.FORMATS`; the format is found by content.
      format: The name of the format, where content is not to decide.
      options: What the format's reader takes, such as `namedtuples` of `converters.formats.pickle.read`.

    Raises:
      CheckpointError: It is damaged, hostile, or of no known format.
      UnsupportedError: A package that the format needs is not installed.
    """
    return formats.read(path, format, **options).load()


def save(
    path: str | os.PathLike[str],
    tree: Any,
    format: str | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a native tree to a checkpoint, whole or not at all; the target framework's own call reads it.

    Args:
      path: Where to.
      tree: Dictionaries, lists, tuples, NamedTuples of arrays, or a `State`.
      format: The name of a format; that of the path's ending if None.
      metadata: Texts to keep beside the tree, where the format has a place for them.
      overwrite: Whether to take the place of what is there.

    Raises:
      CheckpointError: Something stands there, or it cannot be written.
      UnsupportedError: The format cannot hold an entry, or its package is not installed.
    """
    formats.write(path, tree, format, metadata, overwrite)
