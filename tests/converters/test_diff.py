"""Differences between two trees: each sort, and none where there is none."""

import jax
import jax.numpy as jnp
import numpy as np

from converters._diff import differences


def found(a, b, **kwargs):
    return {d.path: (d.what, str(d)) for d in differences(a, b, **kwargs)}


def test_every_sort_of_difference():
    x = np.linspace(0.5, 1.0, 6, dtype=np.float32).reshape(2, 3)
    near = x.copy()
    near[0, 1] = np.nextafter(near[0, 1], np.float32(2))
    a = {"same": x, "a": x, "shape": x, "dtype": x, "value": x, "step": 3, "nan": np.float32([np.nan, 1])}
    b = {"same": x.copy(), "b": x, "shape": x.T, "dtype": x.astype(np.float64), "value": near, "step": 4,
         "nan": np.float32([np.nan, np.nan])}  # fmt: skip
    assert found(a, b) == {
        "a": ("only in a", "only in a: float32[2,3]"),
        "shape": ("shape", "shape: float32[2,3] against float32[3,2]"),
        "dtype": ("dtype", "dtype: float32[2,3] against float64[2,3]"),
        "value": ("value", "1 of 6 elements of float32[2,3]; at most 5.96e-08, 1 ulp"),
        "step": ("value", "3 against 4"),
        "nan": ("value", "1 of 2 elements of float32[2]; at most nan"),
        "b": ("only in b", "only in b: float32[2,3]"),
    }
    assert found(a, b, values=False).keys() == {"a", "shape", "dtype", "step", "b"}
    assert "value" not in found(a, b, tolerance=1e-6)


def test_every_dtype_is_compared():
    key = jax.random.key(0)
    a = {
        "bf16": jnp.ones(3, jnp.bfloat16), "f8": jnp.ones(3, jnp.float8_e4m3fn), "i64": np.array([2**40]), "key": key,
        "bool": np.array([True, False]), "complex": np.array([1 + 1j]), "zero": np.float32(0), "inf": np.float32(np.inf),
        "empty": np.ones((0, 2)),
    }  # fmt: skip
    assert found(a, a) == {}
    b = {
        "bf16": a["bf16"].at[0].set(1 + 2**-7), "f8": a["f8"].at[1].set(2), "i64": np.array([2**40 + 1]),
        "bool": np.array([True, True]), "complex": np.array([1 + 1.5j]), "zero": np.float32(1e-45),
        "inf": np.float32(-np.inf), "key": jax.random.key(1), "empty": np.ones((0, 2)),
    }  # fmt: skip
    texts = found(a, b)
    assert texts.keys() == b.keys() - {"empty"}
    assert texts["bf16"][1].endswith("at most 0.00781, 1 ulp")
    assert texts["i64"][1].endswith("at most 1")
