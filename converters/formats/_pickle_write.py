"""A native tree -> a pickle of protocol 4, byte by byte: dictionaries, lists, tuples, NamedTuples and NumPy arrays.

`pickle.Pickler` keeps every array that it has written until it is done, and copies each twice. Here the opcodes are
written by hand around an array's own memory, so that one array at a time is in memory, and none twice where it is
contiguous. The arrays are written as NumPy's own `__reduce__` gives them, by the names that NumPy 1 and 2 both know.

Invariant: the bytes depend on the tree alone. Nothing is memoised: an array that stands in two places is written twice.
"""

from __future__ import annotations

import collections
import gzip
import pathlib
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import IO, Any

import jax
import numpy as np

from bridges.core._errors import describe
from bridges.core._flat import join, nest
from bridges.core._state import State
from converters.formats import _pickle_arrays as arrays
from converters.formats import _pickle_tuples as tuples
from converters.formats._entries import blocks, unheld
from converters.formats._lazy import LazyLeaf, read_leaf
from converters.formats._output import output
from converters.formats._pickle_meaning import MAX_DEPTH

_BATCH = 1000  # Items between two marks, as Python's own pickler has them: what a reader's stack holds at once.
_PLAIN = (bool, int, float, complex, str, bytes)
_OURS = ("bridges", "converters")


def problems(tree: Any) -> list[str]:
    """Returns what of a tree a pickle cannot hold, or should not, each with its path."""
    found: list[str] = []
    _check(tree, (), found, set())
    return found


def _check(node: Any, path: tuple[str, ...], found: list[str], above: set[int]) -> None:
    where = repr(join(path)) if path else "the top"
    if len(path) > MAX_DEPTH or id(node) in above:
        found.append(f"{where[:80]}: it contains itself, or is nested more than {MAX_DEPTH} deep")
    elif isinstance(node, State):
        for name, value in node.items():
            _check(value, (*path, name), found, above)
    elif isinstance(node, Mapping):
        for key, value in node.items():
            if not isinstance(key, (str, bool, int, float, bytes)):
                found.append(f"{where}: the key {key!r} is a {type(key).__name__}: make it a text or a number")
            _check(value, (*path, str(key)), found, above | {id(node)})
    elif isinstance(node, (list, tuple)):
        if type(node) not in (list, tuple):
            found += [f"{where} {text}" for text in [_refused(type(node))] if text]
        names = getattr(node, "_fields", range(len(node)))
        for name, value in zip(names, node, strict=True):
            _check(value, (*path, str(name)), found, above | {id(node)})
    elif node is not None and not isinstance(node, _PLAIN):
        found += [f"{where} {text}" for text in [_leaf_problem(node)] if text]


def _refused(cls: type) -> str | None:
    """Returns why a class of tuples cannot be written, None if it can: a pickle holds only its name."""
    if not tuples.is_namedtuple(cls):
        return f"is of the class {cls.__name__}: make it a list, a tuple or a dictionary"
    module, name = tuples.reference(cls)
    if module.partition(".")[0] in _OURS:
        return f"is the NamedTuple {module}.{name} of this package, which a reader need not have: make it a dictionary"
    if not all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
        return f"is the NamedTuple {module}.{name}, which cannot be imported: define it in a module, or make it a dictionary"
    holder: Any = sys.modules.get(module)
    for part in name.split("."):
        holder = getattr(holder, part, None)
    if holder is cls or ((module not in sys.modules or holder is None) and tuples.is_made(cls)):
        return None
    if tuples.is_made(cls) and getattr(holder, "_fields", None) == cls._fields:  # type: ignore[attr-defined]
        return None
    return f"is a NamedTuple whose class is not {module}.{name}: a reader would get another. Make it a dictionary"


def _leaf_problem(leaf: Any) -> str | None:
    kind = getattr(leaf, "dtype", None)
    if kind is None or not hasattr(leaf, "shape"):
        return (
            f"is a {type(leaf).__name__}: neither an array, a number, a text nor a container that a pickle should hold"
        )
    text = unheld(leaf) if isinstance(leaf, (LazyLeaf, jax.Array, np.ndarray, jax.ShapeDtypeStruct)) else None
    if text is None and not arrays.holds(np.dtype(kind)):
        return f"is {describe(leaf)}, no array of numbers that every machine has"
    return text


