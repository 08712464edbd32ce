"""Inputs, and whether trees of arrays are equal: what the tests of Linen and of NNX have in common."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def inputs(*shape: int, seed: int = 3) -> jax.Array:
    """Returns normally distributed numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def same(a: Any, b: Any) -> bool:
    """Whether two trees have one structure and equal bits."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(map(equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def equal(a: Any, b: Any) -> bool:
    """Whether two arrays, or keys, have one dtype and equal bits."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b))
