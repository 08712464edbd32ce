"""Arrays of a pickle: what NumPy, JAX, ml_dtypes and joblib write around an array's bytes, old releases' forms too.

    numpy   `_reconstruct(ndarray, (0,), b'b')` + state (version, shape, dtype, is Fortran, bytes); `_frombuffer(bytes,
            dtype, shape, order[, axes])` in protocol 5; `scalar(dtype, bytes)`; in protocol 2 the bytes are a text that
            `_codecs.encode` turns back; `numpy.core` became `numpy._core` in 2.0
            (numpy/_core/src/multiarray/methods.c, numpy/_core/numeric.py)
    jax     before 0.3.5 as NumPy's (jax/interpreters/xla.py); `jax._src.device_array.reconstruct_device_array(fun, args,
            state, aval)` to 0.4.1 and `jax._src.array._reconstruct_array` since 0.3.25, around NumPy's, whose `aval`
            (weak_type, until 0.5 named_shape) says nothing that an array has
    joblib  `NumpyArrayWrapper` whose bytes follow the object in the file (joblib/numpy_pickle.py)

Invariant: an array is made only where shape, dtype and the number of bytes agree. NumPy's own unpickling code never runs.
"""

from __future__ import annotations

import codecs
import functools
import math
import re
from typing import Any

import ml_dtypes
import numpy as np

from converters.formats._lazy import LazyLeaf
from converters.formats._pickle_nodes import MISSING, Call, Global, Items, Pairs, Payload, name_of
from converters.formats._pickle_source import Source, error

RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
FROM_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
NDARRAY = ("numpy.ndarray", "numpy.memmap", "numpy.core.memmap.memmap", "numpy._core.memmap.memmap")
JOBLIB = "joblib.numpy_pickle.NumpyArrayWrapper"
ENCODE = "_codecs.encode"
_DTYPE = "numpy.dtype"
_BYTES = ("builtins.bytes", "__builtin__.bytes", "builtins.bytearray", "__builtin__.bytearray")
_MAX_AXES = 64  # NumPy's own.
_PIECE = 1 << 20

_CODE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16)")
# The modules in which ml_dtypes' scalar types lived: jaxlib's own until 0.4.10.
_SMALL_MODULES = (
    "ml_dtypes",
    "ml_dtypes._custom_floats",
    "ml_dtypes._ml_dtypes_ext",
    "jaxlib.xla_extension",
    "jax._src.lib.xla_extension",
    "tensorflow",
    "builtins",
)
_SMALL = (
    "bfloat16 float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz"
    " float8_e8m0fnu float6_e2m3fn float6_e3m2fn float4_e2m1fn int2 int4 uint2 uint4 int1 uint1"
).split()
_RENAMED = {"float8_e4m3b11": "float8_e4m3b11fnuz"}


class Malformed(Exception):
    """Something is no array, for the reason given; whoever knows the place raises the user's error."""


def _args(call: Call, *counts: int) -> list[Any]:
    if not isinstance(call.args, Items) or len(call.args.items) not in counts:
        raise Malformed("it was written with other arguments than an array has; the file is damaged")
    return call.args.items


def _ints(node: Any, what: str) -> tuple[int, ...]:
    if not isinstance(node, Items) or node.kind is not tuple or len(node.items) > _MAX_AXES:
        raise Malformed(f"its {what} is no tuple of integers; the file is damaged")
    if any(type(n) is not int or not 0 <= n < 1 << 62 for n in node.items):
        raise Malformed(f"its {what} is {tuple(_shown(n) for n in node.items)}; the file is damaged")
    return tuple(node.items)


def _shown(node: Any) -> Any:
    return node if isinstance(node, (int, float, str, bool)) else type(node).__name__


def dtype(node: Any) -> np.dtype:
    """Returns the dtype of a node: `numpy.dtype(code, False, True)` and its state.

    Raises:
      Malformed: It is none, or one of objects, texts, dates or records.
    """
    if not isinstance(node, Call) or name_of(node.fn) != _DTYPE:
        raise Malformed("its dtype is no NumPy dtype; the file is damaged")
    code = _args(node, 1, 3)[0]
    order = "="
    if node.state is not MISSING:
        state = node.state.items if isinstance(node.state, Items) else []
        if len(state) < 5 or state[1] not in ("<", ">", "=", "|"):
            raise Malformed("its dtype's state is not NumPy's; the file is damaged")
        if any(x is not None for x in state[2:5]):
            raise Malformed("it is an array of records, which no parameters are")
        order = state[1]
    return _plain(code.name if isinstance(code, Global) else code, isinstance(code, Global), order)


