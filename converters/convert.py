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
    plan: Plan | None
    verdict: str
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    nbytes: int
    seconds: float
    manifest: pathlib.Path | None = None


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
    """Converts a checkpoint file to another, and returns what was done."""
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
