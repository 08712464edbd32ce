"""The way back: a converted file, with its manifest, becomes its source again.

What nobody has changed since comes back bit for bit, and that is checked before anything is in its place. What was
changed (the usual case: the converted model was trained on) goes back by the inverse of what was done.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from bridges.core._errors import BridgeError, EntryShapeError, StructureError, UnsupportedError, describe, hint, listing
from bridges.core._flat import escape, flatten
from bridges.mapping._plan import KEY_DTYPES, dtype_of
from converters import formats
from converters._atomic import replacing_all
from converters._convert import Conversion
from converters._errors import CheckpointError
from converters._job import check_places
from converters._ledger import Ledger, checksums, checksums_of_file
from converters._manifest import Manifest, manifest_of, recorded, residue_of
from converters._stream import Stream
from converters._structure import built, mapped
from converters._tracked import Plain, plain, tracked
from converters.formats import LazyLeaf, read_leaf


def convert_back(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    manifest: str | os.PathLike[str] | None = None,
    format: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Conversion:
    """Converts a file that `convert` wrote back to what it came from, and returns what was done.

    Args:
      src: The converted file; its values may have been changed since, its structure not.
      dst: Where to; in the format of the original, or in the given one.
      manifest: The manifest, where it does not lie beside `src`.
      format: The name of another format.
      overwrite: Whether what stands at `dst` may be replaced.
      progress: Called with the size in bytes of each array that was written.

    Raises:
      CheckpointError: There is no manifest, it is damaged, or it is not of this file; or the result is not the original
        although nothing was changed.
      StructureError, EntryShapeError: The file has not the leaves that were written.
      UnsupportedError: Something was changed that has no way back.
    """
    began = time.monotonic()
    source, path = pathlib.Path(src), pathlib.Path(dst)
    check_places(source, path, overwrite)
    note = pathlib.Path(manifest) if manifest is not None else manifest_of(source)
    found = Manifest.load(note)
    row = formats.format_of(format or found.source["format"])
    checkpoint = formats.read(source, found.target["format"])
    leaves = flatten(tracked(checkpoint.tree))
    with _trusted(note):
        _check(leaves, found)
    residue = _residue(found, note)
    wanted = found.source["entries"]
    with _trusted(note):
        restored, changed, lost = _restored(leaves, found, residue)
        tree = built(found.source["structure"], [_as_was(restored[p], wanted[p], p) for p in wanted])
    if problems := row.module().problems(mapped(lambda _, leaf: plain(leaf), tree)):
        raise UnsupportedError(f"The format {row.name} cannot hold everything:\n" + listing(problems))
    notes: list[str] = []
    with replacing_all([path, residue_of(path), manifest_of(path)], overwrite) as (temporary, *_), _trusted(note):
        with Ledger(progress, contiguous=row.name == "orbax") as ledger:
            metadata = found.source.get("metadata", {}) if row.name == found.source["format"] else {}
            row.module().write(temporary, mapped(ledger.pulled, tree), metadata)
            sums, _ = ledger.sums()
        other = [p for p in wanted if sums[p]["crc32"] != wanted[p].get("crc32", sums[p]["crc32"])]
        changed |= _changed(other, found, leaves)
        if wrong := [p for p in other if p not in changed]:
            raise CheckpointError(
                f"{note}: these did not come back as they were, although what they became is unchanged:\n"
                + listing(map(repr, wrong))
                + "\nThe manifest or the residue does not belong to this file, or is damaged."
            )
        same = checksums_of_file(temporary) == found.source["file"]
    if not changed:
        notes.append("Every array is as it was, bit for bit" + ("; so is the file" if same else ""))
    else:
        notes.append(f"{len(changed)} of {len(wanted)} entries were changed since, and went back by the inverse")
        if lost:
            notes.append(f"of these, not exactly: {', '.join(sorted(lost)[:8])}{' …' if len(lost) > 8 else ''}")
    nbytes = sum(int(getattr(leaf, "nbytes", 0)) for leaf in restored.values())
    reasons = tuple(found.given["reasons"]) if lost else ()
    verdict = "exact" if not lost else found.given["verdict"]
    return Conversion(source, path, found.plan, verdict, reasons, tuple(notes), nbytes, time.monotonic() - began)


@contextlib.contextmanager
def _trusted(note: pathlib.Path) -> Iterator[None]:
    """A manifest is a file that anybody may have written: what its values lead to is one error that names it."""
    try:
        yield
    except (BridgeError, OSError):
        raise
    except Exception as err:
        raise CheckpointError(f"{note} is damaged, or not of this file: {type(err).__name__}: {err}") from err


def _check(leaves: Mapping[str, Any], found: Manifest) -> None:
    """Raises unless the file has the leaves that were written."""
    wanted = found.target["entries"]
    lines = [f"missing {p!r}.{hint(p, leaves)}" for p in wanted if p not in leaves]
    lines += [f"unexpected {p!r}" for p in leaves if p not in wanted]
    if lines:
        raise StructureError(f"The file is not the one that {found.path} is of:\n" + listing(lines))
    wrong = []
    for path, said in wanted.items():
        leaf = leaves[path]
        if "shape" in said and (list(leaf.shape), str(leaf.dtype)) != (said["shape"], said["dtype"]):
            wrong.append(f"{path!r} is {describe(leaf)}, and was {said['dtype']}{said['shape']}")
    if wrong:
        raise EntryShapeError("Entries have other shapes or dtypes than were written:\n" + listing(wrong))


def _residue(found: Manifest, note: pathlib.Path) -> dict[str, Any]:
    """Returns the leaves of the residue."""
    if found.residue is None:
        return {}
    file = note.with_name(found.residue["name"])
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist: the way back needs it, see {note}.")
    if checksums_of_file(file) != found.residue["file"]:
        raise CheckpointError(f"{file} is not the one that {note} was written with: its checksum differs.")
    return flatten(formats.read(file, "npz").tree)


def _restored(
    leaves: Mapping[str, Any], found: Manifest, residue: Mapping[str, Any]
) -> tuple[dict[str, Any], set[str], set[str]]:
    """Returns the source's leaves by path, those known to have been changed, and those that did not come back exactly."""
    stream = Stream()
    out: dict[str, Any] = {}
    changed: set[str] = set()
    lost: set[str] = set()
    problems: list[str] = []
    kept = {path: residue[key] for path in found.source["entries"] if (key := _key(path)) in residue}
    for way in found.ways:
        item = way.item
        if not way.exact and not _is_changed(item.targets, found, leaves):
            given = {p: kept.get(p, recorded(found.source["entries"][p])) for p in item.sources}
            if all(leaf is not None for leaf in given.values()):
                out.update(given)
                continue
        if not way.back:
            problems += [
                f"{', '.join(item.targets)} was changed, and has no way back"
                if item.targets
                else f"{', '.join(item.sources)} was dropped, and is not in the residue"
            ]
            continue
        if not way.exact:
            changed.update(item.sources)
            lost.update(item.sources)
        if not item.ops and len(item.sources) == len(item.targets) == 1:
            out[item.sources[0]] = leaves[item.targets[0]]
        else:
            given_leaves = [leaves[p] for p in item.targets]
            made = stream.step(item.inverse, given_leaves, item.stages[0], ", ".join(item.sources))
            out.update(zip(item.sources, made, strict=True))
    problems += [f"nothing is said of {p!r}" for p in found.source["entries"] if p not in out and not problems]
    if problems:
        raise UnsupportedError("The original cannot be restored:\n" + listing(dict.fromkeys(problems)))
    return out, changed, lost


