"""One model in every framework, a level of it in each: a linear layer, BatchNorm, ReLU and dropout, and then the next level.

A chain of frameworks is a model: the first level is of the first framework, and holds the second level as a guest, which
holds the third. Layers are the frameworks' own, with the same hyperparameters; the core has none and writes them out.
Levels return the random keys that they drew, so that others can be told to drop the same.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

import bridges as br

INPUTS, WIDTH, BATCH = 3, 5, 8
MOMENTUM, EPSILON = 0.9, 1e-5

FRAMEWORKS = ("haiku", "linen", "nnx", "core")


def part_of(chain: tuple[str, ...], rate: float = 0.0, first: int = 0) -> Any:
    """Returns a chain as a part: what a wrapper takes.

    Args:
      chain: Frameworks, from the outside to the inside.
      rate: Of dropout.
      first: The number of the first level; layers are called after it.
    """
    inner = part_of(chain[1:], rate, first + 1) if len(chain) > 1 else None
    return _LEVELS[chain[0]](number=first, rate=rate, inner=inner, framework=chain[1] if inner is not None else "")


# The keys that levels take in place of those that they would draw, by number.
GIVEN: contextvars.ContextVar[Any] = contextvars.ContextVar("given", default=None)


def _block(number: int, linear: Any, norm: Any, draw: Any, rate: float, x: Any, train: bool) -> Any:
    """Returns the output of a level without the next one, and the key that it drew, in a tuple."""
    x = jax.nn.relu(norm(linear(x)))
    if not rate or not train:
        return x, ()
    given = GIVEN.get()
    key = draw() if given is None else jax.random.wrap_key_data(given[number])
    key = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0), (jax.random.key_data(key),)


def _next(guest: Callable[..., Any] | None, x: Any, drawn: Any, train: bool) -> Any:
    if guest is None:
        return x, drawn
    x, more = guest(x, train)
    return x, (*drawn, *more)


class HaikuLevel(hk.Module):
    def __init__(self, number, rate, inner, framework):
        super().__init__(name=f"level{number}")
        self.number, self.rate, self.inner = number, rate, inner

    def __call__(self, x, train):
        n = self.number
        linear = hk.Linear(WIDTH, name=f"linear{n}")
        norm = hk.BatchNorm(True, True, MOMENTUM, EPSILON, name=f"norm{n}")
        x, drawn = _block(n, linear, lambda x: norm(x, train), hk.next_rng_key, self.rate, x, train)
        guest = None if self.inner is None else br.ToHaiku(self.inner, name=f"guest{n + 1}")
        return _next(guest, x, drawn, train)


class LinenLevel(nn.Module):
    number: int
    rate: float
    inner: Any
    framework: str

    @nn.compact
    def __call__(self, x, train):
        n = self.number
        linear = nn.Dense(WIDTH, name=f"linear{n}")
        norm = nn.BatchNorm(not train, momentum=MOMENTUM, epsilon=EPSILON, name=f"norm{n}")
        x, drawn = _block(n, linear, norm, lambda: self.make_rng("dropout"), self.rate, x, train)
        guest = None if self.inner is None else br.ToLinen(self.inner, name=f"guest{n + 1}")
        return _next(guest, x, drawn, train)


class NNXLevel(nnx.Module):
    def __init__(self, number, rate, inner, framework, *, rngs):
        n, self.rate, self.number = number, rate, number
        setattr(self, f"linear{n}", nnx.Linear(WIDTH if n else INPUTS, WIDTH, rngs=rngs))
        setattr(self, f"norm{n}", nnx.BatchNorm(WIDTH, momentum=MOMENTUM, epsilon=EPSILON, rngs=rngs))
        self.rngs = nnx.data(rngs.dropout.fork() if rate else None)
        guest = br.ToNNX(inner, rngs=rngs).lazy_init(jnp.ones((BATCH, WIDTH)), True) if inner is not None else None
        self.guest = nnx.data(guest)

    def __call__(self, x, train):
        linear, norm = getattr(self, f"linear{self.number}"), getattr(self, f"norm{self.number}")
        norm = functools.partial(norm, use_running_average=not train)
        x, drawn = _block(self.number, linear, norm, self.rngs, self.rate, x, train)
        return _next(self.guest, x, drawn, train)


class CoreLinear(br.Module):
    def __call__(self, x):
        shape = (x.shape[-1], WIDTH)
        w = self.get("w", lambda: jax.random.normal(br.rng("params"), shape) / shape[0] ** 0.5, kind=br.Param)
        return x @ w + self.get("b", jnp.zeros, (WIDTH,))


class CoreNorm(br.Module):
    def __call__(self, x, train):
        scale, offset = self.get("scale", jnp.ones, (WIDTH,)), self.get("offset", jnp.zeros, (WIDTH,))
        mean = self.get("mean", jnp.zeros, (WIDTH,), kind=br.BatchStat)
        var = self.get("var", jnp.ones, (WIDTH,), kind=br.BatchStat)
        if train:
            new_mean, new_var = x.mean(0), x.var(0)
            self.put("mean", MOMENTUM * mean + (1 - MOMENTUM) * new_mean)
            self.put("var", MOMENTUM * var + (1 - MOMENTUM) * new_var)
            mean, var = new_mean, new_var
        return (x - mean) * jax.lax.rsqrt(var + EPSILON) * scale + offset


_WRAPPERS = {"haiku": br.HaikuModule, "linen": br.FlaxModule, "nnx": br.NNXModule}


class CoreLevel(br.Module):
    number: int = 0
    rate: float = 0.0
    inner: object = None
    framework: str = ""

    def __init__(self):
        n = self.number
        self.linear, self.norm = CoreLinear(name=f"linear{n}"), CoreNorm(name=f"norm{n}")
        wrapper = _WRAPPERS.get(self.framework)
        self.guest = wrapper(self.inner, name=f"guest{n + 1}") if wrapper is not None else self.inner

    def __call__(self, x, train):
        norm = functools.partial(self.norm, train=train)
        draw = lambda: br.rng("dropout")  # noqa: E731
        x, drawn = _block(self.number, self.linear, norm, draw, self.rate, x, train)
        return _next(self.guest, x, drawn, train)


_LEVELS: dict[str, Callable[..., Any]] = {
    "haiku": lambda **given: functools.partial(HaikuLevel, **given),
    "linen": LinenLevel,
    "nnx": lambda **given: functools.partial(NNXLevel, **given),
    "core": CoreLevel,
}
