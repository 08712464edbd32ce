"""A chain of levels as a program of its first framework: how that framework itself initialises and calls a model.

Variables are flat dictionaries, made and taken apart by the adapters; nothing else here is ours.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter
from tests.guests.levels import BATCH, INPUTS, WIDTH, part_of

Flat = dict[str, Any]
X = jnp.asarray(np.random.default_rng(5).normal(size=(BATCH, INPUTS)), jnp.float32)
Y = jnp.sin(X.sum(1) * 2)
KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Program:
    """A model.

    Attributes:
      init: Returns the initial variables of a key.
      apply: Returns output, the keys that were drawn, and the variables, from variables, inputs, whether it trains, and a
        key, None where nothing is drawn.
      spoiled: Calls the model, without training, where the value of one variable is another, is gone (None) or is new.
    """

    init: Callable[[Any], br.State]
    apply: Callable[..., tuple[Any, Any, Flat]]
    spoiled: Callable[[Flat, str, Any], Any] | None = None

    def call_spoiled(self, flat: Flat, path: str, value: Any) -> None:
        """Calls the model where one variable is wrong; in abstract."""
        if self.spoiled is not None:
            self.spoiled(flat, path, value)
        else:
            others = {p: v for p, v in flat.items() if p != path}
            jax.eval_shape(
                lambda flat: self.apply(flat, X, False)[0], others | ({} if value is None else {path: value})
            )


@functools.cache
def initial(chain: tuple[str, ...], rate: float = 0.0, first: int = 0) -> br.State:
    """Returns the initial variables of a chain of the key `KEY`."""
    return program(chain, rate, first).init(KEY)


@functools.cache
def program(chain: tuple[str, ...], rate: float = 0.0, first: int = 0) -> Program:
    """Returns a chain as a program."""
    x = X if first == 0 else jnp.ones((BATCH, WIDTH))
    return {"haiku": _haiku, "linen": _linen, "nnx": _nnx, "core": _core}[chain[0]](part_of(chain, rate, first), x)


def _haiku(part: Any, x: Any) -> Program:
    f = hk.transform_with_state(lambda x, train: part()(x, train))

    def apply(flat: Flat, x: Any, train: bool, key: Any = None) -> Any:
        (out, drawn), state = f.apply(*haiku_adapter.unflatten(flat), key, x, train)
        return out, drawn, {**flat, **haiku_adapter.flatten({}, state)}

    return Program(lambda key: haiku_adapter.flatten(*f.init(key, x, True)), apply)


def _linen(model: Any, x: Any) -> Program:
    def apply(flat: Flat, x: Any, train: bool, key: Any = None) -> Any:
        variables = linen_adapter.unflatten(br.State(flat))
        mutable = [name for name in variables if name != "params"]
        rngs = None if key is None else {"dropout": key}
        (out, drawn), new = model.apply(variables, x, train, rngs=rngs, mutable=mutable)
        return out, drawn, {**flat, **linen_adapter.flatten(new)}

    return Program(lambda key: linen_adapter.flatten(model.init(key, x, True)), apply)


def _nnx(part: Any, x: Any) -> Program:
    made = functools.cache(lambda: part(rngs=nnx.Rngs(KEY)))
    parts = functools.cache(lambda: nnx.split(made()))

    def merged(flat: Flat) -> Any:
        graphdef, state = parts()
        return nnx.merge(graphdef, nnx_adapter.unflatten(br.State(flat), state), copy=True)

    def apply(flat: Flat, x: Any, train: bool, key: Any = None) -> Any:
        model = merged(flat)
        out, drawn = model(x, train)
        return out, drawn, dict(nnx_adapter.flatten(model))

    def spoiled(flat: Flat, path: str, value: Any) -> Any:
        """Changes a Variable of a guest: NNX itself would refuse a module that lacks one, or has one more."""
        _, below = path.split("/guest/variables/", 1)
        collection = path.partition("/")[0]

        def call(flat: Flat) -> Any:
            model = merged(flat)
            node = model.guest.variables.tree
            *parents, leaf = below.split("/")
            for name in parents:
                node = node[name]
            node.pop(leaf, None)
            if value is not None:
                node[leaf] = nnx.variable_type_from_name(collection)(value)
            return model(X, False)[0]

        jax.eval_shape(call, flat)

    def init(key: Any) -> br.State:
        return nnx_adapter.flatten(made() if key is KEY else part(rngs=nnx.Rngs(key)))

    return Program(init, apply, spoiled)


def _core(net: Any, x: Any) -> Program:
    def apply(flat: Flat, x: Any, train: bool, key: Any = None) -> Any:
        state, (out, drawn) = br.pure(net)(flat, x, train, seed=key)
        return out, drawn, dict(state)

    return Program(lambda key: br.init(net)({}, x, True, seed=key), apply)


_ADAPTERS = {"haiku": haiku_adapter, "linen": linen_adapter, "nnx": nnx_adapter}


@functools.cache
def plan(src: str, dst: str, number: int) -> br.Plan:
    """Returns how the variables of a level of one framework become those of the same level of another."""
    x = X if number == 0 else jnp.ones((BATCH, WIDTH))
    specs = [_ADAPTERS[name].spec(part_of((name,), 0.0, number), x, True) for name in (src, dst)]
    return br.conventions(src, dst).plan(*specs)


_LAYER = re.compile(r"^(linear|norm)\d+$")


def tails(paths: Any) -> dict[str, str]:
    """Returns the paths of the layers' entries by what comes after the wrappers: `norm1/mean` for `…/norm1/mean`.

    The names of layers tell which entry it is, in a program of any framework: names of wrapped entries are kept.
    """
    found: dict[str, str] = {}
    for path in paths:
        segments = path.split("/")
        at = next((i for i, segment in enumerate(segments) if _LAYER.match(segment)), None)
        if at is not None:
            tail = "/".join(segments[at:])
            assert tail not in found, (path, found[tail])
            found[tail] = path
    return found


def values(state: Mapping[str, Any]) -> Flat:
    """Returns random values for the entries of layers, by tail: the same for one tail in any program."""
    result = {}
    for tail, path in tails(state).items():
        value = state[path]
        rng = np.random.default_rng(sum(map(ord, tail)))
        if jnp.issubdtype(value.dtype, jnp.floating):
            value = jnp.asarray(rng.uniform(0.5, 1.5, value.shape) * rng.choice([1, -1] if value.ndim > 1 else [1]))
            value = value.astype(jnp.float32)
        result[tail] = value
    return result


def placed(state: Mapping[str, Any], given: Flat) -> Flat:
    """Returns the variables with the values given by tail; others (random keys) stay."""
    return {**state, **{path: given[tail] for tail, path in tails(state).items()}}
