"""Streams of random keys.

A key depends on the seed, the name of the stream, the path that draws and how often that path drew before; so no module's
keys depend on what unrelated modules do. Formulas (`fold_in` is `jax.random.fold_in`, `h` a 32-bit hash of text):

    stream(s)     = given[s], or fold_in(seed, h('stream/' + s)) for one seed ('default' and 'params' are the seed itself)
    draw(s, p, n) = fold_in(fold_in(stream(s), h('path/' + p)), n)
    first(s, p)   = fold_in(stream(s), h('init/' + p)), and stream(s) itself where p is the whole model

A stream that was not given by name falls back to `default`, `default` to `params`, and `params` to `default`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges.core._errors import SeedError, hint

SINGLE = ""  # The name of the one key when the seed was not a dictionary.

Seed = Any  # int | key | Mapping[str, int | key] | None


def as_key(seed: Any) -> jax.Array:
    """Returns a key for an integer (a typed one), or the key itself: typed `key<fry>[]` or old-style `uint32[2]`.

    Raises:
      SeedError: The seed is neither.
    """
    dtype = getattr(seed, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return seed
    shape = np.shape(seed) if dtype is None else seed.shape
    integer = isinstance(seed, (int, np.integer)) or (dtype is not None and jnp.issubdtype(dtype, np.integer))
    if integer and not isinstance(seed, bool) and shape == ():
        return jax.random.key(seed)
    if dtype == np.uint32 and len(shape) == 1:
        return jnp.asarray(seed)
    raise SeedError(
        f"seed= got {type(seed).__name__} {seed!r}. Give an integer, a key (jax.random.key(0) or"
        " jax.random.PRNGKey(0)), or a dictionary of these by stream: seed={'params': 0, 'dropout': 1}."
    )


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


class Streams:
    """The keys of one running context, with a counter for every (stream, path).

    Args:
      keys: Keys by stream name, or one key under the name `SINGLE`.
      counters: Draws so far by (stream, path); copied.
    """

    __slots__ = ("keys", "counters", "drawn", "_bases")

    def __init__(self, keys: Mapping[str, jax.Array], counters: Mapping[tuple[str, str], int] | None = None):
        self.keys = dict(keys)
        self.counters = dict(counters or {})
        self.drawn = False
        self._bases: dict[tuple[str, str, str], jax.Array] = {}

    @classmethod
    def of(cls, seed: Seed) -> Streams | None:
        """Returns the streams of what a user gives as `seed=`, None for None."""
        if seed is None:
            return None
        if isinstance(seed, Mapping):
            return cls({name: as_key(value) for name, value in seed.items()})
        return cls({SINGLE: as_key(seed)})

    @property
    def named(self) -> tuple[str, ...]:
        """The names given, empty for a single seed."""
        return tuple(name for name in self.keys if name != SINGLE)

    def given(self) -> dict[str, jax.Array]:
        """Returns the keys that the streams begin with, as inputs of an inner trace; a host may work them out only now."""
        return dict(self.keys)

    def fork(self, keys: Mapping[str, jax.Array] | None = None) -> Streams:
        """Returns streams for an inner trace: the same counters (or fresh ones for new keys), nothing cached."""
        return Streams(self.keys, self.counters) if keys is None else Streams(keys)

    def join(self, other: Streams | None) -> None:
        """Takes over the counters of a fork whose draws have become part of this context."""
        if other is not None:
            self.counters = dict(other.counters)
            self.drawn |= other.drawn

    def tally(self) -> Streams:
        """Returns the counters alone, without keys: what may outlive the trace that the keys belong to."""
        tally = Streams({}, self.counters)
        tally.drawn = self.drawn
        return tally

    def stream(self, name: str) -> jax.Array:
        """Returns the key that the stream starts from."""
        self.drawn = True
        if SINGLE in self.keys:
            seed = self.keys[SINGLE]
            if name in ("default", "params"):
                return seed
            return self._folded("stream", name, "", seed)
        for candidate in self._fallbacks(name):
            if candidate in self.keys:
                return self.keys[candidate]
        raise SeedError(
            f"There is no random stream {name!r}: seed= gives only {sorted(self.keys)}."
            + hint(name, self.keys)
            + f" Add it, seed={{…, {name!r}: 0}}, or give a 'default' stream that stands in for any other."
        )

    @staticmethod
    def _fallbacks(name: str) -> Iterable[str]:
        return (name, "default", "params") if name == "default" else (name, "default")

    def _folded(self, tag: str, name: str, path: str, base: jax.Array) -> jax.Array:
        known = self._bases.get((tag, name, path))
        if known is None:
            known = jax.random.fold_in(base, _hash(f"{tag}/{path or name}"))
            self._bases[tag, name, path] = known
        return known

    def draw(self, name: str, path: str, whole: bool = False) -> jax.Array:
        """Returns the next key of a stream for a path; for the whole model's first draw, the stream's own key."""
        count = self.counters.get((name, path), 0)
        self.counters[name, path] = count + 1
        base = self.stream(name)
        if whole and count == 0:
            return base
        return jax.random.fold_in(self._folded("path", name, path, base), count)

    def first(self, name: str, path: str, whole: bool = False) -> jax.Array:
        """Returns the key with which the part at a path initialises itself; always the same one."""
        base = self.stream(name)
        return base if whole else self._folded("init", name, path, base)


def fold(keys: Mapping[str, jax.Array] | None, index: Any) -> dict[str, jax.Array] | None:
    """Returns the keys of one iteration or member: each folded with its index; None for None."""
    return None if keys is None else {name: jax.random.fold_in(key, index) for name, key in keys.items()}
