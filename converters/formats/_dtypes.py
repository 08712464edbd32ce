"""The dtypes that NumPy has no letters for, by name."""

from __future__ import annotations

import ml_dtypes
import numpy as np

# What a file may name. A name is looked up here and never given to NumPy, which takes names for whole languages.
EXTENDED: dict[str, np.dtype] = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        "bfloat16 float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz"
        " float8_e8m0fnu float6_e2m3fn float6_e3m2fn float4_e2m1fn int2 int4 uint2 uint4"
    ).split()
}

PLAIN: dict[str, np.dtype] = {
    name: np.dtype(name)
    for name in (
        "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
    ).split()
}
