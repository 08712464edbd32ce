"""Inspection: what a file holds, for a person and as data, with no array read."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from bridges.core._errors import describe
from bridges.core._flat import flatten
from converters import formats
from converters._outline import Line, outline, size


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a file holds.

    Attributes:
      file: Its name.
      format: The name of its format.
      lines: Its leaves.
      layers: Module path -> what layer it looks like.
      holds: What the whole is, in words.
      metadata: Texts that the format keeps beside the tree.
    """

    file: str
    format: str
    lines: tuple[Line, ...]
    layers: Mapping[str, str]
    holds: str
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, file: str | os.PathLike[str], format: str | None = None, **options: Any) -> Inspection:
        """Returns the inspection of a file.

        Raises:
          CheckpointError: It is damaged, hostile or of no known format.
        """
        found = formats.read(file, format, **options)
        lines = [_line(path, leaf) for path, leaf in flatten(found.tree).items()]
        return cls(os.fspath(file), found.format, tuple(lines), {}, "", found.metadata)

    def text(self, depth: int | None = None, fold: bool = True) -> str:
        """Returns the inspection for a terminal."""
        total = sum(line.nbytes for line in self.lines)
        head = f"{self.file}: {self.format}, {len(self.lines)} entries, {size(total)}"
        return "\n".join(
            [head + (f"; {self.holds}" if self.holds else ""), outline(self.lines, self.layers, depth, fold)]
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the inspection as plain data."""
        return {**dataclasses.asdict(self), "layers": dict(self.layers), "metadata": dict(self.metadata)}


def _line(path: str, leaf: Any) -> Line:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return Line(path, describe(leaf), nbytes=int(getattr(leaf, "nbytes", 0)))
    return Line(path, repr(leaf)[:60])
