"""Flax msgpack: what `flax.serialization.to_bytes` and `msgpack_serialize` write, and `from_bytes` reads.

Arrays are exts of type 1: (shape, name of the dtype, bytes in row-major order) in msgpack; complex numbers of type 2,
NumPy scalars of type 3; arrays above 2^30 bytes are dictionaries of flat pieces (`flax/serialization.py`, Flax 0.12.8). A
file is walked once, from head to head; the arrays' bytes stay where they are until they are asked for.

Structure is that of Flax's state dicts: sequences are dictionaries by index, NamedTuples and dataclasses by field, keys
are strings. A file with integer keys or lists (`msgpack_serialize` writes them) is read as it is. Flax is not needed.
"""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import msgpack
import numpy as np

from bridges.core import _flat
from bridges.core._errors import BridgeError, UnsupportedError
from converters.formats import _entries
from converters.formats._checkpoint import Checkpoint
from converters.formats._dtypes import EXTENDED, PLAIN
from converters.formats._lazy import LazyLeaf
from converters.formats._msgpack import Head, Heads, bin_head, ext_head
from converters.formats._output import output
from converters.formats._source import Source, damaged, reading

NDARRAY, COMPLEX, SCALAR = 1, 2, 3  # flax.serialization._MsgpackExtType
CHUNK = 2**30  # flax.serialization.MAX_CHUNK_SIZE, in bytes
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = PLAIN | EXTENDED


def recognises(path: pathlib.Path) -> bool:
    """Whether a file begins as a state dict does: a map whose first key is a text, or an array's ext.

    msgpack has no signature. A file that was cut off is recognised still, unless its keys are integers: those look like
    anything, and it must be whole.
    """
    if not path.is_file():
        return False
    source = Source(path)
    heads = Heads(source)
    try:
        top = heads.head(0, 1 << 62 if source.size else 0)
        if top.kind == "array" and top.length:
            top = heads.head(top.body, source.size)
        if top.kind == "ext":
            return top.code in (NDARRAY, COMPLEX, SCALAR) and heads.peek(top.body, 1) in (b"\x93", b"\x92")
        if top.kind != "map":
            return False
        if not top.length:
            return source.size == top.end
        key = heads.head(top.body, source.size)
        if key.kind == "str":
            source.bytes(key.body, key.length).decode()
            return True
        if key.kind == "plain":
            _tree(source)
            return True
    except (BridgeError, UnicodeDecodeError):
        pass
    return False


def read(path: pathlib.Path) -> Checkpoint:
    """Returns what a file holds.

    Raises:
      CheckpointError: It is damaged, or not Flax's.
    """
    source = Source(path)
    with reading(path):
        return Checkpoint(path, "msgpack", _tree(source), {})


def problems(tree: Any) -> list[str]:
    """Returns what Flax's msgpack cannot hold."""
    return _entries.problems(tree, _problem)


def write(path: pathlib.Path, tree: Any, metadata: Mapping[str, str]) -> None:
    """Writes a file, one leaf at a time; the format has no place for metadata."""
    entries = _entries.entries(tree)
    with output(path) as file:
        if list(entries) == [""]:
            _write_leaf(file, entries[""])
        else:
            _write_tree(file, entries)


# -- reading -----------------------------------------------------------------------------------------------------------


class _Frame:
    """A map or an array of which not all elements have been seen."""

    __slots__ = ("into", "left", "key", "name")

    def __init__(self, into: Any, left: int, name: str):
        self.into, self.left, self.name = into, left, name
        self.key: Any = None  # of the value that comes next; None before a key, and in arrays

    def put(self, value: Any) -> None:
        if isinstance(self.into, list):
            self.into.append(value)
        else:
            self.into[self.key] = value
        self.key = None
        self.left -= 1


def _tree(source: Source) -> Any:
    """Returns the tree of a file, walked from head to head without recursion."""
    heads = Heads(source)
    top = _Frame([], 1, "")
    frames = [top]
    at = 0
    while frames[-1].left or len(frames) > 1:
        frame = frames[-1]
        if not frame.left:  # all its elements have been seen
            frames.pop()
            frames[-1].put(_unchunked(source, frames, frame.into))
            continue
        head = heads.head(at, source.size)
        at = head.end
        if isinstance(frame.into, dict) and frame.key is None:
            frame.key = _key(source, head, frames)
        elif head.kind in ("map", "array"):
            if len(frames) > _entries.DEEP:
                raise damaged(source.path, f"it is more than {_entries.DEEP} levels deep at byte {head.at:,}")
            name = str(frame.key if isinstance(frame.into, dict) else len(frame.into))
            frames.append(_Frame({} if head.kind == "map" else [], head.length, name))
        else:
            frame.put(_value(source, heads, head, frames))
    if at != source.size:
        raise damaged(source.path, f"{source.size - at:,} bytes follow behind the end of its content, at byte {at:,}")
    return top.into[0]


