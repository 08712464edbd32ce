"""safetensors: one file, or several with an index, as the Hugging Face hub keeps them.

The library reads and checks the header (`safe_open`); arrays are then mapped where they lie, which needs no parsing of
ours: the format leaves no byte between its arrays, so a shape, a dtype and the order of offsets say where each begins,
and the last one ends with the file. The writer makes the header itself, because the library's wants all arrays at once;
its bytes are the library's own (a test compares them).

A tree's paths are the names, escaped as everywhere in this project. Names of other programs stay as they are where they
are no such paths. None and empty dictionaries are a text of the metadata.
"""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from bridges.core._errors import UnsupportedError, listing
from converters._errors import CheckpointError
from converters.formats import _entries, _layout
from converters.formats._checkpoint import Checkpoint
from converters.formats._lazy import LazyLeaf
from converters.formats._output import output
from converters.formats._source import Source, damaged, reading

INDEX = ".safetensors.index.json"
_EMPTY = "bridges.empty"
_MOST = 100_000_000  # bytes of a header, or of an index, that the library reads

# The library's names in the library's order: a file's arrays are sorted by it, backwards, and then by name.
DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in (
        ("BOOL", np.bool_),
        ("U8", np.uint8),
        ("I8", np.int8),
        ("F8_E5M2", ml_dtypes.float8_e5m2),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("F8_E8M0", ml_dtypes.float8_e8m0fnu),
        ("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz),
        ("F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz),
        ("I16", np.int16),
        ("U16", np.uint16),
        ("F16", np.float16),
        ("BF16", ml_dtypes.bfloat16),
        ("I32", np.int32),
        ("U32", np.uint32),
        ("F32", np.float32),
        ("C64", np.complex64),
        ("F64", np.float64),
        ("I64", np.int64),
        ("U64", np.uint64),
    )
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_RANKS = {name: rank for rank, name in enumerate(DTYPES)}


def recognises(path: pathlib.Path) -> bool:
    """Whether a path is a safetensors file, an index of several, or a directory of either."""
    if path.is_dir():
        return _inside(path) is not None
    if not path.is_file():
        return False
    with reading(path), open(path, "rb") as file:
        head = file.read(1 << 16)
    # A length in eight bytes, then JSON; a text has no zero byte.
    if head[8:9] == b"{" and b"\0" in head[:8]:
        return True
    return head.lstrip()[:1] == b"{" and b'"weight_map"' in head


def read(path: pathlib.Path) -> Checkpoint:
    """Returns what a file holds, or all files of an index: given the index, its directory, or one of its files.

    Raises:
      CheckpointError: It is damaged, or the index and its files disagree.
      UnsupportedError: An array has a dtype that NumPy has not (the packed ones of four and six bits).
    """
    file = _inside(path) if path.is_dir() else path
    if file is None:
        raise CheckpointError(f"{path} holds neither one .safetensors file nor one *{INDEX}. Name the file.")
    index = file if _is_json(file) else _index_of(file)
    flat, metadata = _read_all(index) if index else _read_one(file)
    empty = metadata.pop(_EMPTY, "{}")
    with reading(path):
        holes = json.loads(empty)
        if not isinstance(holes, dict) or any(hole in flat for hole in holes):
            raise damaged(path, f"its list of empty entries, {empty[:100]!r}, does not fit its arrays")
        flat.update((hole, None if holes[hole] is None else {}) for hole in holes)
    tree, metadata["layout"] = _layout.tree(flat, modules=False)
    return Checkpoint(path, "safetensors", tree, metadata)


def problems(tree: Any) -> list[str]:
    """Returns what a safetensors file cannot hold."""
    return _entries.problems(tree, _problem)


def write(path: pathlib.Path, tree: Any, metadata: Mapping[str, str]) -> None:
    """Writes one file, one leaf at a time.

    Raises:
      CheckpointError: The header would be longer than the library reads.
    """
    entries = _entries.entries(tree)
    texts = {k: v for k, v in metadata.items() if k != "layout"}
    if holes := {name: leaf for name, leaf in entries.items() if _entries.is_empty(leaf)}:
        marks: dict[str, Any] = {name: None if leaf is None else {} for name, leaf in holes.items()}
        texts[_EMPTY] = json.dumps(marks, ensure_ascii=False)
    leaves = {name: leaf for name, leaf in entries.items() if name not in holes}
    specs = {name: _entries.spec(leaf) for name, leaf in leaves.items()}
    order = sorted(specs, key=lambda name: (-_RANKS[_code(specs[name][1])], name))
    with output(path) as file:
        file.write(header({name: specs[name] for name in order}, texts))
        for name in order:
            _entries.copy(leaves[name], specs[name][1], file)


def header(specs: Mapping[str, tuple[tuple[int, ...], np.dtype]], metadata: Mapping[str, str]) -> bytes:
    """Returns the first bytes of a file: the length of the description, and the description, padded to eight bytes.

    Args:
      specs: `{name: (shape, dtype)}` in the order in which the arrays follow.
      metadata: Texts.
    """
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (shape, dtype) in specs.items():
        end = at + math.prod(shape) * dtype.itemsize
        fields[name] = {"dtype": _code(dtype), "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MOST:
        raise CheckpointError(
            f"The names and the metadata have {len(text):,} bytes, and the library reads {_MOST:,}: write npz or orbax."
        )
    return len(text).to_bytes(8, "little") + text


def _code(dtype: np.dtype) -> str:
    return _NAMES[dtype.newbyteorder("=")]


def _problem(path: str, leaf: Any) -> str | None:
    if path == "":
        return "is no dictionary: a file's arrays have names, put it into a dictionary"
    if path == "__metadata__":
        return "has the name under which the format keeps texts: rename it"
    if _entries.is_empty(leaf):
        return None
    if isinstance(leaf, str | bytes):
        return f"is a {type(leaf).__name__}: give it as metadata, or use the format npz or msgpack"
    dtype = _entries.spec(leaf)[1]
    if dtype.newbyteorder("=") not in _NAMES:
        return f"has the dtype {dtype}, which safetensors lacks (it has {', '.join(map(str, _NAMES))})"
    return None


def _read_one(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns `{name: lazy leaf}` and the metadata of a file."""
    source = Source(path)
    with reading(path):
        length = int.from_bytes(source.bytes(0, 8), "little")
        if length > min(_MOST, source.size - 8):
            raise damaged(path, f"its header is said to have {length:,} bytes, and the file has {source.size:,}")
        with safetensors.safe_open(path, framework="np", backend="pread") as file:
            metadata = dict(file.metadata() or {})
            parts = [(name, file.get_slice(name)) for name in file.offset_keys()]
            found = [(name, tuple(part.get_shape()), part.get_dtype()) for name, part in parts]
        json.loads(source.bytes(8, length), object_pairs_hook=functools.partial(_once, path))
        if packed := [f"{name!r} is {code}" for name, _, code in found if code not in DTYPES]:
            raise UnsupportedError(f"{path} holds arrays of dtypes that NumPy has not:\n{listing(packed)}")
        specs = [(name, shape, DTYPES[code]) for name, shape, code in found]
    at = source.size - sum(math.prod(shape) * dtype.itemsize for _, shape, dtype in specs)
    if at != 8 + length:
        raise damaged(path, f"its arrays begin at byte {8 + length:,} and would have to begin at {at:,}")
    flat: dict[str, Any] = {}
    for name, shape, dtype in specs:
        kept = dtype.newbyteorder("<")
        pull = functools.partial(source.array, at, shape, kept)
        flat[name] = LazyLeaf(shape, dtype, pull, f"{path}, {name!r}", source.place(at, shape, kept))
        at += math.prod(shape) * dtype.itemsize
    return flat, metadata


def _read_all(index: pathlib.Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns `{name: lazy leaf}` and the metadata of all files that an index names."""
    where = _weight_map(index)
    flat: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    unlisted: list[str] = []
    for shard in sorted(set(where.values())):
        file = index.parent / shard
        if not file.is_file():
            raise CheckpointError(f"{index} names the file {shard!r}, which is not beside it. Fetch it too.")
        found, texts = _read_one(file)
        metadata |= texts
        if missing := [name for name, place in where.items() if place == shard and name not in found]:
            lines = map(repr, missing)
            raise CheckpointError(f"{index} says that {shard!r} holds what it does not hold:\n{listing(lines)}")
        flat.update((name, leaf) for name, leaf in found.items() if where.get(name) == shard)
        unlisted += [f"{name!r} in {shard}" for name in found if where.get(name) != shard]
    if unlisted:
        metadata["unlisted"] = f"{len(unlisted)} arrays are in no line of the index: {', '.join(unlisted[:5])}"
    return flat, metadata


def _weight_map(index: pathlib.Path) -> dict[str, str]:
    source = Source(index)
    with reading(index):
        if source.size > _MOST:
            raise damaged(index, f"an index of {source.size:,} bytes")
        found = json.loads(source.bytes(0, source.size), object_pairs_hook=functools.partial(_once, index))
        where = found["weight_map"]
        if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
            raise damaged(index, "its weight_map is no mapping from names to files")
    for file in sorted(set(where.values())):
        if file != os.path.basename(file) or file in ("", ".", ".."):
            raise damaged(index, f"it names the file {file!r}, and files lie beside their index")
    return where


def _once(path: pathlib.Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the dictionary of a JSON object whose keys occur once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise damaged(path, f"it has two entries {double!r}")
    return found


def _is_json(file: pathlib.Path) -> bool:
    with reading(file), open(file, "rb") as opened:
        head = opened.read(9)
    return head.lstrip()[:1] == b"{" and b"\0" not in head[:8]


def _inside(directory: pathlib.Path) -> pathlib.Path | None:
    """Returns the one index of a directory, or its one safetensors file."""
    names = sorted(os.listdir(directory))
    for ending in (INDEX, ".safetensors"):
        found = [name for name in names if name.endswith(ending) and not name.startswith(".")]
        if found:
            return directory / found[0] if len(found) == 1 else None
    return None


def _index_of(file: pathlib.Path) -> pathlib.Path | None:
    """Returns the index beside a file that names it, if its name says that it is one of several."""
    if not re.search(r"-\d+-of-\d+\.safetensors$", file.name):
        return None
    for name in sorted(os.listdir(file.absolute().parent)):
        index = file.parent / name
        if name.endswith(INDEX) and index.is_file() and file.name in _weight_map(index).values():
            return index
    return None
