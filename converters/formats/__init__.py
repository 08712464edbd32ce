"""File formats: one module each, around the one library that reads it, found by content.

A format's module has four verbs:

    recognises(path) -> bool        by content (a name's ending decides nothing); reads a few bytes; never raises on content
    read(path) -> Checkpoint        structure, shapes and dtypes now; each leaf's values when asked for; may have options,
                                    keyword only
    problems(tree) -> list[str]     what this format cannot hold, each with its path; nothing is read or written
    write(path, tree, metadata)     to a path that does not exist yet; pulls one leaf at a time (`read_leaf`), in any order,
                                    keeps none, and has everything on the disk (fsync) when it returns

What they do not do: know a framework's layers, or take a direction. Adding a format is one file and one row of `FORMATS`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import pathlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from bridges.core._errors import UnsupportedError, hint, listing
from converters._atomic import replacing
from converters._errors import CheckpointError
from converters.formats._checkpoint import Checkpoint as Checkpoint
from converters.formats._lazy import LazyLeaf as LazyLeaf
from converters.formats._lazy import read_leaf as read_leaf


@dataclasses.dataclass(frozen=True)
class Format:
    """A row of the table.

    Attributes:
      name: What `format=` and `--format` call it.
      suffixes: Endings that ask for it when a file is written and no format is given; the first is the usual one.
      package: The package that its module needs, None for what NumPy and the standard library do.
      extra: The extra of `jax-bridges` that brings the package.
      title: One line for tables and `--help`.
    """

    name: str
    suffixes: tuple[str, ...]
    package: str | None
    extra: str | None
    title: str

    def module(self) -> ModuleType:
        """Returns the format's module.

        Raises:
          UnsupportedError: Its package is not installed; the extra is named.
        """
        try:
            return importlib.import_module(f"converters.formats.{self.name}")
        except ImportError as err:
            if self.package is None or (err.name or "").partition(".")[0] != self.package.partition(".")[0]:
                raise
            raise UnsupportedError(
                f"The format {self.name} needs the package {self.package}, which is not installed:"
                f" pip install 'jax-bridges[{self.extra}]'."
            ) from err


# In the order in which content is asked: formats with a signature of their own first.
FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format("orbax", (".orbax", ""), "orbax.checkpoint", "flax", "Orbax checkpoint directories"),
        Format("npz", (".npz",), None, None, "NumPy archives"),
        Format(
            "safetensors", (".safetensors",), "safetensors", "safetensors", "safetensors, one file or with an index"
        ),
        Format("pickle", (".pkl", ".pickle", ".pkl.gz"), None, None, "pickles, read without executing anything"),
        Format("msgpack", (".msgpack", ".mpk"), "msgpack", "flax", "Flax msgpack (flax.serialization)"),
    )
}


def format_of(name: str) -> Format:
    """Returns the row of a format's name."""
    if name not in FORMATS:
        raise UnsupportedError(f"{name!r} is no format.{hint(name, FORMATS)} There are {', '.join(FORMATS)}.")
    return FORMATS[name]


def detect(path: str | os.PathLike[str]) -> Format:
    """Returns the format of a file or directory, by its content.

    Raises:
      CheckpointError: There is no such file, it is empty, or no format knows it.
      UnsupportedError: The package of the format that may be its own is not installed.
    """
    file = pathlib.Path(path)
    if not file.exists():
        near = hint(file.name, os.listdir(file.parent) if file.parent.is_dir() else ())
        raise CheckpointError(f"{file} does not exist.{near}")
    if file.is_file() and file.stat().st_size == 0:
        raise CheckpointError(f"{file} is empty.")
    lacking: list[UnsupportedError] = []
    for row in FORMATS.values():
        try:
            module = row.module()
        except UnsupportedError as err:
            lacking.append(err)
            continue
        if module.recognises(file):
            return row
    because = "".join(f" {err}" for err in lacking)
    raise CheckpointError(f"{file} is in no format that is known here: {', '.join(FORMATS)}.{because}")


def read(path: str | os.PathLike[str], format: str | None = None, **options: Any) -> Checkpoint:
    """Returns what a file or directory holds, with lazy leaves.

    Args:
      path: The file or directory.
      format: The name of its format; found by content if None.
      options: What the format's own `read` takes beside the path (`namedtuples` of pickle).

    Raises:
      CheckpointError: It is damaged, hostile or of no known format.
      UnsupportedError: The format has no such option.
    """
    row = format_of(format) if format else detect(path)
    module = row.module()
    known = [name for name in inspect.signature(module.read).parameters if name != "path"]
    if unknown := [name for name in options if name not in known]:
        raise UnsupportedError(
            f"{path} is read as {row.name}, which has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}."
        )
    return module.read(pathlib.Path(path), **options)


def target_format(path: str | os.PathLike[str], format: str | None = None) -> Format:
    """Returns the format that a new file is to have: the given one, or that of its name's ending.

    Raises:
      CheckpointError: Neither says.
    """
    if format:
        return format_of(format)
    name = pathlib.Path(path).name
    rows = [row for row in FORMATS.values() for s in row.suffixes if s and name.endswith(s)]
    if not rows and "." not in name:
        rows = [row for row in FORMATS.values() if "" in row.suffixes]
    if not rows:
        endings = ", ".join(f"{row.suffixes[0]} ({row.name})" for row in FORMATS.values())
        raise CheckpointError(f"{path}: its ending names no format. Give the format, or one of the endings {endings}.")
    return rows[0]


def write(
    path: str | os.PathLike[str],
    tree: Any,
    format: str | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a tree to a file or directory, whole or not at all.

    Args:
      path: Where to. What stands there is kept until the new one is complete.
      tree: A native tree; leaves may be lazy, each is read once and let go.
      format: The name of a format; that of the path's ending if None.
      metadata: Texts to keep beside the tree, where the format has a place for them.
      overwrite: Whether to take the place of what is there.

    Raises:
      CheckpointError: Something stands there, or it cannot be written.
      UnsupportedError: The format cannot hold an entry; all such entries are named, and nothing was written.
    """
    row = target_format(path, format)
    module = row.module()
    if problems := module.problems(tree):
        raise UnsupportedError(f"The format {row.name} cannot hold everything:\n" + listing(problems))
    with replacing(path, overwrite) as temporary:
        module.write(temporary, tree, dict(metadata or {}))