@functools.lru_cache(maxsize=256)
def _plain(code: Any, by_type: bool, order: str) -> np.dtype:
    if by_type:
        module, _, name = code.rpartition(".")
        name = _RENAMED.get(name, name)
        if module not in _SMALL_MODULES or name not in _SMALL or not hasattr(ml_dtypes, name):
            raise Malformed(f"its dtype is of the type {code}, which is neither NumPy's nor ml_dtypes'")
        found = np.dtype(getattr(ml_dtypes, name))
    else:
        code = str(code, "latin-1") if isinstance(code, bytes) else code
        if isinstance(code, str) and "O" in code[:2]:
            raise Malformed("it is an array of Python objects, which can hold anything: write it as arrays of numbers")
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            shown = repr(code)[:40] if isinstance(code, str) else type(code).__name__
            raise Malformed(f"its dtype is {shown}, and parameters are numbers")
        found = np.dtype(code)
    return found.newbyteorder(order if order in "<>" else "=")


def holds(kind: np.dtype) -> bool:
    """Whether arrays of a dtype are read."""
    return bool(_CODE.fullmatch(kind.str)) or kind.name in _SMALL


def raw_after(call: Call) -> tuple[bool, int] | None:
    """Returns of a just built object whether padding precedes the bytes that follow it, and how many those are."""
    if name_of(call.fn) != JOBLIB:
        return None
    try:
        fields = _joblib(call)
        kind = dtype(fields.get("dtype"))
        shape = _ints(fields.get("shape"), "shape")
    except Malformed:
        return None  # Whoever makes the array says so, with its place.
    return fields.get("numpy_array_alignment_bytes") is not None, math.prod(shape) * kind.itemsize


def _joblib(call: Call) -> dict[Any, Any]:
    if not isinstance(call.state, Pairs) or not all(isinstance(k, str) for k, _ in call.state.pairs):
        raise Malformed("it is no array of joblib's; the file is damaged")
    return dict(call.state.pairs)


def array(source: Source, call: Call, where: str) -> Any:
    """Returns the array that a call makes, lazy if its bytes are still in the file; a NumPy scalar from `scalar`.

    Args:
      source: The file.
      call: A call of one of the functions that this module knows.
      where: What an error calls the array.

    Raises:
      Malformed: Shape, dtype and bytes do not agree, or it is no array of numbers.
    """
    name = name_of(call.fn)
    if call.items or call.pairs:
        raise Malformed("items are added to an array; the file is damaged")
    if name in FROM_BUFFER:
        buffer, kind, shape, order, *axes = _args(call, 4, 5)
        return _from_buffer(source, where, buffer, dtype(kind), _ints(shape, "shape"), order, axes)
    if name in SCALAR:
        kind, raw = _args(call, 2)
        value = _leaf(source, where, raw, dtype(kind), ())
        return np.asarray(value)[()]
    if name == JOBLIB:
        fields = _joblib(call)
        if name_of(fields.get("subclass")) not in NDARRAY:
            raise Malformed(f"it is of NumPy's subclass {name_of(fields.get('subclass')) or 'unknown'}, not an array")
        raw = call.raw
        shape = _ints(fields.get("shape"), "shape")
        return _leaf(source, where, raw, dtype(fields.get("dtype")), shape, fields.get("order") == "F")
    if name in RECONSTRUCT:
        return _built(source, where, _args(call, 3)[0], call.state)
    fun, args, state, _ = _args(call, 4)  # JAX's, around NumPy's.
    if name_of(fun) not in RECONSTRUCT or not isinstance(args, Items) or len(args.items) != 3:
        raise Malformed("it is no JAX array around a NumPy array; the file is damaged")
    return _built(source, where, args.items[0], state)


def _built(source: Source, where: str, cls: Any, state: Any) -> Any:
    if name_of(cls) not in NDARRAY:
        raise Malformed(f"it is of NumPy's subclass {name_of(cls) or 'unknown'}, not an array")
    items = state.items if isinstance(state, Items) else []
    if len(items) == 5:
        items = items[1:]
    if len(items) != 4:
        raise Malformed("an array without content; the file is damaged")
    shape, kind, fortran, raw = items
    return _leaf(source, where, raw, dtype(kind), _ints(shape, "shape"), bool(fortran))


