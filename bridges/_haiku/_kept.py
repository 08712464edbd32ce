"""The random streams that an NNX part keeps: no state in Haiku, which passes its keys in, but made anew for each call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bridges._host._host import Host
from bridges.core import RngState, State
from bridges.core._context import Context
from bridges.core._errors import SeedError
from bridges.core._frame import Frame, enter

Open = Callable[[State], Context]  # Returns a context over entries, without streams.


class Kept:
    """The streams of one part.

    Args:
      host: The part; only one of NNX keeps any.

    Attributes:
      paths: The paths of their entries in the running context.
    """

    def __init__(self, host: Host):
        streams = host.module._memory.kept_streams(None) if host.framework == "flax.nnx" else ()
        self.keys = [(host.inner(stream.key), stream.shape, stream.tag) for stream in streams]
        self.counts = [(host.inner(stream.count), stream.shape, stream.tag) for stream in streams]
        self.paths = {path for path, _, _ in (*self.keys, *self.counts)}

    def entries(self, seed: jax.Array | None) -> State:
        """Returns the entries as `nnx.reseed` would set them: the n-th key is the seed folded with n, every count nought.

        With no seed they are such that only a call that draws nothing has use for them.
        """
        with jax.ensure_compile_time_eval():
            blank = jax.random.key(0)
            values: dict[str, Any] = {path: jnp.zeros(shape, jnp.uint32) for path, shape, _ in self.counts}
        if seed is not None and not jax.dtypes.issubdtype(seed.dtype, jax.dtypes.prng_key):
            seed = jax.random.wrap_key_data(seed)
        for n, (path, shape, _) in enumerate(self.keys):
            key = blank if seed is None else jax.random.fold_in(seed, n)
            values[path] = jax.random.split(key, shape) if shape else key
        kinds = {path: RngState(collection="RngKey", tag=tag) for path, _, tag in self.keys}
        kinds |= {path: RngState(collection="RngCount", tag=tag) for path, _, tag in self.counts}
        return State(values, kinds)

    def drawn(self, ctx: Context) -> list[str]:
        """Returns the paths of the counts that a call has advanced."""
        return [path for path, _, _ in self.counts if path in ctx.modified]

    def draws(self, entries: Mapping[str, Any], opened: Open, run: Callable[[], Any]) -> bool:
        """Returns whether a call draws from them, found out in abstract; True where it cannot be."""
        found: list[bool] = []

        def trial(entries: dict[str, Any]) -> None:
            ctx = opened(State(entries) | self.entries(None))
            with enter(Frame(ctx, None)):
                run()
            found.append(bool(self.drawn(ctx)))

        try:
            jax.eval_shape(trial, dict(entries))
        except Exception:  # The call itself will say what is wrong with it.
            return True
        return found[-1]

    def refuse(self, ctx: Context) -> None:
        """Raises a `SeedError` if a call has drawn where there was no key."""
        for path, _, tag in self.counts:
            if path in ctx.modified:
                raise SeedError(f"A key of the random stream {tag!r} is drawn, by {path!r}, and there is no key.")
