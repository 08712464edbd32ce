"""Where the random keys of a Linen call come from: the host's streams, or the caller.

One seed becomes the stream `params`, which Linen falls back to for every other. Streams given by name are passed by name.
A call that turns out to draw nothing leaves the host's streams as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from flax.errors import InvalidRngError

from bridges._linen._call import abstract_key
from bridges._linen._observe import missing_stream
from bridges.core._context import Context
from bridges.core._errors import LeakError, SeedError
from bridges.core._rng import as_key


class Keys:
    """Keys that the caller gives, as for `Module.apply`.

    Args:
      rngs: A key, keys by stream, or None. An integer is taken for the key that is made of it.
    """

    def __init__(self, rngs: Any):
        given = rngs if isinstance(rngs, Mapping) else {} if rngs is None else {"params": rngs}
        self.rngs: dict[str, Any] | None = {name: _key(key) for name, key in given.items()} or None

    def initial(self) -> Any:
        """Returns the keys for `init`."""
        return self.rngs or {}

    def draw(self, wanted: frozenset[str] | None) -> dict[str, Any] | None:
        """Returns the keys for one call: of the streams wanted, or of all (None)."""
        return self.rngs

    def abstract(self, wanted: frozenset[str] | None = None) -> dict[str, Any] | None:
        """Returns what stands for the keys that `draw` gives where nothing is computed."""
        return dict.fromkeys(self.rngs, abstract_key()) if self.rngs else None

    @property
    def metered(self) -> bool:
        """Whether it matters which keys are drawn."""
        return False

    @property
    def free(self) -> bool:
        """Whether keys may be drawn here that the call may turn out not to need."""
        return True

    @contextmanager
    def trial(self) -> Iterator[Callable[[frozenset[str]], None]]:
        """Yields what takes back the draws of all streams but those used, for a call whose streams are not known yet."""
        yield lambda used: None

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raises a `SeedError` in place of Linen's error about a stream that it has no key for."""
        try:
            yield
        except InvalidRngError as err:
            stream = missing_stream(err)
            raise SeedError(self.lacks(stream)) from err

    def lacks(self, stream: str) -> str:
        """Returns the text of the error about a stream that there is no key for."""
        return f"The module draws from the random stream {stream!r}, and rngs= has none: pass rngs={{{stream!r}: key}}."


def _key(key: Any) -> Any:
    return as_key(key) if isinstance(key, (int, np.integer)) else key


class HostKeys(Keys):
    """Keys from the streams of the running context.

    Args:
      ctx: The context.
      where: The path of the module that draws.
    """

    def __init__(self, ctx: Context, where: str):
        self.ctx, self.where = ctx, where

    def _names(self) -> tuple[str, ...]:
        names = self.ctx.streams_given
        return (*names, "params") if "default" in names and "params" not in names else names

    def initial(self) -> Any:
        """Returns the keys for `init`: the seed itself where the wrapper is the whole model."""
        if not self.ctx.has_seed:
            return {}
        names = self._names()
        if not names:
            return self.ctx.init_key(self.where)
        return {name: self.ctx.init_key(self.where, name) for name in names}

    def draw(self, wanted: frozenset[str] | None) -> dict[str, Any] | None:
        return {name: self.ctx.draw(name, self.where) for name in self._chosen(wanted)} or None

    def abstract(self, wanted: frozenset[str] | None = None) -> dict[str, Any] | None:
        return dict.fromkeys(self._chosen(wanted), abstract_key()) or None

    @property
    def metered(self) -> bool:
        return self.ctx.has_seed

    @property
    def free(self) -> bool:
        try:  # Not in a plain JAX transformation: only what draws nothing may run there.
            self.ctx.check_trace(f"draw a random key at {self.where!r}")
        except LeakError:
            return not self.ctx.has_seed
        return True

    def _chosen(self, wanted: frozenset[str] | None) -> list[str]:
        """Returns which of the streams given serve those wanted; `params` is what Linen falls back to."""
        if not self.ctx.has_seed:
            return []
        names = self._names() or ("params",)
        if wanted is None:
            return list(names)
        chosen = {name if name in names else "params" for name in wanted}
        return [name for name in names if name in chosen]

    @contextmanager
    def trial(self) -> Iterator[Callable[[frozenset[str]], None]]:
        streams = self.ctx.streams
        before = dict(streams.counters) if streams is not None else {}
        drawn = streams is not None and streams.drawn

        def release(used: frozenset[str]) -> None:
            if streams is None:
                return
            kept = self._chosen(used)
            for key in [k for k in streams.counters if k[1] == self.where and k[0] not in kept]:
                if key in before:
                    streams.counters[key] = before[key]
                else:
                    del streams.counters[key]
            streams.drawn = drawn or bool(used)

        yield release

    def lacks(self, stream: str) -> str:
        given = f"seed= gives only {sorted(self.ctx.streams_given)}" if self.ctx.has_seed else "no seed was given"
        return (
            f"The Linen module at {self.where!r} draws from the random stream {stream!r}, and {given}. Pass seed=0, a key,"
            f" or a dictionary of streams, seed={{{stream!r}: 0}}, to the pure function."
        )
