"""Keys: identities of elements as random 64-bit numbers, whose sums say which elements a set holds, in whatever order."""

from __future__ import annotations

from typing import Any

import numpy as np

U = np.uint64


def mix(x: Any, salt: int = 0) -> np.ndarray:
    """Returns keys scrambled (splitmix64), so that sums of them collide by chance only; 0 stays 0.

    >>> mix(np.array([0, 1, 2], np.uint64)).tolist()[0]
    0
    """
    x = np.asarray(x, U)
    with np.errstate(over="ignore"):
        z = x + U(salt * 0x9E3779B97F4A7C15 % 2**64)
        z = (z ^ (z >> U(30))) * U(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> U(27))) * U(0x94D049BB133111EB)
        z = z ^ (z >> U(31))
    return np.where(x == 0, U(0), z)


def total(keys: np.ndarray, axis: int | tuple[int, ...] | None = None) -> Any:
    """Returns the sum, modulo 2**64."""
    with np.errstate(over="ignore"):
        return np.sum(keys, axis=axis, dtype=U)


def fresh(start: int, shape: tuple[int, ...]) -> np.ndarray:
    """Returns keys that nobody else has, one an element, for a start that nobody else has."""
    size = int(np.prod(shape))
    return mix(np.arange(start + 1, start + 1 + size, dtype=U).reshape(shape), 1)


def of_number(x: Any) -> np.ndarray:
    """Returns keys of numbers by what they are, to six digits; 0 for zero."""
    if np.iscomplexobj(x):
        with np.errstate(over="ignore"):
            return of_number(np.real(x)) + mix(of_number(np.imag(x)), 61)
    x = np.asarray(x, np.float64)
    with np.errstate(all="ignore"):
        size = np.floor(np.log10(np.abs(np.where(np.isfinite(x) & (x != 0), x, 1.0))))
        digits = np.round(np.where(np.isfinite(x), x, 7.7) / 10.0 ** (size - 5))
    code = (digits.astype(np.int64) * 1009 + size.astype(np.int64)).astype(U)
    return np.where(x == 0, U(0), mix(code + U(1), 2))
