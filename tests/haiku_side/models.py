"""Haiku models and small functions that the wrapper's tests share."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

import bridges as br
from bridges import haiku_adapter as ha

X = jax.random.normal(jax.random.key(7), (4, 6))
IMAGES = jax.random.normal(jax.random.key(8), (2, 8, 8, 3))


def same(a, b):
    """Whether two trees of arrays are equal bit for bit, dtypes included."""
    a, b = (dict(t) if isinstance(t, br.State) else t for t in (a, b))
    (la, ta), (lb, tb) = jax.tree.flatten(a), jax.tree.flatten(b)
    return ta == tb and all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(la, lb, strict=True)
    )


def randomise(state, seed=0):
    """Returns the state with every floating entry random and positive."""
    keys = iter(jax.random.split(jax.random.key(seed), len(state)))
    draw = lambda v: jax.random.uniform(next(keys), v.shape, v.dtype, 0.5, 1.5)  # noqa: E731
    new = state.copy()
    for path, value in state.items():
        if jnp.issubdtype(value.dtype, jnp.floating):
            new[path] = draw(value)
    return new


def below(path, *native):
    """Returns the state of a model in which a wrapper at `path` has these native params (and state)."""
    flat = ha.flatten(*native)
    return br.State({f"{path}/{p}": v for p, v in flat.items()}, {f"{path}/{p}": k for p, k in flat.kinds.items()})


def native(path, state):
    """Returns the native (params, state) below a path."""
    return ha.unflatten({p.removeprefix(path + "/"): v for p, v in state.items() if p.startswith(path + "/")})


def norm(x, is_training=True):
    """A linear layer and BatchNorm: Haiku state."""
    return hk.BatchNorm(True, True, 0.9)(hk.Linear(3)(x), is_training)


def drop(x):
    """A layer that draws in every call."""
    return hk.dropout(hk.next_rng_key(), 0.5, hk.Linear(3)(x))


def transformer(x):
    """A block of attention and MLP with LayerNorm, on vectors of the width of `x`."""
    width = x.shape[-1]
    y = hk.LayerNorm(-1, True, True)(x)
    attention = hk.MultiHeadAttention(1, width, w_init=hk.initializers.VarianceScaling(), model_size=width)
    x = x + attention(y, y, y)
    return x + hk.nets.MLP([width, width])(hk.LayerNorm(-1, True, True)(x))


class Autoencoder(hk.Module):
    """Parts made in the constructor, in methods and in the call, and a property."""

    def __init__(self, size, name=None):
        super().__init__(name)
        self.first = hk.Linear(size, name="first")
        self.embed = hk.Embed(5, size)

    def encode(self, x):
        return hk.Linear(2)(self.first(x))

    def decode(self, z):
        return hk.Linear(6)(z)

    def __call__(self, x):
        return self.decode(self.encode(x))

    @property
    def table(self):
        return self.embed.embeddings
