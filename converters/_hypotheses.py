"""Hypotheses about variables: what may have been done wrong to the leaves of a layer, as data to be tried.

Each is a text and the leaves as they would be had it been done right. Nothing here decides: `_reason.py` runs them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bridges._infer._arrays import is_real

Trial = tuple[str, dict[str, np.ndarray]]
_MOST_BLOCKS = 4


def of_leaves(
    layer: Sequence[str], variables: Mapping[str, Any], source: Mapping[str, Any], made_of: Mapping[str, Sequence[str]]
) -> Iterator[Trial]:
    """Yields what may be wrong with the leaves of a layer, the likeliest first.

    Args:
      layer: The target's variables of the layer.
      variables: All of the target's variables.
      source: All of the source's.
      made_of: The source's variables of each one of the target.
    """
    real = {p: np.asarray(x) for p, x in variables.items() if is_real(x)}
    mine = {p: real[p] for p in layer if p in real}
    for path, x in mine.items():
        for text, y in _rearranged(x):
            yield f"{path!r} is {text}", {path: y}
    for path, x in mine.items():
        for text, y in _offset(x):
            yield f"{path!r} {text}", {path: y}
    yield from _gates(mine)
    yield from _siblings(mine)
    yield from _layers(mine, real)
    for path, x in mine.items():
        for other, y in real.items():
            if other != path and x.shape == y.shape and (other not in mine or other > path):
                yield f"{path!r} and {other!r} are exchanged", {path: y, other: x}
    for path, x in mine.items():
        for other, y in source.items():
            if not is_real(y) or np.size(y) != x.size or other in made_of.get(path, ()):
                continue
            for text, z in _fitted(np.asarray(y), x.shape):
                was = " and ".join(map(repr, made_of.get(path, ()))) or "nothing of the source"
                yield f"{path!r} should hold the source's {other!r}{text}; it holds what was made of {was}", {path: z}
    for path, x in mine.items():
        for text, y in _headed(x):
            yield f"{path!r} {text}", {path: y}


def _rearranged(x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if x.ndim == 2 and x.shape[0] == x.shape[1]:
        yield "transposed", x.T
    if x.ndim > 2:
        axes = tuple(range(x.ndim - 2))
        flipped = np.flip(x, axes)
        if any(x.shape[i] > 1 for i in axes):
            yield "flipped along its spatial axes", flipped
        if x.shape[-1] == x.shape[-2]:
            yield "transposed in its last two axes", np.swapaxes(x, -1, -2)
            yield "flipped along its spatial axes and transposed in its last two", np.swapaxes(flipped, -1, -2)
        if x.shape[0] == x.shape[1] > 1:
            yield "transposed in its first two axes", np.swapaxes(x, 0, 1)
    yield "of the wrong sign", -x


def _offset(x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """One is added to a forget gate's bias by some frameworks and not by others."""
    for sign, text in ((1, "lacks an added 1"), (-1, "has a 1 added that it should not")):
        yield text, x + sign
        for n in (4, 3):
            if x.ndim == 1 and x.size % n == 0 and x.size > n:
                for i in range(n):
                    y = x.copy()
                    y[i * x.size // n : (i + 1) * x.size // n] += sign
                    yield f"{text} in block {i} of {n} (a gate)", y


def _gates(mine: Mapping[str, np.ndarray]) -> Iterator[Trial]:
    """Gates that lie in blocks along the last axis, of all leaves of the layer or of one."""
    groups: list[tuple[str, ...]] = [tuple(mine), *((p,) for p in mine if len(mine) > 1)]
    for group in groups:
        for n in range(2, _MOST_BLOCKS + 1):
            if not all(mine[p].ndim and mine[p].shape[-1] % n == 0 and mine[p].shape[-1] > n for p in group):
                continue
            for order in itertools.permutations(range(n)):
                if order != tuple(range(n)):
                    blocks = {p: np.split(mine[p], n, -1) for p in group}
                    text = " and ".join(map(repr, group))
                    yield (
                        f"the {n} blocks (gates) of {text} are in a wrong order: they should come as {list(order)}",
                        {p: np.concatenate([blocks[p][i] for i in order], -1) for p in group},
                    )


def _siblings(mine: Mapping[str, np.ndarray]) -> Iterator[Trial]:
    """Parts of a layer that are exchanged with all their leaves: query and key, or the gates `ii`, `hi` and `if`, `hf`."""
    parts: dict[str, dict[str, str]] = {}
    for path in mine:
        parents, _, leaf = path.rpartition("/")
        parts.setdefault(parents, {})[leaf] = path
    for a, b in itertools.combinations(parts, 2):
        if parts[a].keys() == parts[b].keys() and len(parts[a]) > 1:
            yield from _exchange(mine, [(parts[a][k], parts[b][k]) for k in parts[a]], f"{a!r} and {b!r}")
    gates: dict[str, dict[str, str]] = {}  # by the last letter of the module's name: what of it has which path
    for parents, leaves in parts.items():
        name = parents.rpartition("/")[2].rstrip("_")
        if len(name) == 2:
            gates.setdefault(name[1], {}).update({f"{name[0]}/{leaf}": path for leaf, path in leaves.items()})
    for a, b in itertools.combinations(gates, 2):
        if gates[a].keys() == gates[b].keys():
            yield from _exchange(mine, [(gates[a][k], gates[b][k]) for k in gates[a]], f"the gates {a!r} and {b!r}")


def _layers(mine: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray]) -> Iterator[Trial]:
    """The layer and another of the same leaves and shapes are exchanged."""
    first = min(mine, default="")
    above = first.split("/")[:-1]
    while above and not all(p.startswith("/".join(above) + "/") for p in mine):
        above.pop()
    if not above:
        return
    name = "/".join(above)
    end = first[len(name) :]
    for path in real:
        other = path.removesuffix(end)
        if other in (path, name) or other.startswith(name + "/"):
            continue
        pairs = [(p, other + p[len(name) :]) for p in mine]
        if len(mine) > 1 and all(q in real and q not in mine and real[q].shape == mine[p].shape for p, q in pairs):
            a, b = ("/".join(n.split("/")[1:]) for n in (name, other))
            yield f"{a!r} and {b!r} are exchanged", {p: real[q] for pair in pairs for p, q in (pair, pair[::-1])}


