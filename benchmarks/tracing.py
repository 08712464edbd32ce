"""Trace and lower: models of many wrapped layers, and control flow nested deeper and deeper."""

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
from benchmarks.table import Row, Table, growth, rows

X = jnp.ones((4, 8))
KEY = jax.random.key(0)


def measure(quick: bool = False) -> Table:
    """Returns the table."""
    found: list[Row] = []
    counts = (10, 50) if quick else (10, 50, 200)
    for layers in counts:
        for framework, contenders in {"Linen": linen(layers), "Haiku": haiku(layers), "NNX": nnx_(layers)}.items():
            timings = paired(contenders, rounds=5 if quick else 11, number=1)
            found += rows(f"{layers} {framework} layers", timings, layers, {"bridges": 1.25})
    for depth in range(1, 4 if quick else 7):
        traces = {name: traced(name, depth) for name in ("bridges", "ninjax")}
        found += [
            Row(
                f"scans nested {depth}",
                name,
                more={"body traces": count, "bound": depth + 1 if name == "bridges" else ""},
            )
            for name, count in traces.items()
        ]
    return Table(
        "tracing",
        "Trace and lower a model of wrapped layers",
        "1.25 x native, linear in layers; nested control flow: depth + 1 traces of the body",
        tuple(found),
        (
            "Each layer is a wrapper of its own, against one native model of the same layers; a forward pass of a known"
            " state, `jax.jit(f).lower(…)` of a new function every time.",
            "ninjax runs Haiku's and Linen's modules only. `nnx.bridge.ToNNX` is a module a Linen layer in an NNX model.",
            *growth(found),
        ),
    )


def lowered(fn: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """Returns a call that traces and lowers a function anew."""
    return lambda: jax.jit(lambda *args: fn(*args)).lower(*args)


def linen(layers: int) -> dict[str, Callable[[], Any]]:
    """Returns the contenders for Linen's layers."""

    class Native(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for _ in range(layers):
                x = nn.Dense(8)(x)
            return x

    model = Native()

    class Bridged(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.layers = nnx.List([nnx.bridge.ToNNX(nn.Dense(8), rngs=rngs).lazy_init(X) for _ in range(layers)])

        def __call__(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x)
            return x

    graphdef, state = nnx.split(Bridged(nnx.Rngs(0)))
    return {
        "native": lowered(model.apply, model.init(KEY, X), X),
        "bridges": core(layers, lambda: br.FlaxModule(nn.Dense, 8)),
        "ninjax": ninjax(layers, lambda i: nj.FromFlax(nn.Dense)(8, name=f"layer{i}")),
        "nnx.bridge.ToNNX": lowered(lambda state, x: nnx.merge(graphdef, state)(x), state, X),
    }


def haiku(layers: int) -> dict[str, Callable[[], Any]]:
    """Returns the contenders for Haiku's layers."""

    def native(x: Any) -> Any:
        for _ in range(layers):
            x = hk.Linear(8)(x)
        return x

    model = hk.without_apply_rng(hk.transform(native))
    return {
        "native": lowered(model.apply, model.init(KEY, X), X),
        "bridges": core(layers, lambda: br.HaikuModule(hk.Linear, 8)),
        "ninjax": ninjax(layers, lambda i: nj.FromHaiku(hk.Linear)(8, name=f"layer{i}")),
    }


def nnx_(layers: int) -> dict[str, Callable[[], Any]]:
    """Returns the contenders for NNX's layers."""

    class Native(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(layers)])

        def __call__(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x)
            return x

    graphdef, state = nnx.split(Native(nnx.Rngs(0)))
    return {
        "native": lowered(lambda state, x: nnx.merge(graphdef, state)(x), state, X),
        "bridges": core(layers, lambda: br.NNXModule(nnx.Linear, 8, 8)),
    }


def core(layers: int, make: Callable[[], Any]) -> Callable[[], Any]:
    """Returns a call that lowers a core model of wrapped layers."""

    class Net(br.Module):
        def __init__(self) -> None:
            self.layers = [make() for _ in range(layers)]

        def __call__(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x)
            return x

    net = Net()
    state = br.init(net)({}, X, seed=0)
    return lowered(lambda state, x: br.pure(net)(state, x)[1], state, X)


def ninjax(layers: int, make: Callable[[int], Any]) -> Callable[[], Any]:
    """Returns the same for ninjax, which needs a seed for every call of a wrapper."""

    class Net(nj.Module):
        def __init__(self) -> None:
            self.layers = [make(i) for i in range(layers)]

        def __call__(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x)
            return x

    net = Net(name="net")
    state = nj.init(net)({}, X, seed=0)
    return lowered(lambda state, x: nj.pure(net)(state, x, seed=0)[1], state, X)


def traced(who: str, depth: int) -> int:
    """Returns how often the innermost body of nested scans is traced."""
    count = 0
    library: Any = br if who == "bridges" else nj

    class Net(library.Module):  # type: ignore[misc]
        def __call__(self, x: Any) -> Any:
            return self.level(x, depth)

        def level(self, x: Any, left: int) -> Any:
            nonlocal count
            if not left:
                count += 1
                if who == "bridges":
                    self.put("calls", self.get("calls", jnp.zeros, ()) + 1)
                else:
                    self.write("calls", self.value("calls", jnp.zeros, ()) + 1)
                return x
            return library.scan(lambda c, _: (self.level(c, left - 1), ()), x, jnp.arange(2))[0]

    net = Net(name="net")
    state = library.init(net)({}, X, seed=0)
    count = 0
    jax.jit(lambda state, x: library.pure(net)(state, x, seed=0)).lower(state, X)
    return count
