"""A call of a compiled step, 1 to 10,000 entries: what is left when the computation is nothing."""

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
from benchmarks.table import Row, Table, growth, rows

X = jnp.ones(())


@jax.tree_util.register_pytree_node_class
class Node:
    """The least that a state of one's own costs: JAX calls it to take it apart and to put it together."""

    def __init__(self, values: list[Any]):
        self.values = values

    def tree_flatten(self) -> tuple[list[Any], None]:
        """Returns the values."""
        return self.values, None

    @classmethod
    def tree_unflatten(cls, _: None, values: Any) -> Node:
        """Returns the node of new values."""
        return cls(values)


def measure(quick: bool = False) -> Table:
    """Returns the table."""
    found: list[Row] = []
    for count in (1, 100) if quick else (1, 100, 1_000, 10_000):
        bounds = {"br.jit": 1.5, "jax.jit(br.pure)": 1.5, "jax.jit(br.apply)": 1.5}
        timings = paired(contenders(count), rounds=7 if quick else 15)
        found += rows(f"{count:,} {'entry' if count == 1 else 'entries'}", timings, count, bounds)
    return Table(
        "dispatch",
        "A call of a compiled step",
        "1.5 x `jax.jit` over a dictionary, and ahead of every peer",
        tuple(found),
        (
            "Every entry is a scalar that the step reads and changes. `nnx.jit` runs a native module with as many"
            " Params; `ToNNX` wraps a Linen module (`nnx.bridge`) or a core module (ours) with as many. The peers of the"
            " core are ninjax and NNX, those of `br.ToNNX` native NNX and `nnx.bridge.ToNNX`.",
            "`a registered node` is the floor of any state that is a class of its own: a list, two functions in Python that"
            " JAX calls at each call, nothing else. A dictionary, which is ninjax's state, JAX takes apart itself, sorting"
            " its keys: with one entry that is cheaper, with a hundred it is not. `br.jit` also looks after the seed and"
            " after entries that the call made.",
            *growth(found),
        ),
    )


def contenders(count: int) -> dict[str, Callable[[], Any]]:
    """Returns the contenders with so many entries."""
    names = [f"w{i}" for i in range(count)]
    params = {name: jnp.ones(()) for name in names}

    @jax.jit
    def plain(params: Any, x: Any) -> Any:
        return {name: value * 0.9 for name, value in params.items()}, x + params["w0"]

    @jax.jit
    def listed(node: Any, x: Any) -> Any:
        return Node([value * 0.9 for value in node.values]), x + node.values[0]

    class Core(br.Module):
        def __call__(self, x: Any) -> Any:
            for name in names:
                value = self.get(name, jnp.ones, ())
                self.put(name, value * 0.9)
            return x + value

    class Ninja(nj.Module):
        def __call__(self, x: Any) -> Any:
            for name in names:
                value = self.value(name, jnp.ones, ())
                self.write(name, value * 0.9)
            return x + value

    class Native(nnx.Module):
        def __init__(self) -> None:
            self.params = nnx.data({name: nnx.Param(jnp.ones(())) for name in names})

        def __call__(self, x: Any) -> Any:
            for param in self.params.values():
                param[...] = param[...] * 0.9
            return x + param[...]

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for name in names:
                value = self.variable("state", name, jnp.ones, ())
                value.value = value.value * 0.9
            return x + value.value

    core = Core(name="net")
    state = br.init(core)({}, X)
    jitted, pure = br.jit(core), jax.jit(br.pure(core))
    applied = jax.jit(lambda state, x: br.apply(core, state)(x))
    ninja = Ninja(name="net")
    ninja_state = nj.init(ninja)({}, X, seed=0)
    ninja_step = jax.jit(nj.pure(ninja))
    found = {
        "jax.jit, a dictionary": _call(plain, params, X),
        "jax.jit, a registered node": _call(listed, Node(list(params.values())), X),
        "br.jit": _call(jitted, state, X),
        "jax.jit(br.pure)": _call(pure, state, X),
        "jax.jit(br.apply)": _call(applied, state, X),
        "ninjax": _call(ninja_step, ninja_state, X),
        "nnx.jit, native": _call(nnx.jit(lambda model, x: model(x)), Native(), X),
        "nnx.jit(br.ToNNX)": _call(nnx.jit(lambda model, x: model(x)), br.ToNNX(core).lazy_init(X), X),
    }
    if count <= 1_000:  # nnx.bridge takes minutes to trace 10,000
        bridged = nnx.bridge.ToNNX(Linen(), rngs=nnx.Rngs(0)).lazy_init(X)
        found["nnx.jit(nnx.bridge.ToNNX)"] = _call(nnx.jit(lambda m, x: m(x, mutable=["state"])), bridged, X)
    return found


def _call(step: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(step(*args))
