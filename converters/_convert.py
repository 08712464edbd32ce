"""File to file: read lazily, planned in full, converted and written one leaf at a time, and back again."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bridges.core._flat import flatten
from bridges.mapping._mapping import Mapping as Rules
from bridges.mapping._plan import Plan
from converters._atomic import replacing_all
from converters._job import Job
from converters._ledger import Ledger, checksums_of_file, summed
from converters._manifest import Way, end, manifest_of, residue_of, ways, written
from converters._outline import size
from converters._structure import mapped
from converters._tracked import Plain
from converters.formats import LazyLeaf, npz, read_leaf


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
    mapping: Rules | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    src_model: Any = None,
    dst_model: Any = None,
    inputs: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    to: str | None = None,
    framework: str | None = None,
    part: str | None = None,
    src_format: str | None = None,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    tx: Any = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
    manifest: bool = True,
) -> Conversion:
    """Converts a checkpoint file to another: planned in full before a byte is written, then one leaf at a time.

    With neither a mapping, nor a target's model or framework, only the format changes. `to='flat'` writes path -> array.

    Args:
      src: The source: a file or directory in any of `converters.formats.FORMATS`, found by content.
      dst: Where to; its ending says the format.
      mapping: How the variables become those of the target: a `Mapping`, a dict, or the path of a TOML file. If None, the
        shipped conventions between the frameworks.
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
      options: Options of the source's format (`namedtuples` of pickle).
      tx: The optax transformation of an optimizer whose state is in the file: the target's state then has its own
        containers, where the file has dictionaries in their place (msgpack, Orbax).
      overwrite: Whether what stands at `dst` may be replaced; until the new one is complete it stays.
      progress: Called with the size in bytes of each array that was written.
      manifest: Whether to write `<dst>.manifest.json` (and, where the conversion loses values, these beside it), which
        `convert_back` needs.

    Returns:
      A `Conversion`: `done.verdict` (how exact it is), `done.reasons`, `done.notes` (what to know of the target) and what
      was written; `print(done)` says it in words.

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
        options=options,
        tx=tx,
        overwrite=overwrite,
    )
    return run(job, overwrite=overwrite, progress=progress, manifest=manifest, began=began)


def run(
    job: Job,
    *,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
    manifest: bool = True,
    began: float | None = None,
) -> Conversion:
    """Runs a job, and returns what was done; see `convert`."""
    began = time.monotonic() if began is None else began
    places = [job.path, residue_of(job.path), manifest_of(job.path)]
    notes = list(job.notes)
    found = ways(job.source.tree, job.tree, job.moves) if manifest else []
    strong = {path for way in found if not way.exact for path in way.item.targets}
    ledger = Ledger(progress, manifest, strong, job.format.name == "orbax")
    with replacing_all(places, overwrite) as (temporary, residue, note), ledger:
        lost = _lost(job, found)
        leaves = flatten(job.source.tree)
        for way in found:
            if way.exact and _same_bytes(way.item):
                ledger.same(way.item.targets[0], leaves[way.item.sources[0]])
            else:
                for path in way.item.sources:
                    ledger.read(path, leaves[path])
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            whole = summed(job.source.path, leaves, pool) if manifest else None
            job.format.module().write(temporary, mapped(ledger.pulled, job.tree), job.metadata)
            if lost:
                npz.write(residue, {path: _storable(leaf) for path, leaf in lost.items()}, {})
                size_ = sum(int(leaf.nbytes) for leaf in lost.values())
                notes.append(f"The target does not hold {len(lost)} arrays of the source; for the way back they are in")
                notes[-1] += f" {places[1].name} ({size(size_)})"
            if whole is not None:
                _write_manifest(job, note, residue, found, lost, ledger, whole, notes)
    return Conversion(
        job.source.path,
        job.path,
        job.plan,
        job.verdict,
        job.plan.reasons if job.plan else (),
        tuple(notes),
        job.nbytes,
        time.monotonic() - began,
        places[2] if manifest else None,
    )


def _lost(job: Job, found: Sequence[Way]) -> dict[str, Any]:
    """Returns the arrays of the source that the target does not determine, by path."""
    leaves = flatten(job.source.tree)
    paths = [path for way in found if not way.exact for path in way.item.sources]
    return {path: leaves[path] for path in paths if not isinstance(leaves[path], Plain)}


def _storable(leaf: Any) -> Any:
    """Returns the leaf, of a typed random key its data: the manifest has its dtype."""
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
        return leaf
    raw = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return LazyLeaf(raw.shape, raw.dtype, lambda: np.asarray(jax.random.key_data(read_leaf(leaf))))


def _same_bytes(item: Any) -> bool:
    """Whether source and target have the same elements in the same order."""
    one = len(item.sources) == len(item.targets) == 1
    return one and all(op.name in ("reshape", "squeeze", "expand") for op in item.ops)


def _write_manifest(
    job: Job,
    note: pathlib.Path,
    residue: pathlib.Path,
    found: Sequence[Way],
    lost: Mapping[str, Any],
    ledger: Ledger,
    whole: Callable[[Mapping[str, Mapping[str, str]]], Mapping[str, Any]],
    notes: Sequence[str],
) -> None:
    pulled, seen = ledger.sums()
    for way in found:
        if way.exact and _same_bytes(way.item):
            seen[way.item.sources[0]] = pulled[way.item.targets[0]]
    source, framework = job.source, job.contents.framework if job.contents else ""
    ends = (
        end(source.path.name, source.format, framework, source.tree, seen),
        end(job.path.name, job.format.name, job.framework, job.tree, pulled),
    )
    ends[0].update(
        {"file": whole(seen), "why": job.contents.why if job.contents else "", "metadata": dict(source.metadata)}
    )
    held = (
        {"name": residue_of(job.path).name, "file": checksums_of_file(residue), "entries": sorted(lost)}
        if lost
        else None
    )
    text = written(
        source=ends[0],
        target=ends[1],
        found=found,
        plan=job.plan,
        mapping=job.mapping,
        residue=held,
        notes=notes,
    )
    # Names of files need not be UTF-8: what of them is not, becomes JSON's own escapes, which Python reads back.
    with open(note, "x", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
