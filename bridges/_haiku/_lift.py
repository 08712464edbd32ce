"""Lift: which axes the variables of a lifted init function gain on their way out of it.

`hk.layer_stack` and `hk.lift(jax.vmap(init))` run an inner Haiku function under a JAX transformation and store what comes
out in the outer frame. Haiku does not say what the transformation did: here the shapes that the inner code asks for are
compared with those that come out. Where sizes coincide and several axes are possible, the first one is taken, as
`jax.vmap` and `hk.layer_stack` do unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bridges._haiku._tree import PARAMS, STATE
from bridges.core._spec import Stack

_Place = tuple[str, str, str]  # collection, module, leaf


class Lift:
    """One call of a lifted init function."""

    def __init__(self) -> None:
        self._inner: dict[_Place, tuple[int, ...]] = {}

    def asked(self, place: _Place, shape: Iterable[int]) -> None:
        """Notes the shape that the inner code asks for."""
        self._inner[place] = tuple(shape)

    def lifted(self, out: tuple[Any, Any], prefix: str) -> None:
        """Notes what an inner lifted function gave, under its prefix."""
        for collection, module, leaf, value in _leaves(out):
            self.asked((collection, f"{prefix}/{module}" if prefix else module, leaf), value.shape)

    def stacks(self, out: tuple[Any, Any], prefix: str, transparent: bool) -> dict[str, tuple[Stack, ...]]:
        """Returns the stacks by module path; none where nothing gained an axis.

        Args:
          out: What the lifted function gave: params and state.
          prefix: The path below which they are stored.
          transparent: Whether other modules are stored below it too, so that each of these is a stack of its own.
        """
        groups: dict[str, list[tuple[str, tuple[int, ...], tuple[int, ...] | None]]] = {}
        for collection, module, leaf, value in _leaves(out):
            if not hasattr(value, "shape"):
                return {}
            root = "/".join(p for p in (prefix, module.partition("/")[0] if transparent else "") if p)
            inner = self._inner.get((collection, module, leaf))
            groups.setdefault(root, []).append((collection, tuple(value.shape), inner))
        found = {root: _gained(leaves) for root, leaves in groups.items()}
        return {root: stacks for root, stacks in found.items() if stacks}


def _leaves(out: tuple[Any, Any]) -> Iterable[tuple[str, str, str, Any]]:
    for collection, bundle in zip((PARAMS, STATE), out, strict=True):
        for module, leaves in bundle.items():
            for leaf, value in leaves.items():
                yield collection, module, leaf, value


def _gained(leaves: list[tuple[str, tuple[int, ...], tuple[int, ...] | None]]) -> tuple[Stack, ...]:
    """Returns the stacks that explain all of these (collection, outer shape, inner shape), the outermost first."""
    known = [(collection, outer, inner) for collection, outer, inner in leaves if inner is not None]
    count = {len(outer) - len(inner) for _, outer, inner in known}
    if len(count) != 1 or count == {0}:
        return ()
    number = count.pop()
    collections = dict.fromkeys(collection for collection, *_ in leaves)
    if number < 0:
        return ()
    if number > 1:  # several transformations in one call: taken only in the order of the axes
        sizes = {outer[:number] for _, outer, inner in known if outer[number:] == inner}
        plain = all(outer[number:] == inner for _, outer, inner in known) and len(sizes) == 1
        return tuple(Stack(size, dict.fromkeys(collections, 0)) for size in sizes.pop()) if plain else ()
    axes: dict[str, int] = {}
    all_sizes: set[int] = set()
    for collection in collections:
        mine = [(outer, inner) for c, outer, inner in known if c == collection]
        possible = [a for a in range(min((len(o) for o, _ in mine), default=1)) if _fits(a, mine)]
        if not possible:
            return ()
        axes[collection] = possible[0]
        all_sizes.update(outer[possible[0]] for outer, _ in mine)
    return (Stack(all_sizes.pop(), axes),) if len(all_sizes) == 1 else ()


def _fits(axis: int, leaves: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    return all(outer[:axis] + outer[axis + 1 :] == inner for outer, inner in leaves) and (
        len({outer[axis] for outer, _ in leaves}) <= 1
    )