def write(path: pathlib.Path, tree: Any) -> None:
    """Writes a tree without problems to a new file, by gzip if its name ends in `.gz`; on the disk when it returns."""
    with output(path) as file:
        if path.name.endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=1) as packed:
                _Writer(packed).document(tree)
        else:
            _Writer(file).document(tree)


class _Writer:
    def __init__(self, file: IO[bytes] | gzip.GzipFile):
        self._put = file.write

    def document(self, tree: Any) -> None:
        self._put(b"\x80\x04")
        self._node(tree)
        self._put(b".")

    def _node(self, node: Any) -> None:
        if isinstance(node, State):
            node = nest(node)
        if isinstance(node, (LazyLeaf, np.ndarray, jax.Array)):
            self._array(np.asarray(read_leaf(node)))
        elif isinstance(node, np.generic):
            self._scalar(node)
        elif isinstance(node, Mapping):
            self._mapping(node)
        elif isinstance(node, list):
            self._put(b"]")
            for batch in _batches(node):
                self._put(b"(")
                for item in batch:
                    self._node(item)
                self._put(b"e")
        elif isinstance(node, tuple):
            self._tuple(node)
        elif hasattr(node, "dtype"):  # Another library's array.
            self._array(np.asarray(node))
        else:
            self._put(plain(node))

    def _mapping(self, node: Mapping) -> None:
        ordered = isinstance(node, collections.OrderedDict)
        self._put(name("collections", "OrderedDict") + b")R" if ordered else b"}")
        for batch in _batches(list(node.items())):
            self._put(b"(")
            for key, value in batch:
                self._put(plain(key))
                self._node(value)
            self._put(b"u")

    def _tuple(self, node: tuple) -> None:
        fields = tuples.is_namedtuple(type(node))
        if fields:
            self._put(name(*tuples.reference(type(node))))
        self._put(b"(")
        for item in node:
            self._node(item)
        self._put(b"t\x81" if fields else b"t")

    def _scalar(self, value: np.generic) -> None:
        raw = value.tobytes()
        self._put(name("numpy.core.multiarray", "scalar") + dtype(value.dtype) + plain(raw) + b"\x86R")

    def _array(self, value: np.ndarray) -> None:
        fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        shape = b"(" + b"".join(map(plain, value.shape)) + b"t"
        size = value.size * value.itemsize
        # `_reconstruct(ndarray, (0,), b"b")`, then the state: version, shape, dtype, whether Fortran, the bytes.
        self._put(name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R")
        self._put(b"(K\x01" + shape + dtype(value.dtype) + plain(bool(fortran)))
        self._put(b"\x8e" + struct.pack("<Q", size) if size >= 1 << 32 else b"B" + struct.pack("<I", size))
        raw = np.dtype(f"V{value.itemsize}")  # Whatever the dtype and its byte order: they are written as they are.
        for block in blocks((value.T if fortran else value).view(raw), raw):
            self._put(block)
        self._put(b"tb")


def _batches(items: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]


def name(module: str, attribute: str) -> bytes:
    """Returns the opcodes that push a class or function."""
    return plain(module) + plain(attribute) + b"\x93"


def dtype(kind: np.dtype) -> bytes:
    """Returns the opcodes that push a dtype, as `dtype.__reduce__` describes it."""
    reduced: Any = kind.__reduce__()
    _, (code, *_), state = reduced
    what = plain(code) if isinstance(code, str) else name("ml_dtypes", code.__name__)
    return name("numpy", "dtype") + what + b"\x89\x88\x87R(" + b"".join(map(plain, state[:8])) + b"tb"


def plain(value: Any) -> bytes:
    """Returns the opcodes that push None, a bool, a number, a text or bytes.

    >>> plain(3), plain('w'), plain(None)
    (b'K\\x03', b'\\x8c\\x01w', b'N')
    """
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return _int(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, complex):
        return name("builtins", "complex") + plain(value.real) + plain(value.imag) + b"\x86R"
    if isinstance(value, str):
        raw = value.encode("utf-8", "surrogatepass")
        return (b"\x8c" + bytes([len(raw)]) if len(raw) < 256 else b"\x8d" + struct.pack("<Q", len(raw))) + raw
    raw = bytes(value)
    return (b"C" + bytes([len(raw)]) if len(raw) < 256 else b"\x8e" + struct.pack("<Q", len(raw))) + raw


def _int(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return (b"\x8a" + bytes([len(raw)]) if len(raw) < 256 else b"\x8b" + struct.pack("<I", len(raw))) + raw
