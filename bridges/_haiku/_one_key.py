"""The random streams of a hosted part: one key of the Haiku function that runs, drawn when something is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from bridges.core._rng import SINGLE, Streams


class OneKey(Streams):
    """Streams of one seed, which is not known until it is needed.

    Args:
      draw: Gives the seed; called at most once.
      counters: As for `Streams`.
    """

    __slots__ = ("_draw",)

    def __init__(self, draw: Callable[[], jax.Array], counters: Mapping[tuple[str, str], int] | None = None):
        self.counters = dict(counters or {})
        self.drawn = False
        self._bases = {}
        self._draw = draw

    @property
    def keys(self) -> dict[str, jax.Array]:  # type: ignore[override]
        """The seed; whoever asks for it has it drawn."""
        return {SINGLE: self._draw()}

    @property
    def named(self) -> tuple[str, ...]:
        """No names: there is a single seed."""
        return ()

    def fork(self, keys: Mapping[str, jax.Array] | None = None) -> Streams:
        """Returns streams for an inner trace, as `Streams.fork`; the seed is the same one, still not drawn."""
        return OneKey(self._draw, self.counters) if keys is None else Streams(keys)


def once(sequence: Any) -> Callable[[], jax.Array]:
    """Returns a function that gives the next key of a sequence, and the same one every time."""
    drawn: list[jax.Array] = []

    def key() -> jax.Array:
        if not drawn:
            drawn.append(next(sequence))
        return drawn[0]

    return key