def _exchange(mine: Mapping[str, np.ndarray], pairs: Sequence[tuple[str, str]], text: str) -> Iterator[Trial]:
    if all(mine[p].shape == mine[q].shape for p, q in pairs):
        yield f"{text} are exchanged", {p: mine[q] for pair in pairs for p, q in (pair, pair[::-1])}


def _headed(x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Heads and features of a head in the wrong order: [in, heads · size] read as [in, size · heads]."""
    if x.ndim > 1 and x.shape[-1] > 1 and x.shape[-2] > 1:
        swapped = np.swapaxes(x, -1, -2).reshape(x.shape)
        yield "was reshaped in the wrong order of its last two axes", swapped
        if x.ndim > 2:
            *head, n, k = x.shape
            yield "was reshaped in the wrong order of heads", np.swapaxes(x.reshape(*head, k, n), -1, -2)
    for n in (2, 3, 4, 8) if x.ndim and x.shape[-1] > 3 else ():
        if x.shape[-1] % n == 0 and x.shape[-1] != n:
            y = x.reshape(*x.shape[:-1], n, -1)
            yield f"was reshaped in the wrong order of {n} heads", np.swapaxes(y, -1, -2).reshape(x.shape)


def _fitted(y: np.ndarray, shape: tuple[int, ...]) -> Iterable[tuple[str, np.ndarray]]:
    yield "", y.reshape(shape)
    if y.ndim == 2 and y.T.shape == shape:
        yield " (transposed)", y.T
