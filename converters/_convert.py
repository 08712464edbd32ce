"""File to file: read lazily, planned in full, converted and written one leaf at a time, and back again."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bridges.mapping._mapping import Mapping as Rules
from bridges.mapping._plan import Plan
from converters._atomic import replacing
from converters._job import Job
from converters._outline import size


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A conversion that was done.

    Attributes:
      src, dst: The source and the target.
      plan: The plan of the variables; None where the entries stayed what they were.
      verdict: How exact it is; see `Plan.verdict`.
      reasons: Why it is not exact.
      notes: What a person should know.
      nbytes: The size of the target's arrays in bytes.
      seconds: How long it took.
      manifest: Where the manifest is, which the way back needs; None if there is none.
    """

    src: pathlib.Path
    dst: pathlib.Path
    plan: Plan | None = dataclasses.field(repr=False)
    verdict: str
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    nbytes: int
    seconds: float
    manifest: pathlib.Path | None = None

    def __str__(self) -> str:
        lines = [f"{self.src} -> {self.dst}: {size(self.nbytes)} in {self.seconds:.2f} s, {self.verdict}"]
        lines += [f"  {reason}" for reason in self.reasons] + list(self.notes)
        return "\n".join(lines + ([f"The way back: {self.manifest}"] if self.manifest else []))

    def to_dict(self) -> dict[str, Any]:
        """Returns the conversion as plain data, without the plan."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "plan"}
        return {
            k: str(v) if isinstance(v, pathlib.Path) else list(v) if type(v) is tuple else v for k, v in given.items()
        }


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    mapping: Rules | None = None,
    src_model: Any = None,
    dst_model: Any = None,
    inputs: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    to: str | None = None,
    framework: str | None = None,
    part: str | None = None,
    src_format: str | None = None,
    format: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
    manifest: bool = True,
) -> Conversion:
    """Converts a checkpoint file to another: planned in full before a byte is written, then one leaf at a time.

    With neither a mapping, nor a target's model or framework, only the format changes. `to='flat'` writes path -> array.

    Args:
      src: The source: a file or directory in any of `converters.formats.FORMATS`, found by content.
      dst: Where to; its ending says the format.
      mapping: How the variables become those of the target. If None, the shipped conventions between the frameworks.
      src_model: The model that the source is of, in any framework, or its `Spec`: the file must hold its variables, and
        the two models' hyperparameters are compared.
      dst_model: The model that the target is for, or its `Spec`. Without it, the mapping must say what the target holds.
      inputs: Inputs of both models; arrays may be `jax.ShapeDtypeStruct`.
      kwargs: Inputs by keyword.
      to: The target's framework, where no model of it is given: `'haiku'`, `'linen'`, `'nnx'` or `'flat'`.
      framework: The source's framework, where its content does not say.
      part: The path of the variables in the source (`'0/params'`), where they are not found; all else is left out.
      src_format: The name of the source's format, where its content is not to decide.
      format: The name of the target's format, where the ending of `dst` is not to decide.
      overwrite: Whether what stands at `dst` may be replaced; until the new one is complete it stays.
      progress: Called with the size in bytes of each array that was written.
      manifest: Whether to write `<dst>.manifest.json` (and, where the conversion loses values, these beside it), which
        `convert_back` needs.

    Raises:
      CheckpointError: The source cannot be read or is not understood, or the target cannot be written.
      MappingError, StructureError, UnsupportedError: The plan does not come about; every problem is listed.

    Nothing is created by a conversion that raises, and what stood at `dst` is as it was.
    """
    began = time.monotonic()
    job = Job.of(
        src,
        dst,
        mapping=mapping,
        src_model=src_model,
        dst_model=dst_model,
        inputs=inputs,
        kwargs=kwargs,
        to=to,
        framework=framework,
        part=part,
        src_format=src_format,
        format=format,
        overwrite=overwrite,
    )
    with replacing(job.path, overwrite) as temporary:
        job.format.module().write(temporary, job.tree, {})
    return Conversion(
        job.source.path,
        job.path,
        job.plan,
        job.verdict,
        job.plan.reasons if job.plan else (),
        job.notes,
        job.nbytes,
        time.monotonic() - began,
    )
