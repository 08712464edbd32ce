"""Inferred: the mapping between two models, as a file to read and edit.

With inputs it is found by what the models compute (`bridges.infer_mapping`). Without any, names, shapes and conventions
have to do, and the file says so.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping as Table
from collections.abc import Sequence
from typing import Any

from bridges._infer._found import Progress
from bridges._infer._shipped import copies
from bridges.core._errors import UnsupportedError
from bridges.core._spec import Spec
from bridges.infer import DifferentModelsError, infer_mapping
from bridges.mapping import _toml
from bridges.mapping._conventions import conventions
from bridges.mapping._generalise import generalise
from bridges.mapping._mapping import Mapping
from bridges.mapping._plan import Plan
from converters._atomic import replacing
from converters._errors import CheckpointError
from converters._models import Model


@dataclasses.dataclass(frozen=True)
class Inferred:
    """A mapping that was found.

    Attributes:
      toml: The mapping's file.
      summary: What was found and what was not, for a person.
      complete: Whether every entry is placed and the models are the same function, as far as was asked for.
      found: The same as plain data.
      plan: What it does with every entry, where names found it.
    """

    toml: str
    summary: str
    complete: bool
    found: Table[str, Any]
    plan: Plan | None = None

    @classmethod
    def of(
        cls,
        src: Model,
        dst: Model,
        inputs: Sequence[Any] = (),
        kwargs: Table[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Inferred:
        """Returns what is found between two models.

        Args:
          src, dst: The models.
          inputs, kwargs: Their inputs; arrays may be `jax.ShapeDtypeStruct`. With none at all, only names, shapes and
            conventions are looked at.
          progress: Called with the steps done, their number, and where the search is.

        Raises:
          ModelError: A model cannot be called with these inputs.
          MappingError: There are no inputs, and names and shapes leave something open, or the models differ.
        """
        if not inputs and not kwargs:
            return _by_names(src, dst)
        try:
            mapping = infer_mapping(src, dst, *inputs, progress=progress, **(kwargs or {}))
        except DifferentModelsError as err:
            return cls(err.mapping.text, f"{err}\n{err.mapping}", False, err.mapping.to_dict())
        return cls(mapping.text, str(mapping), mapping.complete, mapping.to_dict())

    def write(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Writes the mapping to a file, whole or not at all."""
        with replacing(path, overwrite) as temporary:
            temporary.write_text(self.toml, "utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Returns what was found as plain data."""
        return dict(self.found)


def _by_names(src: Model, dst: Model) -> Inferred:
    for model in (src, dst):
        if model.family == "flat":
            raise CheckpointError(
                f"{model.name} has no layers that conventions know: give inputs, such as --input 'float32[1,8]', and the"
                " mapping is found by what the models compute."
            )
    specs = [model.spec() for model in (src, dst)]
    ends = (src.framework, dst.framework)
    plan = conventions(*ends).plan(*specs)
    lines = _lines(plan, *specs)
    table = {"extends": [f"conventions:{ends[0]}->{ends[1]}"], **({"modules": dict(lines)} if lines else {})}
    text = (
        f"# {src.name} -> {dst.name}: {len(plan.src)} entries, {plan.verdict}.\n"
        "# By names, shapes and conventions only, since there were no inputs: the models were not run.\n"
        f"{_toml.dumps(table)}"
    )
    again = Mapping.loads(text).plan(*specs)
    if _joins(again) != _joins(plan):
        raise UnsupportedError(
            f"What was found between {src.name} and {dst.name} cannot be said by lines of [modules]. It is there as"
            " a plan: bridges plan, and converters.convert, need no mapping here."
        )
    count = (
        f"{len(plan.placements)} layers placed by names and shapes, {len(plan.src)} entries -> {len(plan.dst)} entries"
    )
    rows = [{"source": s, "target": d, "why": why} for s, d, why in plan.placements]
    data = {"mapping": text, "verdict": plan.verdict, "reasons": list(plan.reasons), "placements": rows}
    return Inferred(text, f"{count}: {plan.verdict}", True, data, again)


def _lines(plan: Plan, src: Spec, dst: Spec) -> list[tuple[str, str]]:
    pairs = [pair for row in plan.placements for pair in copies(row[0], row[1], src, dst)]
    placed = {path for path, _ in pairs}
    return generalise(pairs, [path for path in src.layers if path not in placed])


def _joins(plan: Plan) -> set[tuple[tuple[str, ...], tuple[str, ...], str]]:
    return {(item.sources, item.targets, str(item.ops)) for item in plan}
