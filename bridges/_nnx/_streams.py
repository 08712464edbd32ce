"""The random streams of an NNX module as those of a running context: looked at for each call, advanced when one draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import nnx

from bridges.core._rng import SINGLE, Streams

_ALONE = "default"  # One stream of this name stands for all, as one seed does.


class _Next(Mapping[str, jax.Array]):
    """The next key of every stream, worked out when asked for."""

    def __init__(self, rngs: nnx.Rngs):
        # By attribute: `nnx.tabulate` puts a method of its own in the place of each of NNX's. A stream without values, in
        # a module made by `nnx.eval_shape`, is as good as none.
        streams = {name: stream for name, stream in vars(rngs).items() if isinstance(stream, nnx.RngStream)}
        given = {name: stream for name, stream in streams.items() if isinstance(stream.key.get_value(), jax.Array)}
        self.streams = {SINGLE if list(given) == [_ALONE] else name: stream for name, stream in given.items()}

    def __getitem__(self, name: str) -> jax.Array:
        stream = self.streams[name]
        return jax.random.fold_in(stream.key.get_value(), stream.count.get_value())  # As RngStream.__call__ has it.

    def __iter__(self) -> Iterator[str]:
        return iter(self.streams)

    def __len__(self) -> int:
        return len(self.streams)

    def __contains__(self, name: object) -> bool:
        return name in self.streams


class NextKeys(Streams):
    """The streams of one call, of which each starts from the next key of the NNX stream of that name.

    Args:
      rngs: The module's random streams.
    """

    __slots__ = ("source",)

    def __init__(self, rngs: nnx.Rngs):
        super().__init__({})
        self.source = _Next(rngs)
        self.keys: Any = self.source

    @classmethod
    def begun(cls, rngs: nnx.Rngs | None) -> NextKeys | None:
        """Returns the streams of a module, None if there are none."""
        streams = None if rngs is None else cls(rngs)
        return streams if streams is not None and len(streams.source) else None

    def seed(self) -> Any:
        """Returns the keys as a seed for `bridges.init`."""
        return self.source[SINGLE] if SINGLE in self.source else dict(self.source)

    def advance(self) -> None:
        """Advances the NNX streams that were drawn from: all of them, where it is not known which."""
        if not self.drawn:
            return
        asked = {stream for stream, _ in self.counters}
        drawn = {self._resolved(name) for name in asked} or set(self.source)
        for name in drawn:
            step(self.source.streams[name])

    def advance_all(self) -> None:
        """Advances every NNX stream."""
        for stream in self.source.streams.values():
            step(stream)

    def _resolved(self, name: str) -> str:
        if SINGLE in self.source:
            return SINGLE
        return next(candidate for candidate in self._fallbacks(name) if candidate in self.source)


def step(stream: nnx.RngStream) -> None:
    """Counts one draw of an NNX stream."""
    stream.count.set_value(stream.count.get_value() + 1)
