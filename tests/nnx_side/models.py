"""Small NNX models with the structures that public ones have, and values of which every number is random."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.arrays import equal as equal
from tests.arrays import inputs as inputs
from tests.arrays import same as same


def randomised(module: Any, seed: int = 0) -> Any:
    """Returns the module with every float random, never the zeros and ones of an initialiser; keys and counts stay."""
    rng = np.random.default_rng(seed)

    def one(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)

    nnx.update(module, jax.tree.map(one, nnx.state(module)))
    return module


class MLP(nnx.Module):
    def __init__(self, sizes: tuple[int, ...] = (4, 8, 8, 3), *, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in itertools.pairwise(sizes)])

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class ConvNet(nnx.Module):
    """BatchNorm and dropout, controlled by train() and eval()."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
        return self.head(self.drop(x))


class Layer(nnx.Module):
    def __init__(self, size: int, *, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(size, rngs=rngs) for _ in range(2)])
        dropout = {"dropout_rate": 0.1, "deterministic": False}
        self.attention = nnx.MultiHeadAttention(2, size, **dropout, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(size, 2 * size, rngs=rngs), nnx.Linear(2 * size, size, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.drop(self.down(nnx.gelu(self.up(self.norms[1](x)))))


class Transformer(nnx.Module):
    """Twelve layers, so that numeric and lexicographic order differ; the embedding is shared with the output."""

    def __init__(self, depth: int = 2, *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.layers = nnx.List([Layer(8, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.zz_head = self.embed

    def __call__(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.zz_head.attend(self.norm(x))


class AutoEncoder(nnx.Module):
    """Several methods."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.encoder, self.decoder = nnx.Linear(4, 2, rngs=rngs), nnx.Linear(2, 4, rngs=rngs)

    def encode(self, x):
        return jnp.tanh(self.encoder(x))

    def decode(self, z):
        return self.decoder(z)

    def __call__(self, x):
        return self.decode(self.encode(x))


class Count(nnx.Variable):
    """A Variable type of the user's own."""


class Counter(nnx.Pytree):
    """The layer of "NNX Basics": no Module, a weight and a count of calls."""

    def __init__(self, din: int, dout: int, *, rngs: nnx.Rngs):
        self.din, self.dout = din, dout
        self.w = nnx.Param(rngs.uniform((din, dout)))
        self.count = Count(jnp.array(0))

    def __call__(self, x):
        self.count[...] += 1
        return x @ self.w


class Sower(nnx.Module):
    """Sows with the default tuple, twice by one layer, and a loss that is summed up; and assigns an Intermediate."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.dense = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        for _ in range(2):
            x = nnx.relu(self.dense(x))
            self.sow(nnx.Intermediate, "h", x)
            self.sow(nnx.Intermediate, "l2", (x**2).mean(), init_fn=lambda: 0.0, reduce_fn=lambda a, b: a + b)
        self.last = nnx.Intermediate(x)
        return x


class Tied(nnx.Module):
    """One layer in two blocks, beside statistics that each has for itself."""

    def __init__(self, *, rngs: nnx.Rngs):
        shared = nnx.Linear(2, 2, rngs=rngs)
        self.blocks = nnx.List([TiedBlock(shared, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class TiedBlock(nnx.Module):
    def __init__(self, linear: nnx.Linear, *, rngs: nnx.Rngs):
        self.linear, self.norm = linear, nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.linear(x)))


class ReservedNames(nnx.Module):
    """Submodules called like things that frameworks have."""

    def __init__(self, *, rngs: nnx.Rngs):
        for name in NAMES:
            setattr(self, name, nnx.Linear(3, 3, rngs=rngs))

    def __call__(self, x):
        for name in NAMES:
            x = getattr(self, name)(x)
        return x


NAMES = (
    "train",
    "eval",
    "sow",
    "perturb",
    "rngs",
    "module",
    "params",
    "get",
    "put",
    "getm",
    "state",
    "method",
    "name",
    "path",
    "variable",
    "init",
)


class Odd(nnx.Module):
    """Every kind of leaf that is no plain Variable under a string."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.spectral = nnx.SpectralNorm(nnx.Linear(2, 3, rngs=rngs), rngs=rngs)  # tuple keys
        self.conv = nnx.Conv(3, 3, (2,), mask=jnp.ones((2, 3, 3)), rngs=rngs)  # a raw array
        self.rngs = rngs  # typed keys
        self.names = nnx.data({"a/b": nnx.Param(jnp.ones(2)), "100%": Count(jnp.array(3))})
        self.numbers = nnx.data({1: nnx.Param(jnp.ones(1)), 10: nnx.Param(jnp.zeros(1)), 2: np.ones(2, np.float32)})
        self.tree = nnx.Variable({"x": jnp.ones(1), "y": (jnp.ones(2), jnp.zeros((), jnp.bfloat16))})
        self.none = nnx.Variable(None)
        self.custom = LoRA(jnp.ones((2, 2)), note="rank 2")

    def __call__(self, x):
        return self.spectral(x)


class LoRA(nnx.Param):
    """A trainable Variable type of the user's own."""
