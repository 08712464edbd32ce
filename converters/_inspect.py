"""Inspection: what a file holds, for a person and as data, with no array read."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from bridges.core._errors import describe
from bridges.core._flat import flatten
from bridges.core._kind import kind_type
from bridges.core._spec import Spec
from bridges.core._state import State
from bridges.mapping._conventions import conventions, frameworks
from bridges.mapping._identify import identify
from converters import formats
from converters._contents import contents
from converters._errors import CheckpointError
from converters._outline import Line, outline, size


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a file holds.

    Attributes:
      file: Its name.
      format: The name of its format.
      lines: Its leaves.
      layers: Path of a module in the file -> what layer it looks like, by names and shapes alone.
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
    def of(
        cls,
        file: str | os.PathLike[str],
        format: str | None = None,
        framework: str | None = None,
        part: str | None = None,
        **options: Any,
    ) -> Inspection:
        """Returns the inspection of a file.

        Args:
          file: The file or directory.
          format: The name of its format, where its content is not to decide.
          framework, part: As for `converters.convert`.
          **options: What the format's reader takes.

        Raises:
          CheckpointError: It is damaged, hostile or of no known format.
        """
        found = formats.read(file, format, **options)
        leaves = flatten(found.tree)
        kinds: dict[int, str] = {}
        layers: dict[str, str] = {}
        try:
            inside = contents(found.tree, framework, part)
        except CheckpointError as err:
            if framework or part:
                raise
            holds = str(err).splitlines()[0]
        else:
            holds = str(inside)
            declared = inside.variables.declared
            kinds = {id(x): kind_type(declared[p]).__name__ for p, x in inside.variables.items() if p in declared}
            layers = dict(_layers(leaves, inside.variables, inside.framework))
        lines = [_line(path, leaf, kinds.get(id(leaf), "")) for path, leaf in leaves.items()]
        return cls(os.fspath(file), found.format, tuple(lines), layers, holds, found.metadata)

    def text(self, depth: int | None = None, fold: bool = True) -> str:
        """Returns the inspection for a terminal."""
        total = sum(line.nbytes for line in self.lines)
        head = [f"{self.file}: {self.format}, {len(self.lines)} entries, {size(total)}", self.holds]
        return "\n".join([*filter(None, head), outline(self.lines, self.layers, depth, fold)])

    def to_dict(self) -> dict[str, Any]:
        """Returns the inspection as plain data."""
        return {**dataclasses.asdict(self), "layers": dict(self.layers), "metadata": dict(self.metadata)}


def _line(path: str, leaf: Any, kind: str) -> Line:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return Line(path, describe(leaf), kind, int(getattr(leaf, "nbytes", 0)))
    return Line(path, repr(leaf)[:60])


def _layers(leaves: Mapping[str, Any], variables: State, framework: str) -> Iterator[tuple[str, str]]:
    """Yields (path of a module in the file, the layer that it looks like)."""
    if framework not in frameworks():
        return
    rows = [row for part in conventions(framework, framework).parts for row in part.layers if not row.refuse]
    called: dict[str, str] = {}  # Linen's automatic names, Dense_0
    for row in rows:
        for name in row.src:
            called.setdefault(name.partition(".")[2], row.type)
    places = {id(leaf): path for path, leaf in leaves.items()}
    for found in identify(Spec.of(variables).entries, {}, rows, "src").values():
        types = list(dict.fromkeys(rows[r].type for r in found.rows))
        named = called.get(re.sub("_[0-9]+$", "", found.path.rpartition("/")[2])) if framework == "linen" else None
        if types and named:  # with an axis more than its own, of a stack, a layer looks like another
            types = [named if named in types else f"{named}, stacked"]
        for path in found.leaves if types else ():
            place = places.get(id(variables[path]), "")
            above, inside = place.rpartition("/")[0], path.removeprefix(f"{path.partition('/')[0]}/{found.path}/")
            if above and "/" not in inside.removeprefix("~/"):
                yield above, types[0]
