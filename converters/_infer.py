"""Inferred: the mapping that names, shapes and layer conventions find between two models, as a file to read and edit.

What it does not do: run the models. `converters.verify` proves a mapping by what they compute.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping as Table
from collections.abc import Sequence
from typing import Any

from bridges.core._errors import UnsupportedError
from bridges.core._flat import under
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
        lines = _lines(plan, *specs)
        text = f"# {src.name} -> {dst.name}: {len(plan.src)} entries, {plan.verdict}.\n" + _toml.dumps(
            {"extends": [f"conventions:{ends[0]}->{ends[1]}"], **({"modules": dict(lines)} if lines else {})}
        )
        again = Mapping.loads(text).plan(*specs)
        if _joins(again) != _joins(plan):
            raise UnsupportedError(
                f"What was found between {src.name} and {dst.name} cannot be said by lines of [modules]. It is there as"
                " a plan: bridges plan, and converters.convert, need no mapping here."
            )
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


def _lines(plan: Plan, src: Spec, dst: Spec) -> list[tuple[str, str]]:
    pairs = [pair for row in plan.placements for pair in _copies(row[0], row[1], src, dst)]
    placed = {path for path, _ in pairs}
    return generalise(pairs, [path for path in src.layers if path not in placed])


def _copies(src: str, dst: str, *specs: Spec) -> list[tuple[str, str]]:
    """Returns the pairs of copies of a module of one stack and a module of another, which a plan shows as one pair."""
    found = []
    for path, spec in zip((src, dst), specs, strict=True):
        above = next((m for m in sorted(spec.stacks, key=len) if under(path, m)), None)
        if above is None or "[" in path:
            return [(src, dst)]
        sizes = [stack.size for stack in spec.stacks[above]]
        inside = path[len(above) :].lstrip("/")
        found.append((above, inside, sizes))
    if found[0][2] != found[1][2]:
        return [(src, dst)]
    copies = ["/".join(f"[{n}]" for n in numbers) for numbers in itertools.product(*map(range, found[0][2]))]
    return [
        (
            "/".join(filter(None, (found[0][0], copy, found[0][1]))),
            "/".join(filter(None, (found[1][0], copy, found[1][1]))),
        )
        for copy in copies
    ]


def _joins(plan: Plan) -> set[tuple[tuple[str, ...], tuple[str, ...], str]]:
    return {(item.sources, item.targets, str(item.ops)) for item in plan}
