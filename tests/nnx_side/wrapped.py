"""A small part of each framework for tests of `ToNNX`, all of one shape, [4, 3] -> [4, 2]."""

from __future__ import annotations

import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

import bridges as br
from tests.nnx_side.models import randomised
from tests.parts import LinenNet, X, batch_net


class Core(br.Module):
    """A Haiku encoder, an entry of its own, and a count."""

    def __init__(self):
        self.linear = br.FromHaiku(hk.Linear)(2)

    def __call__(self, x):
        self.put("calls", self.get("calls", jnp.zeros, (), jnp.int32) + 1)
        return self.linear(x) + self.get("bias", jnp.ones, (2,))


class Native(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.linear(x))


PARTS = {"haiku": batch_net, "linen": LinenNet(), "core": Core, "nnx": Native}


def wrapped(part: str, seed: int | nnx.Rngs = 0) -> Any:
    """Returns a new wrapper with its Variables."""
    rngs = seed if isinstance(seed, nnx.Rngs) else nnx.Rngs(seed)
    return br.ToNNX(PARTS[part], rngs=rngs).lazy_init(X)


def random_one(part: str) -> Any:
    """Returns a new wrapper with every value random; of one part always the same."""
    return jax.tree.map(jnp.copy, _random_one(part))


@functools.cache
def _random_one(part: str) -> Any:
    return randomised(wrapped(part))
