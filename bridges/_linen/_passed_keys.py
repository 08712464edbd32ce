"""Keys of a Linen scope for the random streams that an NNX part keeps: passed in at each call, as `nnx.reseed` does.

A stream that there is no key for gets one that nobody may draw with; whether it was drawn from shows in its count. (Cells
of NNX draw a key for a carry of zeros: what nothing is computed from is no draw.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges._host._host import Host
from bridges._linen._scope_keys import ScopeStreams
from bridges.core._context import Context


class PassedKeys:
    """The entries of the random streams that an NNX part keeps, for one call.

    Args:
      host: The part.
      streams: The streams of the scope.

    Attributes:
      paths: The paths of the entries.
    """

    def __init__(self, host: Host, streams: ScopeStreams | None):
        self.host, self.streams = host, streams
        self.kept = host.module._memory.kept_streams(() if streams is None else streams.source.names.values())
        self.paths = {host.inner(path) for stream in self.kept for path in (stream.key, stream.count)}
        self.sources = {s.count: None if streams is None else streams.resolved(s.tag) for s in self.kept}

    def entries(self) -> dict[str, Any]:
        """Returns the entries, with the keys of this call."""
        made: dict[str, Any] = {}
        counts: dict[str, int] = {}
        for stream in self.kept:
            name = self.sources[stream.count]
            if name is None or self.streams is None:
                key = _nobodys(stream.shape)
            else:
                count = counts[name] = counts.get(name, -1) + 1
                key = jax.random.fold_in(_typed(self.streams.source[name]), count)  # As nnx.reseed draws.
                key = jax.random.split(key, stream.shape) if stream.shape else key
            made[self.host.inner(stream.key)] = key
            with jax.ensure_compile_time_eval():
                made[self.host.inner(stream.count)] = jnp.zeros(stream.shape, np.uint32)
        return made

    def drawn(self, ctx: Context) -> list[Any]:
        """Returns the streams that a call has drawn from."""
        return [stream for stream in self.kept if self.host.inner(stream.count) in ctx.modified]

    def lacking(self, drawn: Iterable[Any]) -> list[Any]:
        """Returns those of the streams drawn from that there is no key for."""
        return [stream for stream in drawn if self.sources[stream.count] is None]

    def named(self, drawn: Iterable[Any]) -> dict[str, str]:
        """Returns the streams drawn from: their names in NNX -> the streams of the scope."""
        return {s.tag: name for s in drawn if (name := self.sources[s.count]) is not None}


def _typed(key: Any) -> Any:
    """Returns a key as `nnx.Rngs` holds it: a typed one."""
    return key if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _nobodys(shape: tuple[int, ...]) -> Any:
    """Returns what stands for the key of a stream that nothing may draw from."""
    with jax.ensure_compile_time_eval():
        key = jax.random.key(0)
        return jax.random.split(key, shape) if shape else key
