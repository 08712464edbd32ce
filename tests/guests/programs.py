"""A chain of levels as a program of its first framework: how that framework itself initialises and calls a model.

Variables are flat dictionaries, made and taken apart by the adapters; nothing else here is ours.
"""

from __future__ import annotations

import dataclasses
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
from tests.guests.levels import BATCH, INPUTS, part_of

Flat = dict[str, Any]
X = jnp.asarray(np.random.default_rng(5).normal(size=(BATCH, INPUTS)), jnp.float32)
Y = jnp.sin(X.sum(1) * 2)


@dataclasses.dataclass(frozen=True)
class Program:
    """A model.

    Attributes:
      init: Returns the variables, from a key.
      apply: Returns output, the keys that were drawn, and the variables, from variables, inputs, whether it trains, a key
        (None where nothing is drawn), and keys to take for those that are drawn.
    """

    init: Callable[..., br.State]
    apply: Callable[..., tuple[Any, Any, Flat]]


def program(chain: tuple[str, ...], rate: float = 0.0, first: int = 0) -> Program:
    """Returns a chain as a program."""
    x = X if first == 0 else jnp.ones((BATCH, _width()))
    return {"haiku": _haiku, "linen": _linen, "nnx": _nnx, "core": _core}[chain[0]](part_of(chain, rate, first), x)


def _width() -> int:
    from tests.guests.levels import WIDTH

    return WIDTH


def _haiku(part: Any, x: Any) -> Program:
    f = hk.transform_with_state(lambda x, train, given=None: part()(x, train, given))

    def apply(flat: Flat, x: Any, train: bool, key: Any = None, given: Any = None) -> Any:
        (out, drawn), state = f.apply(*haiku_adapter.unflatten(flat), key, x, train, given)
        return out, drawn, {**flat, **haiku_adapter.flatten({}, state)}

    return Program(lambda key: haiku_adapter.flatten(*f.init(key, x, True)), apply)


def _linen(model: Any, x: Any) -> Program:
    def init(key: Any) -> br.State:
        return linen_adapter.flatten(model.init(key, x, True))

    def apply(flat: Flat, x: Any, train: bool, key: Any = None, given: Any = None) -> Any:
        variables = linen_adapter.unflatten(br.State(flat))
        mutable = [name for name in variables if name != "params"]
        rngs = None if key is None else {"dropout": key}
        (out, drawn), new = model.apply(variables, x, train, given, rngs=rngs, mutable=mutable)
        return out, drawn, {**flat, **linen_adapter.flatten(new)}

    return Program(init, apply)


def _nnx(part: Any, x: Any) -> Program:
    made = lambda key: part(rngs=nnx.Rngs(key))  # noqa: E731
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: made(jax.random.key(0))))

    def apply(flat: Flat, x: Any, train: bool, key: Any = None, given: Any = None) -> Any:
        model = nnx.merge(graphdef, nnx_adapter.unflatten(br.State(flat), abstract), copy=True)
        out, drawn = model(x, train, given)
        return out, drawn, dict(nnx_adapter.flatten(model))

    return Program(lambda key: nnx_adapter.flatten(made(key)), apply)


def _core(net: Any, x: Any) -> Program:
    def apply(flat: Flat, x: Any, train: bool, key: Any = None, given: Any = None) -> Any:
        state, (out, drawn) = br.pure(net)(flat, x, train, given, seed=key)
        return out, drawn, dict(state)

    return Program(lambda key: br.init(net)({}, x, True, seed=key), apply)


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