def _key(path: str) -> str:
    """Returns the path of a residue's leaf in the archive's tree, whose keys are whole paths."""
    return escape(path)


def _is_changed(paths: tuple[str, ...], found: Manifest, leaves: Mapping[str, Any]) -> bool:
    wanted = found.target["entries"]
    for path in paths:
        said = {key: wanted[path][key] for key in ("crc32", "sha256") if key in wanted[path]}
        if checksums(leaves[path], "sha256" in said) != said:
            return True
    return False


def _changed(sources: list[str], found: Manifest, leaves: Mapping[str, Any]) -> set[str]:
    """Returns which of these sources come from targets that were changed since they were written."""
    wanted = set(sources)
    return {
        p
        for way in found.ways
        if wanted & {*way.item.sources} and _is_changed(way.item.targets, found, leaves)
        for p in way.item.sources
    }


def _as_was(leaf: Any, said: Mapping[str, Any], path: str) -> Any:
    """Returns the leaf as the kind of value that it was: an array, a number, a NumPy scalar, a random key."""
    if "shape" in said:
        if str(said["dtype"]).startswith("key<") and not str(leaf.dtype).startswith("key<"):
            dtype = dtype_of(said["dtype"])
            impl = KEY_DTYPES[said["dtype"]]
            return LazyLeaf(tuple(said["shape"]), dtype, lambda: jax.random.wrap_key_data(read_leaf(leaf), impl=impl))
        if isinstance(leaf, Plain):
            value = np.asarray(leaf.value).astype(said["dtype"]).reshape(said["shape"])
            return LazyLeaf(value.shape, value.dtype, lambda: value, path)
        return leaf
    value = np.asarray(leaf)
    if "scalar" in said:
        return Plain(value.astype(said["scalar"])[()])
    if "value" in said and not isinstance(said["value"], str):
        return Plain(type(said["value"])(value.item()))
    if "float" in said:
        return Plain(float(value))
    return leaf if isinstance(leaf, Plain) else Plain(value.item())
