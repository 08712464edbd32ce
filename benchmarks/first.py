"""The first call, from nothing: initial values, trace, compilation, run. And calls that are not compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ninjax as nj
from flax import linen as nn
from flax import nnx

import bridges as br
from benchmarks.paired import paired
from benchmarks.table import Row, Table, rows

X = jnp.ones((4, 8))
LAYERS = 10


def measure(quick: bool = False) -> Table:
    """Returns the table."""
    found: list[Row] = []
    contenders = {"native Linen": native, "bridges": hosted, "ninjax": ninjax, "nnx.bridge.ToNNX": bridged}
    timings = paired(contenders, rounds=3 if quick else 9, number=1)
    found += rows(f"init and first call, {LAYERS} Dense layers", timings)
    found += rows("eager call, one Dense", paired(eager(), rounds=7 if quick else 21), bounds={"bridges": 1.3})
    return Table(
        "first",
        "The first call, and calls that are not compiled",
        "first call: ahead of the peers; eager call: 1.3 x native",
        tuple(found),
        (
            "The first call initialises, traces, compiles and runs a new function with JAX's caches cleared. All wrap"
            " Linen's Dense, the layer that each of them knows.",
        ),
    )


class Dense(nn.Module):
    """Layers of Linen."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(LAYERS):
            x = nn.Dense(8)(x)
        return x


def native() -> None:
    """Initialises and runs Linen itself."""
    jax.clear_caches()
    model = Dense()
    variables = model.init(jax.random.key(0), X)
    jax.block_until_ready(jax.jit(model.apply)(variables, X))


def hosted() -> None:
    """The same, each layer a wrapper in the core."""
    jax.clear_caches()

    class Net(br.Module):
        def __init__(self) -> None:
            self.layers = [br.FlaxModule(nn.Dense, 8) for _ in range(LAYERS)]

        def __call__(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x)
            return x

    jax.block_until_ready(br.jit(Net())({}, X, seed=0))


def ninjax() -> None:
    """The same by ninjax."""
    jax.clear_caches()

    class Net(nj.Module):
        def __init__(self) -> None:
            self.layers = [nj.FromFlax(nn.Dense)(8, name=f"layer{i}") for i in range(LAYERS)]

        def __call__(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x)
            return x

    net = Net(name="net")
    state = nj.init(net)({}, X, seed=0)
    jax.block_until_ready(jax.jit(nj.pure(net))(state, X, seed=0))


def bridged() -> None:
    """The same by flax's own bridge."""
    jax.clear_caches()

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.layers = nnx.List([nnx.bridge.ToNNX(nn.Dense(8), rngs=rngs).lazy_init(X) for _ in range(LAYERS)])

        def __call__(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x)
            return x

    jax.block_until_ready(nnx.jit(lambda model, x: model(x))(Net(nnx.Rngs(0)), X))


def eager() -> dict[str, Callable[[], Any]]:
    """Returns calls of one layer that are not compiled."""
    model = nn.Dense(8)
    variables = model.init(jax.random.key(0), X)
    net = br.FlaxModule(nn.Dense, 8, name="net")
    state = br.init(net)({}, X, seed=0)
    pure = br.pure(net)
    ninja = nj.FromFlax(nn.Dense)(8, name="net")
    ninja_state = nj.init(ninja)({}, X, seed=0)
    ninja_pure = nj.pure(ninja)
    theirs = nnx.bridge.ToNNX(nn.Dense(8), rngs=nnx.Rngs(0)).lazy_init(X)
    ours = br.ToNNX(nn.Dense(8), rngs=nnx.Rngs(0)).lazy_init(X)
    return {
        "native Linen": lambda: jax.block_until_ready(model.apply(variables, X)),
        "bridges": lambda: jax.block_until_ready(pure(state, X)),
        "br.ToNNX": lambda: jax.block_until_ready(ours(X)),
        "ninjax": lambda: jax.block_until_ready(ninja_pure(ninja_state, X, seed=0)),
        "nnx.bridge.ToNNX": lambda: jax.block_until_ready(theirs(X)),
    }