def _where(source: Source, frames: list[_Frame]) -> str:
    frame = frames[-1]
    last = frame.key if isinstance(frame.into, dict) else len(frame.into)
    names = [frame.name for frame in frames[2:]] + [str(last)] * (len(frames) > 1)
    return f"{source.path}, {_flat.join(names)!r}"


def _plain(source: Source, head: Head) -> Any:
    return msgpack.unpackb(source.bytes(head.at, head.end - head.at), raw=False)


def _key(source: Source, head: Head, frames: list[_Frame]) -> str | int:
    frame = frames[-1]
    with reading(_where(source, frames[:-1]) if len(frames) > 2 else source.path):
        key: Any = _plain(source, head) if head.kind in ("str", "plain") else None
        if type(key) not in (str, int):
            raise damaged(source.path, f"at byte {head.at:,} a key is neither a text nor an integer")
        if key in frame.into:
            raise damaged(source.path, f"the key {key!r} occurs twice, again at byte {head.at:,}")
        if frame.into and type(key) is not type(next(iter(frame.into))):
            raise damaged(source.path, f"at byte {head.at:,} texts and integers are keys of one map")
    return key


def _value(source: Source, heads: Heads, head: Head, frames: list[_Frame]) -> Any:
    """Returns a value without elements: an array is not read."""
    where = _where(source, frames)
    with reading(where):
        if head.kind != "ext":
            return _plain(source, head)
        if head.code == COMPLEX:
            real, imag = msgpack.unpackb(source.bytes(head.body, head.length))
            return complex(real, imag)
        if head.code not in (NDARRAY, SCALAR):
            raise UnsupportedError(f"{where} is an ext of type {head.code}, which Flax does not write.")
        shape, dtype, at = _array(source, heads, head)
        if head.code == SCALAR:
            if shape:
                raise damaged(where, f"a scalar has the shape {shape}")
            return source.array(at, shape, dtype.newbyteorder("<"))[()]
        kept = dtype.newbyteorder("<")
        pull = functools.partial(source.array, at, shape, kept)
        return LazyLeaf(shape, dtype, pull, where, source.place(at, shape, kept))


def _array(source: Source, heads: Heads, ext: Head) -> tuple[tuple[int, ...], np.dtype, int]:
    """Returns the shape and dtype of an ext's array, and where its bytes begin."""
    at, end = ext.body, ext.end
    triple = heads.head(at, end)
    size = heads.head(triple.body, end)
    if (triple.kind, triple.length, size.kind) != ("array", 3, "array") or size.length > 64:
        raise damaged(source.path, f"at byte {at:,} there is no shape, dtype and bytes of an array")
    at = size.body
    shape: list[Any] = []
    for _ in range(size.length):
        axis = heads.head(at, end)
        shape.append(_plain(source, axis) if axis.kind == "plain" else None)
        at = axis.end
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
        raise damaged(source.path, f"at byte {size.at:,} the shape {shape} is none")
    named = heads.head(at, end)
    name = source.bytes(named.body, named.length)[:40].decode() if named.kind in ("str", "bin") else ""
    if name not in _DTYPES:
        raise damaged(source.path, f"at byte {named.at:,} the dtype {name!r} is none of {', '.join(_DTYPES)}")
    dtype = _DTYPES[name]
    data = heads.head(named.end, end)
    if data.kind not in ("str", "bin") or data.end != end or data.length != math.prod(shape) * dtype.itemsize:
        raise damaged(source.path, f"at byte {data.at:,} {data.length:,} bytes are said to be {name}{shape}")
    return tuple(shape), dtype, data.body


def _unchunked(source: Source, frames: list[_Frame], found: Any) -> Any:
    """Returns the one leaf that a dictionary of pieces stands for, or what it was given."""
    if not isinstance(found, dict) or _CHUNKED not in found:
        return found
    where = _where(source, frames)
    with reading(where):
        shape = tuple(found["shape"][str(i)] for i in range(len(found["shape"])))
        parts: list[LazyLeaf] = [found["chunks"][str(i)] for i in range(len(found["chunks"]))]
        if not parts or not all(isinstance(part, LazyLeaf) for part in parts):
            raise damaged(where, "it has no pieces")
        dtype = parts[0].dtype
        if any(type(n) is not int or n < 0 for n in shape) or sum(p.size for p in parts) != math.prod(shape):
            raise damaged(where, f"{len(parts)} pieces do not make the shape {shape}")
        if any(p.ndim != 1 or p.dtype != dtype for p in parts):
            raise damaged(where, "its pieces are not flat arrays of one dtype")
        return LazyLeaf(shape, dtype, functools.partial(_joined, shape, dtype, parts), where)


