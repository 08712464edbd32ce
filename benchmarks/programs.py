"""The compiled training step of a wrapped model against the native one: instructions, FLOPs and run time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

import bridges as br
from benchmarks.paired import paired
from benchmarks.table import Row, Table, rows
from tests.hlo import compiled, opcodes
from tests.models import resnet, transformer

KEY = jax.random.key(0)


def measure(quick: bool = False) -> Table:
    """Returns the table."""
    found: list[Row] = []
    for case, framework, native, wrapped in cases(quick):
        programs = {"native": compiled(*native), "wrapped": compiled(*wrapped)}
        args = {"native": native[1:], "wrapped": wrapped[1:]}
        more = {}
        for name, program in programs.items():
            counts = opcodes(program)
            more[name] = {"instructions": sum(counts.values()), "FLOPs": f"{flops(program):.6g}"}
        more["wrapped"]["same opcodes"] = "yes" if opcodes(programs["native"]) == opcodes(programs["wrapped"]) else "no"
        timings = paired(
            {name: _call(program, args[name]) for name, program in programs.items()}, rounds=5 if quick else 15
        )
        # The programs are the same; what is left between them is noise, which the bound has room for.
        found += rows(f"{case}, {framework}", timings, bounds={"wrapped": 1.05}, more=more)
    return Table(
        "programs",
        "The compiled step of a wrapped model against the native one",
        "equal instructions and FLOPs; run time 1.00 within noise",
        tuple(found),
        (
            "A training step (loss, gradients, SGD, new statistics) of the model hosted in the core, against plain JAX"
            " around the framework's own functions. Instructions are counted in the optimised program, fusions and loops"
            " opened.",
        ),
    )


def flops(program: Any) -> float:
    """Returns what the compiler says of the floating point operations of a program."""
    cost = program.cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["flops"])


def _call(program: Any, args: tuple[Any, ...]) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(program(*args))


def cases(quick: bool) -> Iterator[tuple[str, str, tuple[Any, ...], tuple[Any, ...]]]:
    """Yields cases: a title, the framework, and both steps with their arguments."""
    x = jax.random.normal(KEY, (32, 64))
    tokens = jax.random.randint(KEY, (8, transformer.LENGTH), 0, transformer.VOCABULARY)
    images = jax.random.normal(KEY, (2, 32, 32, 3))

    def mlp(x: Any, train: bool) -> Any:
        return hk.nets.MLP([256, 256, 10])(x)

    models: list[tuple[str, Any, Any, Any, Any]] = [
        ("MLP", mlp, MLP(), lambda rngs: NNXMLP(rngs=rngs), x),
        ("transformer", transformer.haiku, transformer.Linen(), lambda rngs: transformer.NNX(rngs=rngs), tokens),
    ]
    if not quick:
        models.append(("ResNet-50", resnet.haiku, resnet.Linen(), lambda rngs: resnet.NNX(rngs=rngs), images))
    for case, haiku, linen, make, inputs in models:
        yield case, "Haiku", native_haiku(haiku, inputs), hosted(br.HaikuModule(haiku, name="net"), inputs, True)
        yield case, "Linen", native_linen(linen, inputs), hosted(br.FlaxModule(linen, name="net"), inputs, True)
        module = make(nnx.Rngs(0))
        yield case, "NNX", native_nnx(module, inputs), hosted(br.NNXModule(module, name="net"), inputs, True)


def hosted(net: Any, x: Any, *args: Any) -> tuple[Any, ...]:
    """Returns the step of a model hosted in the core, and its arguments."""
    state = br.init(net)({}, x, *args, seed=0)

    def step(state: Any, x: Any) -> Any:
        params, rest = state.partition(br.Param, ...)

        def loss(params: Any) -> Any:
            after, out = br.pure(net)(params | rest, x, *args)
            return (out**2).mean(), after.filter(br.Not(br.Param))

        (value, updated), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return sgd(params, grads) | rest | updated, value

    return step, state, x


def native_haiku(fn: Any, x: Any) -> tuple[Any, ...]:
    """Returns the step of a Haiku function, and its arguments."""
    model = hk.transform_with_state(fn)
    params, state = model.init(KEY, x, True)

    def step(params: Any, state: Any, x: Any) -> Any:
        def loss(params: Any) -> Any:
            out, new = model.apply(params, state, None, x, True)
            return (out**2).mean(), new

        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return sgd(params, grads), state, value

    return step, params, state, x


def native_linen(model: Any, x: Any) -> tuple[Any, ...]:
    """Returns the step of a Linen module, and its arguments."""
    variables = model.init(KEY, x, True)

    def step(variables: Any, x: Any) -> Any:
        rest = {name: tree for name, tree in variables.items() if name != "params"}

        def loss(params: Any) -> Any:
            out, new = model.apply({"params": params, **rest}, x, True, mutable=["batch_stats"])
            return (out**2).mean(), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return {"params": sgd(variables["params"], grads), **rest, **new}, value

    return step, variables, x


def native_nnx(module: Any, x: Any) -> tuple[Any, ...]:
    """Returns the step of an NNX module, and its arguments."""
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def step(params: Any, rest: Any, x: Any) -> Any:
        def loss(params: Any) -> Any:
            module = nnx.merge(graphdef, params, rest, copy=True)
            out = module(x, True)
            return (out**2).mean(), nnx.state(module, nnx.Not(nnx.Param))

        (value, rest_), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return sgd(params, grads), rest_, value

    return step, params, rest, x


def sgd(params: Any, grads: Any) -> Any:
    """Returns parameters after one step."""
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


class MLP(nn.Module):
    """As `hk.nets.MLP([256, 256, 10])`."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        for size in (256, 256):
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(10)(x)


class NNXMLP(nnx.Module):
    """The same."""

    def __init__(self, rngs: nnx.Rngs):
        sizes = (64, 256, 256, 10)
        self.layers = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in itertools.pairwise(sizes)])

    def __call__(self, x: Any, train: bool) -> Any:
        for layer in self.layers[:-1]:
            x = jnp.maximum(layer(x), 0)
        return self.layers[-1](x)
