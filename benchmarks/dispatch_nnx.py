"""A call of `nnx.jit` of a wrapped part, over one of the native NNX model with as many Variables.

Matrices are 8 x 8: what takes time is Python, flattening the model and putting it together again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx

import bridges as br
from benchmarks.paired import paired
from benchmarks.table import Row, Table, rows

X = jnp.ones((4, 8))


def measure(quick: bool = False) -> Table:
    """Returns the table."""
    found: list[Row] = []
    for make, what in ((forward, "forward"), (train, "training step")):
        for layers in (1, 10) if quick else (1, 10, 100):
            for graph in (True, False):
                timings = paired(contenders(make, layers, graph), rounds=5 if quick else 21)
                found += rows(
                    f"{what}, graph={graph}, {layers} {'layer' if layers == 1 else 'layers'}", timings, layers
                )
    return Table(
        "dispatch_nnx",
        "A call of a compiled NNX step",
        "`nnx.bridge.ToNNX`; the native model is what the ratio is over",
        tuple(found),
        (
            "Linear layers of 8 x 8 in `nnx.jit`, in both of its modes (`graph=`); the training step has"
            " `nnx.value_and_grad` and `nnx.Optimizer` with Adam. `as deep` is the native model inside of three modules, so"
            " that its paths are as long as those of a wrapped part.",
        ),
    )


class Core(br.Module):
    """Linear layers of the core's own."""

    layers: int = 1

    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.layers):
            x = x @ self.get(f"kernel{i}", jnp.ones, (8, 8)) + self.get(f"bias{i}", jnp.zeros, (8,))
        return x


class Linen(nn.Module):
    """Linen layers."""

    layers: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.layers):
            x = nn.Dense(8)(x)
        return x


class Native(nnx.Module):
    """NNX layers."""

    def __init__(self, layers: int, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(layers)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x


class Inside(nnx.Module):
    """A module in a module: paths of Variables are as long as those of a wrapped part inside three of them."""

    def __init__(self, inner: nnx.Module):
        self.inner = inner

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.inner(x)


def models(layers: int) -> dict[str, Any]:
    """Returns models of so many layers, the native one first."""

    def haiku(x: jax.Array) -> jax.Array:
        for _ in range(layers):
            x = hk.Linear(8)(x)
        return x

    rngs = nnx.Rngs(0)
    one = layers == 1
    linen = nn.Dense(8) if one else Linen(layers)
    native = nnx.Linear(8, 8, rngs=rngs) if one else Native(layers, rngs)
    return {
        "native": native,
        "native, as deep": Inside(Inside(Inside(nnx.clone(native)))),
        "br.ToNNX, Haiku": br.ToNNX(haiku, rngs=rngs).lazy_init(X),
        "br.ToNNX, Linen": br.ToNNX(linen, rngs=rngs).lazy_init(X),
        "br.ToNNX, core": br.ToNNX(Core(layers=layers), rngs=rngs).lazy_init(X),
        "nnx.bridge.ToNNX, Linen": nnx.bridge.ToNNX(linen, rngs=rngs).lazy_init(X),
    }


def contenders(
    make: Callable[[Any, bool], Callable[[], Any]], layers: int, graph: bool
) -> dict[str, Callable[[], Any]]:
    """Returns the calls, the native one first."""
    return {name: make(model, graph) for name, model in models(layers).items()}


def forward(model: Any, graph: bool) -> Callable[[], Any]:
    """Returns a call of the compiled model."""
    fn = nnx.jit(lambda model, x: model(x), graph=graph)
    return lambda: jax.block_until_ready(fn(model, X))


def train(model: Any, graph: bool) -> Callable[[], Any]:
    """Returns a compiled training step of the model."""
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    @nnx.jit(graph=graph)
    def step(model: Any, optimizer: Any, x: jax.Array) -> jax.Array:
        graphdef, params, rest = nnx.split(model, nnx.Param, ..., graph=graph)

        def loss(params: Any, rest: Any) -> jax.Array:
            return (nnx.merge(graphdef, params, rest)(x) ** 2).mean()

        value, grads = nnx.value_and_grad(loss, graph=graph)(params, rest)
        optimizer.update(model, grads)
        return value

    return lambda: jax.block_until_ready(step(model, optimizer, X))
