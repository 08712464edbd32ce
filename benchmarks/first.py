"""The first call, from nothing: initial values, trace, compilation, run. And calls that are not compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import haiku as hk
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
    for case, calls in eager().items():
        found += rows(f"eager call, {case}", paired(calls, rounds=7 if quick else 21), bounds={"bridges": 1.3})
    return Table(
        "first",
        "The first call, and calls that are not compiled",
        "first call: ahead of the peers; eager call: 1.3 x native",
        tuple(found),
        (
            "The first call initialises, traces, compiles and runs a new function with JAX's caches cleared. All wrap"
            " Linen's Dense, the layer that each of them knows. `bridges` is the layer in the core.",
            "An eager call in the core has a fixed cost beside the layer's, the same for a layer of any size: a context, the"
            " entries that are checked, the layer that is put together from them. It is seen where the native call is short,"
            " in Haiku and NNX. A native NNX module holds its arrays already: `nnx.merge` and a call is the floor for one"
            " that is made of a state, the same within a module of the core for one that has a context and a scope as well.",
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


def eager() -> dict[str, dict[str, Callable[[], Any]]]:
    """Returns calls of one layer that are not compiled, for each framework's layer the native one first."""
    key = jax.random.key(0)
    linen = nn.Dense(8)
    variables = linen.init(key, X)
    haiku = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(8)(x)))
    params = haiku.init(key, X)
    linear = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    graphdef, split = nnx.split(linear)
    theirs = nnx.bridge.ToNNX(linen, rngs=nnx.Rngs(0)).lazy_init(X)
    return {
        "Linen's Dense": {
            "native": lambda: jax.block_until_ready(linen.apply(variables, X)),
            "bridges": in_core(br.FlaxModule(nn.Dense, 8, name="net")),
            "br.ToNNX": in_nnx(linen),
            "ninjax": in_ninjax(nj.FromFlax(nn.Dense)(8, name="net")),
            "nnx.bridge.ToNNX": lambda: jax.block_until_ready(theirs(X)),
        },
        "Haiku's Linear": {
            "native": lambda: jax.block_until_ready(haiku.apply(params, X)),
            "bridges": in_core(br.HaikuModule(hk.Linear, 8, name="net")),
            "br.ToNNX": in_nnx(lambda x: hk.Linear(8)(x)),
            "ninjax": in_ninjax(nj.FromHaiku(hk.Linear)(8, name="net")),
        },
        "NNX's Linear": {
            "native": lambda: jax.block_until_ready(linear(X)),
            "native, nnx.merge and call": lambda: jax.block_until_ready(nnx.merge(graphdef, split)(X)),
            "native, merged in a core module": in_core(Merged(graphdef, split)),
            "bridges": in_core(br.NNXModule(nnx.Linear, 8, 8, name="net")),
        },
    }


class Merged(br.Module):
    """Merges an NNX module and calls it: a scope around what is native."""

    def __init__(self, graphdef: Any, state: Any):
        self.parts = graphdef, state

    def __call__(self, x: Any) -> Any:
        return nnx.merge(*self.parts)(x)


def in_core(net: Any) -> Callable[[], Any]:
    """Returns a call of a core module over a known state."""
    state, pure = br.init(net)({}, X, seed=0), br.pure(net)
    return lambda: jax.block_until_ready(pure(state, X)[1])


def in_nnx(part: Any) -> Callable[[], Any]:
    """Returns a call of a part as an NNX module."""
    module = br.ToNNX(part, rngs=nnx.Rngs(0)).lazy_init(X)
    return lambda: jax.block_until_ready(module(X))


def in_ninjax(net: Any) -> Callable[[], Any]:
    """Returns a call of a Ninjax module, which needs a seed for a part of another framework."""
    state, pure = nj.init(net)({}, X, seed=0), nj.pure(net)
    return lambda: jax.block_until_ready(pure(state, X, seed=0)[1])
