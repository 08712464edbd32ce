"""Arrays that readers and writers get wrong, one table for the tests of all formats.

`ARRAYS` has NumPy's own dtypes, `EXTENDED` those of ml_dtypes, `STRIDED` memory that is not row after row. Compare with
`same`, which looks at the bits: NaNs, signed zeros and dtypes count.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import ml_dtypes
import numpy as np


def _some(dtype: Any, shape: tuple[int, ...] = (2, 3), seed: int = 0) -> np.ndarray:
    """Returns random bits of a dtype, so every pattern (NaN, infinity, denormal) can occur."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape))
    if dtype == np.bool_:
        return np.random.default_rng(seed).integers(0, 2, shape).astype(bool)
    if dtype in SMALL.values():  # not every byte is one of their values
        return (np.arange(size) % 2).reshape(shape).astype(dtype)
    return np.frombuffer(np.random.default_rng(seed).bytes(size * dtype.itemsize), dtype).reshape(shape)


SMALL: dict[str, np.dtype] = {
    name: np.dtype(getattr(ml_dtypes, name)) for name in "int2 int4 uint2 uint4 float4_e2m1fn float6_e2m3fn".split()
}

_NAMES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128".split()

ARRAYS: dict[str, np.ndarray] = {
    **{name: _some(name) for name in _NAMES},
    "empty": np.zeros((0, 3), np.float32),
    "empty inside": np.zeros((2, 0, 3), np.int8),
    "no axes": np.array(1.5, np.float32),
    "one": np.ones((1, 1, 1), np.float64),
    "many axes": np.arange(2**7, dtype=np.int16).reshape((2,) * 7),
    "limits": np.array([np.finfo(np.float64).max, np.finfo(np.float64).tiny, -0.0, np.inf, np.nan]),
    "beyond float": np.array([2**63 - 1, -(2**63), 2**53 + 1], np.int64),
}

EXTENDED: dict[str, np.ndarray] = {
    **{
        name: _some(getattr(ml_dtypes, name))
        for name in "bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu".split()
    },
    "bfloat16 no axes": np.array(3.0, ml_dtypes.bfloat16),
    "bfloat16 empty": np.zeros((3, 0), ml_dtypes.bfloat16),
    "float8_e3m4": _some(ml_dtypes.float8_e3m4),
    "float8_e4m3": _some(ml_dtypes.float8_e4m3),
    "float8_e4m3b11fnuz": _some(ml_dtypes.float8_e4m3b11fnuz),
    **{name: _some(dtype) for name, dtype in SMALL.items()},
}

STRIDED: dict[str, np.ndarray] = {
    "transposed": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "fortran": np.asfortranarray(np.arange(24, dtype=np.int32).reshape(2, 3, 4)),
    "middle axis moved": np.moveaxis(np.arange(24.0).reshape(2, 3, 4), 1, 0),
    "every other": np.arange(20, dtype=np.int16)[::2],
    "backwards": np.arange(5, dtype=np.float64)[::-1],
    "broadcast": np.broadcast_to(np.float32(7), (3, 2)),
    "column": np.arange(12, dtype=np.uint8).reshape(3, 4)[:, 1],
    "big endian": np.arange(6, dtype=">f4").reshape(2, 3),
    "big endian, transposed": np.arange(6, dtype=">i8").reshape(2, 3).T,
    "unaligned": np.frombuffer(b"\0" + np.arange(4, dtype="<f8").tobytes(), np.float64, 4, offset=1),
    "bfloat16 transposed": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16).T,
    "read only": np.frombuffer(np.arange(4, dtype="<i4").tobytes(), np.int32),
}


def same(left: Any, right: Any) -> bool:
    """Whether two values have the same shape, dtype (byte order aside) and bits."""
    a, b = (np.asarray(x) for x in (left, right))
    a, b = (x.astype(x.dtype.newbyteorder("=")) for x in (a, b))
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def assert_same(left: Any, right: Any) -> None:
    """Asserts that two trees have the same structure, and `same` leaves; None is a leaf."""
    (paths, treedef), (others, other) = (
        jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None) for tree in (left, right)
    )
    assert treedef == other, f"{treedef} is not {other}"
    for (path, a), (_, b) in itertools.zip_longest(paths, others):
        name = jax.tree_util.keystr(path)
        assert (a is None) == (b is None), name
        assert a is None or same(a, b), f"{name}: {a!r} is not {b!r}"
