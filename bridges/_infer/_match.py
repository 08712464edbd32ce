"""Match: which values of one graph are values of another, whatever their layout.

Two arrays are the same up to layout when their sorted elements agree: a transposed, reshaped or otherwise rearranged array
matches, another array does not. A constant array matches by being constant, since it says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from bridges._infer._graph import Graph

_HUGE = 1e15
_WHOLE = 1 << 16  # up to so many elements are sorted; of larger arrays five sums are compared


class Match:
    """The values of a graph, to be found by content.

    Args:
      graph: The graph whose values can be found.
      relative: How far elements may be apart, as a part of the largest.
    """

    def __init__(self, graph: Graph, relative: float):
        self.relative = relative
        self._found: dict[int, list[tuple[np.ndarray, int]]] = {}
        self._values = graph.values
        for v, value in enumerate(graph.values):
            if informative(value):
                self._found.setdefault(np.size(value), []).append((sums(value), v))
        self._table = {n: np.stack([s for s, _ in rows]) for n, rows in self._found.items()}
        self._sorted: dict[int, np.ndarray] = {}

    def find(self, value: Any) -> list[int]:
        """Returns the numbers of the graph's values with these elements."""
        n = np.size(value)
        if n not in self._table or not informative(value):
            return []
        mine = sums(value)
        size = np.array([n, n, 1, 1, mine[1] + 1e-300, 0]) * max(mine[2], -mine[3], 1e-300)
        near = np.flatnonzero(np.all(np.abs(self._table[n] - mine) <= 4 * self.relative * size, axis=1))
        rows = [self._found[n][i][1] for i in near]
        if n > _WHOLE:
            return rows
        flat = np.sort(_flat(value))
        allowed = self.relative * np.where(np.abs(flat) < _HUGE, size[2], np.abs(flat))
        return [v for v in rows if _within(self._order(v), flat, allowed)]

    def has(self, value: Any) -> bool:
        """Whether the value is one of the graph's, or says nothing."""
        return not informative(value) or bool(self.find(value))

    def _order(self, v: int) -> np.ndarray:
        if v not in self._sorted:
            self._sorted[v] = np.sort(_flat(self._values[v]))
        return self._sorted[v]


def _flat(x: Any) -> np.ndarray:
    x = np.ravel(np.asarray(x))
    return np.abs(x).astype(np.float64) if np.iscomplexobj(x) else x.astype(np.float64)


def informative(x: Any) -> bool:
    """Whether an array holds numbers that are finite and not all the same; a single one counts if it is real."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) or x.dtype == bool or not np.size(x):
        return False
    flat = _flat(x)
    if not np.all(np.isfinite(flat)):
        return True
    return bool(flat[0] != 0 if flat.size == 1 else np.ptp(flat) > 0)


def sums(x: Any) -> np.ndarray:
    """Returns the sum, the sum of sizes, the maximum, the minimum, the sum of squares, and how many are huge.

    What is huge or no number (what masks put in the place of a value) is counted, and is 0 for the others.
    """
    x = _flat(x)
    if not x.size:
        return np.zeros(6)
    usual = np.where(np.abs(x) < _HUGE, x, 0.0)
    huge = float(x.size - np.count_nonzero(np.abs(x) < _HUGE))
    return np.array([usual.sum(), np.abs(usual).sum(), usual.max(), usual.min(), (usual * usual).sum(), huge])


def _within(a: np.ndarray, b: np.ndarray, allowed: np.ndarray) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(np.all((a == b) | (np.abs(a - b) <= allowed)))


def broken(graph: Graph, match: Match, outs: Iterable[int], values: Any = None) -> set[int]:
    """Returns the values that carry the difference: those from which outputs are reached without passing a match.

    Args:
      graph: The target's graph.
      match: The source's values.
      outs: The outputs that differ.
      values: Values to use in place of the graph's own.
    """
    values = graph.values if values is None else values
    found = set(outs)
    for step in reversed(graph.steps):
        if not any(v in found for v in step.outs):
            continue
        found.update(v for v in step.ins if graph.data[v] and v not in found and not match.has(values[v]))
    return found


def origin(graph: Graph, carriers: set[int]) -> int | None:
    """Returns the first step that makes a carrier of the difference from data that carries none."""
    for i, step in enumerate(graph.steps):
        if any(v in carriers for v in step.outs) and not any(v in carriers for v in step.ins if graph.data[v]):
            return i
    return None