def _joined(shape: tuple[int, ...], dtype: np.dtype, parts: list[LazyLeaf]) -> np.ndarray:
    found = np.empty(math.prod(shape), dtype)
    at = 0
    for part in parts:
        found[at : at + part.size] = part.read()
        at += part.size
    return found.reshape(shape)


# -- writing -----------------------------------------------------------------------------------------------------------


def _problem(path: str, leaf: Any) -> str | None:
    if _CHUNKED in _flat.split(path):
        return f"has the name {_CHUNKED}, by which Flax knows the pieces of an array: rename it"
    if _entries.is_empty(leaf):
        return None
    if isinstance(leaf, bool | complex | float | str | bytes) and not isinstance(leaf, np.generic):
        return "is no Unicode text" if isinstance(leaf, str) and _entries.is_half(leaf) else None
    if isinstance(leaf, int) and not isinstance(leaf, np.generic):
        return None if -(2**63) <= leaf < 2**64 else f"is the integer {leaf}, which has more than 64 bits"
    dtype = _entries.spec(leaf)[1]
    if dtype.newbyteorder("=") not in _DTYPES.values():
        return f"has the dtype {dtype}, which flax.serialization cannot read"
    return None


def _write_tree(file: BinaryIO, entries: Mapping[str, Any]) -> None:
    packer = msgpack.Packer(strict_types=True)
    tree = _flat.nest({path: _Leaf(leaf) for path, leaf in entries.items()})
    file.write(packer.pack_map_header(len(tree)))
    open_maps: list[Iterator[tuple[str, Any]]] = [iter(tree.items())]
    while open_maps:
        pair = next(open_maps[-1], None)
        if pair is None:
            open_maps.pop()
            continue
        key, value = pair
        file.write(packer.pack(key))
        if isinstance(value, _Leaf):
            _write_leaf(file, value.leaf)
        else:
            file.write(packer.pack_map_header(len(value)))
            open_maps.append(iter(value.items()))


class _Leaf:
    """A leaf that may be a dictionary, an empty one."""

    __slots__ = ("leaf",)

    def __init__(self, leaf: Any):
        self.leaf = leaf


def _write_leaf(file: BinaryIO, leaf: Any) -> None:
    if _entries.is_empty(leaf):
        file.write(msgpack.packb(leaf if leaf is None else {}))
    elif isinstance(leaf, complex) and not isinstance(leaf, np.generic):
        file.write(msgpack.packb(msgpack.ExtType(COMPLEX, msgpack.packb((leaf.real, leaf.imag)))))
    elif isinstance(leaf, bool | int | float | str | bytes) and not isinstance(leaf, np.generic):
        file.write(msgpack.packb(leaf))
    elif isinstance(leaf, np.generic):
        _write_array(file, leaf, SCALAR)
    elif math.prod(leaf.shape) * leaf.dtype.itemsize > CHUNK:
        _write_chunks(file, leaf)
    else:
        _write_array(file, leaf, NDARRAY)


def _write_array(file: BinaryIO, leaf: Any, code: int) -> None:
    shape, dtype = _entries.spec(leaf)
    count = math.prod(shape) * dtype.itemsize
    head = msgpack.Packer().pack_array_header(3) + msgpack.packb(shape) + msgpack.packb(dtype.name) + bin_head(count)
    file.write(ext_head(code, len(head) + count) + head)
    _entries.copy(leaf, dtype, file)


def _write_chunks(file: BinaryIO, leaf: Any) -> None:
    """Writes an array as Flax's `_chunk` and `msgpack_serialize` do: flat pieces of at most `CHUNK` bytes."""
    shape, dtype = _entries.spec(leaf)
    size, step = math.prod(shape), max(1, CHUNK // dtype.itemsize)
    packer = msgpack.Packer()
    file.write(packer.pack_map_header(3) + packer.pack(_CHUNKED) + packer.pack(True))
    file.write(packer.pack("shape") + packer.pack({str(i): n for i, n in enumerate(shape)}))
    file.write(packer.pack("chunks") + packer.pack_map_header(-(-size // step)))
    stream = _entries.blocks(leaf, dtype)
    rest = memoryview(b"")
    for i, at in enumerate(range(0, size, step)):
        left = min(step, size - at) * dtype.itemsize
        head = packer.pack_array_header(3) + packer.pack([left // dtype.itemsize]) + packer.pack(dtype.name)
        head += bin_head(left)
        file.write(packer.pack(str(i)) + ext_head(NDARRAY, len(head) + left) + head)
        while left:
            rest = rest or next(stream)
            file.write(rest[:left])
            rest, left = rest[left:], left - min(left, len(rest))
