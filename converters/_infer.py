"""Inferred: the mapping that names, shapes and layer conventions find between two models, as a file to read and edit.

What it does not do: run the models. `converters.verify` proves a mapping by what they compute.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping as Table
from collections.abc import Sequence
from typing import Any

from bridges.core._spec import Spec
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
      plan: What it does with every entry of the two models.
      ends: The frameworks.
    """

    toml: str
    plan: Plan
    ends: tuple[str, str]

    @classmethod
    def of(cls, src: Model, dst: Model, inputs: Sequence[Any] = (), kwargs: Table[str, Any] | None = None) -> Inferred:
        """Returns what is found between two models.

        Args:
          src, dst: The models.
          inputs, kwargs: Their inputs; arrays may be `jax.ShapeDtypeStruct`.

        Raises:
          MappingError: Names and shapes leave something open, or the models differ; everything is listed.
        """
        for model in (src, dst):
            if model.framework == "core":
                raise CheckpointError(
                    f"{model.name} is a core module, whose layers have no conventions: write a mapping with rules."
                )
        specs = [model.spec(*inputs, **(kwargs or {})) for model in (src, dst)]
        ends = (src.framework, dst.framework)
        plan = conventions(*ends).plan(*specs)
        lines = _lines(plan, specs[0])
        text = f"# {src.name} -> {dst.name}: {len(plan.src)} entries, {plan.verdict}.\n" + _toml.dumps(
            {"extends": [f"conventions:{ends[0]}->{ends[1]}"], **({"modules": dict(lines)} if lines else {})}
        )
        again = Mapping.loads(text).plan(*specs)
        assert _joins(again) == _joins(plan), "the file says what was found"
        return cls(text, again, ends)

    @property
    def summary(self) -> str:
        """One line for a person."""
        count = len(self.plan.placements)
        return (
            f"{count} layers placed, {len(self.plan.src)} entries -> {len(self.plan.dst)} entries: {self.plan.verdict}"
        )

    def write(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Writes the mapping to a file, whole or not at all."""
        with replacing(path, overwrite) as temporary:
            temporary.write_text(self.toml, "utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Returns what was found as plain data."""
        plan = self.plan
        rows = [{"source": s, "target": d, "why": why} for s, d, why in plan.placements]
        return {"mapping": self.toml, "verdict": plan.verdict, "reasons": list(plan.reasons), "placements": rows}


def _lines(plan: Plan, spec: Spec) -> list[tuple[str, str]]:
    pairs = [(src, dst) for src, dst, _ in plan.placements]
    placed = {src for src, _ in pairs}
    return generalise(pairs, [path for path in spec.layers if path not in placed])


def _joins(plan: Plan) -> set[tuple[tuple[str, ...], tuple[str, ...], str]]:
    return {(item.sources, item.targets, str(item.ops)) for item in plan}
