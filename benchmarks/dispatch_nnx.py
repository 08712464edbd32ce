"""Dispatch: a call of `nnx.jit` of a wrapped part over one of the native NNX model with as many Variables.

    python benchmarks/dispatch_nnx.py [--rounds 60] [--calls 30]

The models are measured in turn, round after round, and the medians compared, so that a busy machine disturbs all alike.
Matrices are 8 x 8: what takes time is Python, flattening the model and putting it together again. `train` is a step with
`nnx.value_and_grad` and `nnx.Optimizer` (Adam).
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx

import bridges as br

X = jnp.ones((4, 8))


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
        "nnx": native,
        "nnx, as deep": Inside(Inside(Inside(nnx.clone(native)))),
        "haiku": br.ToNNX(haiku, rngs=rngs).lazy_init(X),
        "linen": br.ToNNX(linen, rngs=rngs).lazy_init(X),
        "core": br.ToNNX(Core(layers=layers), rngs=rngs).lazy_init(X),
        "nnx.bridge, linen": nnx.bridge.ToNNX(linen, rngs=rngs).lazy_init(X),
    }


def forward(model: Any, graph: bool) -> Callable[[], Any]:
    """Returns a call of the compiled model."""
    fn = nnx.jit(lambda model, x: model(x), graph=graph)
    return lambda: fn(model, X)


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

    return lambda: step(model, optimizer, X)


def medians(calls: dict[str, Callable[[], Any]], rounds: int, repeat: int) -> dict[str, float]:
    """Returns the median microseconds a call, measured in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):
            jax.block_until_ready(call())
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(repeat):
                out = call()
            jax.block_until_ready(out)
            times[name].append((time.perf_counter() - began) / repeat)
    gc.enable()
    return {name: statistics.median(values) * 1e6 for name, values in times.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", type=int, default=30)
    args = parser.parse_args()
    first = True
    for make in (forward, train):
        for layers in (1, 10, 100):
            for graph in (True, False):
                found = models(layers)
                if make is train:
                    found.pop("nnx.bridge, linen")
                repeat = max(3, args.calls // layers)
                us = medians({name: make(model, graph) for name, model in found.items()}, args.rounds, repeat)
                native = us["nnx"]
                if first:
                    print("| what | layers | graph | " + " | ".join(f"{name}" for name in us) + " |")
                    print("|" + "---|" * (3 + len(us)))
                    first = False
                cells = " | ".join(f"{value:.0f} us ({value / native:.2f} x)" for value in us.values())
                print(f"| {make.__name__} | {layers} | {graph} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
