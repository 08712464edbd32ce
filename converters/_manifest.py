"""Manifest: what a conversion did, beside its output, so that it can be undone bit for bit and looked up later.

    model.msgpack
    model.msgpack.manifest.json   both ends, the plan, the mapping, versions, checksums, and how each leaf goes back
    model.msgpack.residue.npz     source leaves that the target does not determine; only where there are any

The way back of a leaf is the inverse of what was done, where that is exact; otherwise its values are in the residue. They
hold as long as the target's leaves are those that were written, which checksums tell; a leaf that was changed since (a
checkpoint that was trained on) goes back by the plan's inverse, as far as there is one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bridges.core import _flat
from bridges.core._spec import abstract
from bridges.mapping._data import frozen
from bridges.mapping._mapping import Mapping as Rules
from bridges.mapping._op import Abstract
from bridges.mapping._ops import recorded_op
from bridges.mapping._plan import Item, Plan, dtype_of
from bridges.mapping._resolve import resolve
from converters._errors import CheckpointError
from converters._structure import described
from converters._tracked import Plain, places

VERSION = 1
_PACKAGES = ("jax-bridges", "jax", "numpy", "dm-haiku", "flax", "optax", "orbax-checkpoint", "safetensors", "msgpack")


def manifest_of(path: pathlib.Path) -> pathlib.Path:
    """Returns where the manifest of a file is."""
    return path.with_name(path.name + ".manifest.json")


def residue_of(path: pathlib.Path) -> pathlib.Path:
    """Returns where the residue of a file is."""
    return path.with_name(path.name + ".residue.npz")


@dataclasses.dataclass(frozen=True)
class Way:
    """How some leaves of the source became some of the target, and go back.

    Attributes:
      item: Sources, targets (paths in the two files' trees), ops and shapes.
      back: Whether the item's inverse exists.
      exact: Whether the inverse restores the sources bit for bit.
    """

    item: Item
    back: bool
    exact: bool

    def to_dict(self) -> dict[str, Any]:
        """Returns the way as plain data."""
        stages = (self.item.stages[0] if self.item.sources else (), self.item.stages[-1] if self.item.targets else ())
        out = self.item.to_dict()
        for key in ("reason", "resume", "how"):
            out.pop(key, None)
        return {**out, "in": _shapes(stages[0]), "out": _shapes(stages[1]), "back": self.back, "exact": self.exact}

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Way:
        """Returns the way of its plain data."""
        ins, outs = (
            tuple(Abstract(tuple(shape), dtype_of(name)) for name, shape in given[key]) for key in ("in", "out")
        )
        sources, targets = tuple(given["sources"]), tuple(given["targets"])
        ops = tuple(map(recorded_op, given.get("ops", ())))
        stages = resolve(ops, ins, outs) if sources and targets and given["back"] else (ins, outs)
        item = Item(sources, targets, ops, stages, value=frozen(given.get("value")))
        return cls(item, bool(given["back"]), bool(given["exact"]))


def _shapes(leaves: Sequence[Any]) -> list[list[Any]]:
    return [[str(x.dtype), list(x.shape)] for x in leaves]


def ways(source: Any, target: Any, moves: Sequence[Any]) -> list[Way]:
    """Returns how each leaf of the source goes back, and leaves that the source does not determine.

    Args:
      source, target: The two trees; leaves are known by identity.
      moves: The moves of a job.
    """
    src, dst = places(source), places(target)
    found: list[Way] = []
    done: set[str] = set()
    for move in moves:
        sources = tuple(src[id(leaf)] for leaf in move.sources)
        targets = tuple(dst[id(leaf)] for leaf in move.targets)
        item = dataclasses.replace(move.item, sources=sources, targets=targets)
        done.update(sources)
        if sources:
            back = move.back and (bool(targets) or item.value is not None)
            found.append(Way(item, back, back and bool(targets) and not _loses(item)))
    for path, leaf in _flat.flatten(source).items():
        if path in done:
            continue
        stage = (stage_of(leaf),)
        if id(leaf) in dst:
            found.append(Way(Item((path,), (dst[id(leaf)],), (), (stage,)), True, True))
        else:
            found.append(Way(Item((path,), (), (), (stage, ())), False, False))
    return found


def stage_of(leaf: Any) -> Abstract:
    """Returns the shape and dtype of a leaf; a text and an integer beyond 64 bits have none, and stand for themselves."""
    if isinstance(leaf, Plain) and (isinstance(leaf.value, (str, bytes)) or leaf.dtype == object):
        return Abstract((), np.dtype(bool))
    return abstract(leaf)


def _loses(item: Item) -> bool:
    stages = zip(item.ops, item.stages, item.stages[1:], strict=False)
    return any(op.loss(list(ins), list(outs)) is not None for op, ins, outs in stages)


def written(
    *,
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    found: Sequence[Way],
    plan: Plan | None,
    mapping: Rules | None,
    residue: Mapping[str, Any] | None,
    notes: Sequence[str],
) -> str:
    """Returns the text of a manifest."""
    text = mapping.dumps() if mapping is not None else None
    return _lines(
        {
            "bridges_manifest": VERSION,
            "source": source,
            "target": target,
            "residue": residue,
            "verdict": plan.verdict if plan is not None else "exact",
            "reasons": list(plan.reasons) if plan is not None else [],
            "notes": list(notes),
            "versions": versions(),
            "mapping": {"sha256": hashlib.sha256(text.encode()).hexdigest(), "toml": text}
            if text is not None
            else None,
            "plan": json.loads(plan.to_json()) if plan is not None else None,
            "back": [way.to_dict() for way in found],
        },
        3,
    )


def _lines(value: Any, depth: int, indent: str = "") -> str:
    """Returns JSON with a line for each element of the upper levels."""
    if not depth or not isinstance(value, (dict, list)) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = indent + " "
    if isinstance(value, dict):
        rows = [
            f"{json.dumps(k)}: {_lines(v, depth - 1 if k in ('source', 'target', 'entries', 'back') else 0, inner)}"
            for k, v in value.items()
        ]
    else:
        rows = [_lines(v, 0, inner) for v in value]
    a, b = "{}" if isinstance(value, dict) else "[]"
    return f"{a}\n{inner}" + f",\n{inner}".join(rows) + f"\n{indent}{b}"


def end(name: str, format: str, framework: str, tree: Any, sums: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Returns what a manifest says of one end: its structure and its leaves.

    Args:
      name: The file's name.
      format: The name of its format.
      framework: Of which framework it is; empty where that was not asked.
      tree: Its tree, with leaves tracked.
      sums: Checksums by path, as far as there are any.
    """
    structure, leaves = described(tree)
    entries = {path: _entry(leaf, sums.get(path, {})) for path, leaf in leaves.items()}
    return {"name": name, "format": format, "framework": framework, "structure": structure, "entries": entries}


def _entry(leaf: Any, out: Mapping[str, str]) -> dict[str, Any]:
    if isinstance(leaf, Plain):
        value = leaf.value
        if isinstance(value, np.generic):
            return {"scalar": str(value.dtype), "hex": value.tobytes().hex(), **out}
        if isinstance(value, bytes):
            return {"bytes": len(value), "hex": value.hex(), **out}
        if isinstance(value, complex) or value != value:  # JSON has neither
            return {type(value).__name__: repr(value), "hex": np.asarray(value).tobytes().hex(), **out}
        return {"value": value, **out}
    return {"dtype": str(leaf.dtype), "shape": list(leaf.shape), **out}


def recorded(said: Mapping[str, Any]) -> Plain | None:
    """Returns the plain value that a manifest has of a leaf; None of an array, whose values it has not."""
    if "value" in said:
        return Plain(said["value"])
    if "hex" not in said:
        return None
    raw = bytes.fromhex(said["hex"])
    if "bytes" in said:
        return Plain(raw)
    value = np.frombuffer(raw, dtype_of(said.get("scalar") or ("complex128" if "complex" in said else "float64")))[0]
    return Plain(value if "scalar" in said else value.item())


@functools.cache  # the metadata of a package is parsed anew at each question, which takes half of a small conversion
def versions() -> dict[str, str]:
    """Returns the versions of the packages that take part, as far as they are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A manifest that was read.

    Attributes:
      path: Where it is.
      source, target: What it says of the two ends.
      ways: How leaves go back.
      residue: What it says of the residue, or None.
      plan: The plan of the variables, or None.
      mapping: The mapping, or None.
      given: All of it.
    """

    path: pathlib.Path
    source: Mapping[str, Any]
    target: Mapping[str, Any]
    ways: tuple[Way, ...]
    residue: Mapping[str, Any] | None
    given: Mapping[str, Any]

    @classmethod
    def load(cls, path: pathlib.Path) -> Manifest:
        """Returns the manifest of a JSON file.

        Raises:
          CheckpointError: There is none, or it is damaged.
        """
        try:
            given = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as err:
            raise CheckpointError(
                f"{path} does not exist: the way back needs the manifest that the conversion wrote beside its output."
            ) from err
        except (OSError, ValueError, RecursionError) as err:
            raise CheckpointError(f"{path} is no manifest: {err}") from err
        if not isinstance(given, dict) or given.get("bridges_manifest") != VERSION:
            raise CheckpointError(
                f"{path} is no manifest of version {VERSION} (bridges_manifest is missing or another)."
            )
        try:
            found = cls(
                path, given["source"], given["target"], tuple(map(Way.of, given["back"])), given["residue"], given
            )
            found._check()
            return found
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as err:
            raise CheckpointError(f"{path} is damaged: {type(err).__name__}: {err}") from err

    def _check(self) -> None:
        """Raises whatever Python likes unless all parts that the way back reads are there and name one another."""
        ends = [dict(end["entries"]) for end in (self.source, self.target)]
        for end in (self.source, self.target):
            if not all(isinstance(end[key], str) for key in ("name", "format", "framework")):
                raise ValueError("an end has no name, format or framework")
        if not isinstance(self.source["file"], dict):
            raise ValueError("the source has no checksum")
        _ = self.plan, self.mapping  # they are there, and whole
        for way in self.ways:
            if not all(p in ends[0] for p in way.item.sources) or not all(p in ends[1] for p in way.item.targets):
                raise ValueError(f"{way.item.sources} -> {way.item.targets} are not entries")
        if self.residue is not None:
            name = self.residue["name"]
            if not name or pathlib.PurePath(name).name != name or not isinstance(self.residue["file"], dict):
                raise ValueError(f"the residue {name!r} is no file beside the manifest")

    @property
    def plan(self) -> Plan | None:
        """The plan of the variables."""
        return None if self.given["plan"] is None else Plan.from_json(json.dumps(self.given["plan"]))

    @property
    def mapping(self) -> Rules | None:
        """The mapping."""
        return None if self.given["mapping"] is None else Rules.loads(self.given["mapping"]["toml"])
