"""The random streams of a Linen scope as those of a running context.

The first call in a scope gets the stream's key as it is (folded with the scope's path, as Linen folds it, and with nothing
at the top): so the initial values of a wrapped model are those of its own initialisation with the same key. Each further
call gets what the next `make_rng` would give. The scope's counters advance where a call has drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.core.scope import LazyRng

from bridges.core._rng import SINGLE, Streams

_ALONE = "params"  # One key, as in `init(key, x)`, is the stream `params`, and stands for all.


class _Keys(Mapping[str, jax.Array]):
    """The key of every stream, worked out when asked for."""

    def __init__(self, scope: Any):
        self._scope = scope
        names = list(scope.rngs)
        self.names = {SINGLE if names == [_ALONE] else name: name for name in names}
        self._made: dict[str, jax.Array] = {}

    def __getitem__(self, name: str) -> jax.Array:
        stream = self.names[name]
        if stream not in self._made:
            count = self._scope.rng_counters[stream]
            lazy = self._scope.rngs[stream]
            self._made[stream] = (LazyRng.create(lazy, count + 1) if count else lazy).as_jax_rng()
        return self._made[stream]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names


class ScopeStreams(Streams):
    """The streams of one call.

    Args:
      module: A bound module.
    """

    __slots__ = ("module", "source")

    def __init__(self, module: nn.Module):
        super().__init__({})
        self.module = module
        self.source = _Keys(module.scope)
        self.keys: Any = self.source

    @classmethod
    def begun(cls, module: nn.Module) -> ScopeStreams | None:
        """Returns the streams of a bound module's scope, None if it has none."""
        streams = cls(module)
        return streams if len(streams.source) else None

    @staticmethod
    def _fallbacks(name: str) -> Iterable[str]:
        return (name, "default", _ALONE)  # As Linen falls back.

    def resolved(self, name: str) -> str | None:
        """Returns which of the streams given stands for one, None if none does."""
        if SINGLE in self.source:
            return SINGLE
        given = [n for n in self.source if n != _ALONE]
        if name == "default" and name not in self.source and len(given) == 1:
            return given[0]
        return next((candidate for candidate in self._fallbacks(name) if candidate in self.source), None)

    def advance(self, drawn: Mapping[str, str]) -> None:
        """Advances the scope's counters of the streams that were drawn from.

        Args:
          drawn: Streams that were drawn from beside those that the context knows of: the name that was asked for -> the
            one that `resolved` gives.
        """
        asked = {stream: self.resolved(stream) for stream, _ in self.counters}
        if self.drawn and not asked:
            asked = {name: name for name in self.source}
        for name in asked.keys() | drawn.keys():
            self.module.has_rng(name or _ALONE)  # So that who watches the module (nn.intercept_methods) sees it ask.
        for resolved in sorted({name for name in (*asked.values(), *drawn.values()) if name is not None}):
            self.module.scope.rng_counters[self.source.names[resolved]] += 1  # type: ignore[union-attr]
