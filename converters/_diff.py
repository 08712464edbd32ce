"""Difference: two trees of leaves compared path by path, structure first, then values, one pair of leaves in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges.core._errors import describe
from converters.formats import read_leaf


@dataclasses.dataclass(frozen=True)
class Difference:
    """What differs at one path.

    Attributes:
      path: Where.
      what: `'only in a'`, `'only in b'`, `'shape'`, `'dtype'` or `'value'`.
      a, b: What is there: dtype and shape, or a plain value.
      count: How many elements differ, of `size`.
      largest: The largest absolute difference; NaN where one is NaN and the other is not.
      ulps: The same in units in the last place of the coarser dtype, for floats.
    """

    path: str
    what: str
    a: str = ""
    b: str = ""
    count: int = 0
    size: int = 0
    largest: float = 0.0
    ulps: float = 0.0

    def __str__(self) -> str:
        if self.what in ("only in a", "only in b"):
            return f"{self.what}: {self.a or self.b}"
        if self.what in ("shape", "dtype"):
            return f"{self.what}: {self.a} against {self.b}"
        if not self.size:
            return f"{self.a} against {self.b}"
        ulps = f", {self.ulps:.3g} ulp" if self.ulps else ""
        return f"{self.count} of {self.size} elements of {self.a}; at most {self.largest:.3g}{ulps}"


def differences(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    values: bool = True,
    tolerance: float = 0.0,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Difference]:
    """Yields every difference between two flat trees, in the order of `a`, then what only `b` has.

    Args:
      a: Path -> leaf: arrays, `LazyLeaf`s (read one at a time) or plain values.
      b: The same.
      values: Whether to compare values, too.
      tolerance: How far apart two numbers may be, relative to the largest of the array, to count as equal. With 0, they
        must be equal, bit patterns of NaN aside.
      progress: Called with the number of bytes of each leaf that was compared.
    """
    for path, x in a.items():
        if path not in b:
            yield Difference(path, "only in a", a=_text(x))
            continue
        y = b[path]
        if not (_is_array(x) and _is_array(y)):
            if _is_array(x) != _is_array(y) or type(x) is not type(y) or x != y:
                yield Difference(path, "value", _text(x), _text(y))
            continue
        if tuple(x.shape) != tuple(y.shape):
            yield Difference(path, "shape", describe(x), describe(y))
        elif x.dtype != y.dtype:
            yield Difference(path, "dtype", describe(x), describe(y))
        elif values and (found := _compared(path, x, y, tolerance)):
            yield found
        if progress:
            progress(x.dtype.itemsize * int(np.prod(x.shape, dtype=np.int64)))
    for path, y in b.items():
        if path not in a:
            yield Difference(path, "only in b", b=_text(y))


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _text(x: Any) -> str:
    return describe(x) if _is_array(x) else repr(x)


def _compared(path: str, x: Any, y: Any, tolerance: float) -> Difference | None:
    p, q = (_values(v) for v in (x, y))
    wide = np.result_type(p.dtype, np.float32) if jnp.issubdtype(p.dtype, jnp.floating) else p.dtype
    unlike = (p != q) & ~((p != p) & (q != q))
    if not unlike.any():
        return None
    if not jnp.issubdtype(p.dtype, jnp.number):
        return Difference(path, "value", describe(x), describe(y), int(unlike.sum()), p.size)
    if jnp.issubdtype(p.dtype, jnp.integer):
        wide = np.dtype(np.float64)
    p, q = p[unlike].astype(wide), q[unlike].astype(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = np.abs(p - q)
        top = max(float(np.max(np.abs(v), where=np.isfinite(v), initial=0)) for v in (p, q))
    far = ~(gaps <= tolerance * top)
    if not far.any():
        return None
    largest = float(np.max(gaps[far])) if not np.isnan(gaps).any() else float("nan")
    ulps = 0.0
    if jnp.issubdtype(x.dtype, jnp.floating) and np.isfinite(largest):
        least = np.maximum(np.maximum(np.abs(p), np.abs(q))[far], float(jnp.finfo(x.dtype).tiny))
        spacing = np.exp2(np.floor(np.log2(least))) * float(jnp.finfo(x.dtype).eps)
        ulps = float(np.max(gaps[far] / spacing))
    return Difference(path, "value", describe(x), describe(y), int(far.sum()), int(unlike.size), largest, ulps)


def _values(x: Any) -> np.ndarray:
    x = read_leaf(x)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.atleast_1d(np.asarray(x))