def _from_buffer(
    source: Source, where: str, raw: Any, kind: np.dtype, shape: tuple[int, ...], order: Any, axes: list[Any]
) -> Any:
    if order == "K" and axes and axes[0] is not None:
        to = _ints(axes[0], "order of axes")
        if sorted(to) != list(range(len(shape))):
            raise Malformed(f"its order of axes is {to} for the shape {shape}; the file is damaged")
        return _leaf(source, where, raw, kind, shape, axes=to)
    if order not in ("C", "F", "A", "K"):
        raise Malformed("its order is none of NumPy's; the file is damaged")
    return _leaf(source, where, raw, kind, shape, order == "F")


def _leaf(
    source: Source,
    where: str,
    raw: Any,
    kind: np.dtype,
    shape: tuple[int, ...],
    fortran: bool = False,
    axes: tuple[int, ...] | None = None,
) -> Any:
    """Returns the array of bytes in memory, or the lazy array of bytes in the file.

    `axes` permutes the axes of what the bytes hold in C order; Fortran order is the shape and the axes reversed.
    """
    if fortran:
        shape, axes = shape[::-1], tuple(range(len(shape)))[::-1]
    final = shape if axes is None else tuple(shape[i] for i in axes)
    raw = _bytes(raw)
    size = math.prod(shape) * kind.itemsize
    have = raw.length if isinstance(raw, Payload) else len(raw)
    if have != size and not (isinstance(raw, Payload) and raw.text and size <= have <= 2 * size):
        raise Malformed(f"{kind}{list(final)} needs {size} bytes and has {have}; the file is damaged")
    if size == 0:
        try:
            np.empty(shape, kind)  # NumPy refuses what its strides cannot count, also where it is empty.
        except ValueError:
            raise Malformed(f"NumPy has no arrays of the shape {final}; the file is damaged") from None

    native = kind.newbyteorder("=")  # As NumPy loads it; the order of bytes is the file's, not the array's.

    def arranged(flat: np.ndarray) -> np.ndarray:
        full = flat.view(kind).reshape(shape).astype(native, copy=False)
        return full if axes is None else full.transpose(axes)

    if not isinstance(raw, Payload):
        return arranged(np.frombuffer(bytearray(raw), np.uint8) if raw else np.empty(0, np.uint8))
    payload = raw
    place = source.place(payload.offset, shape, kind) if axes is None and not payload.text else None
    return LazyLeaf(
        final, native, lambda: arranged(_read(source, payload, size, where)), f"{source.path}, {where}", place
    )


def _bytes(node: Any) -> bytes | Payload:
    """Returns the bytes of a node: as they are, or encoded from the text that protocol 2 has in their place."""
    if isinstance(node, Call) and isinstance(node.args, Items):
        items, name = node.args.items, name_of(node.fn)
        if name in _BYTES and not items:
            return b""
        if name == ENCODE or name in _BYTES:
            if len(items) > 1 and items[1] not in ("latin1", "latin-1"):
                raise Malformed("its bytes are in an unknown encoding; the file is damaged")
            node = items[0] if items else None
    if isinstance(node, (bytes, Payload)):
        return node
    if isinstance(node, str):
        try:
            return node.encode("latin-1")
        except UnicodeEncodeError:
            pass
    if isinstance(node, Items):
        raise Malformed("it is an array of Python objects, which can hold anything: write it as arrays of numbers")
    raise Malformed("its content is no bytes; the file is damaged")


def encoded(node: Call) -> bytes | Payload:
    """Returns the bytes that a call of `_codecs.encode`, `bytes` or `bytearray` makes."""
    return _bytes(node)


def _read(source: Source, payload: Payload, size: int, where: str) -> np.ndarray:
    """Returns the bytes of a place in the file, as one axis."""
    byte = np.dtype(np.uint8)
    if not payload.text:
        return source.array(payload.offset, (size,), byte)
    # The text is decoded piece by piece: the array and one piece are in memory, never the text.
    out, done, decoder = np.empty(size, byte), 0, codecs.getincrementaldecoder("utf-8")()
    for start in range(0, payload.length, _PIECE):
        piece = source.array(payload.offset + start, (min(_PIECE, payload.length - start),), byte)
        try:
            part = decoder.decode(piece.data, start + _PIECE >= payload.length).encode("latin-1")
        except UnicodeError:
            raise error(source, payload.offset + start, f"{where}: its bytes are damaged.") from None
        if done + len(part) > size:
            break
        out[done : done + len(part)] = np.frombuffer(part, byte)
        done += len(part)
    else:
        if done == size:
            return out
    raise error(
        source, payload.offset, f"{where}: it does not have the {size} bytes of its shape; the file is damaged."
    )
