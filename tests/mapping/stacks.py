"""One model seven times: three blocks and a head, stacked or unrolled, in three frameworks; its functions and specs.

A block has attention, BatchNorm, and two linear layers: reshapes, a state with a counter, renames. All blocks are of one
width, so that the stack's size coincides with a width in `linen scan 1`, and only the right axis is right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bridges import haiku_adapter, linen_adapter, nnx_adapter

LAYERS, WIDTH = 3, 3
X = np.random.default_rng(7).normal(size=(2, 3, WIDTH)).astype(np.float32)
some = hk.initializers.RandomNormal()


def randomised(spec: Any, seed: int) -> dict[str, np.ndarray]:
    """Random values for every entry; variances are positive and counters count."""
    rng = np.random.default_rng(seed)
    out = {}
    for path, x in spec.entries.items():
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            continue
        value = rng.normal(size=x.shape) * 0.5
        if path.rpartition("/")[2] in ("var", "average", "hidden"):
            value = rng.uniform(0.5, 1.5, x.shape)
        if not np.issubdtype(x.dtype, np.inexact):
            value = rng.integers(3, 9, x.shape)
        out[path] = np.asarray(value, x.dtype)
    return out


def haiku_block(x: Any) -> Any:
    h = hk.BatchNorm(True, True, 0.9, name="norm")(x, True)
    x = x + hk.MultiHeadAttention(3, 1, w_init=some, model_size=WIDTH, name="attn")(h, h, h)
    return x + hk.Linear(WIDTH, name="down")(jnp.tanh(hk.Linear(2 * WIDTH, name="up")(x)))


def haiku_stacked(x: Any) -> Any:
    x = hk.experimental.layer_stack(LAYERS, name="blocks")(haiku_block)(x)
    return hk.Linear(2, name="head")(x)


class HaikuBlock(hk.Module):
    def __call__(self, x: Any) -> Any:
        return haiku_block(x)


def haiku_unrolled(x: Any) -> Any:
    for _ in range(LAYERS):
        x = HaikuBlock(name="block")(x)
    return hk.Linear(2, name="head")(x)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> Any:
        h = nn.BatchNorm(use_running_average=False, momentum=0.9, name="norm")(x)
        x = x + nn.MultiHeadDotProductAttention(3, qkv_features=WIDTH, out_features=WIDTH, name="attn")(h)
        return x + nn.Dense(WIDTH, name="down")(jnp.tanh(nn.Dense(2 * WIDTH, name="up")(x))), None


class LinenStacked(nn.Module):
    axis: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        scanned = nn.scan(
            LinenBlock,
            variable_axes={"params": self.axis, "batch_stats": 0},
            split_rngs={"params": True},
            length=LAYERS,
        )
        x, _ = scanned()(x, None)
        return nn.Dense(2, name="head")(x)


class LinenUnrolled(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(LAYERS):
            x, _ = LinenBlock()(x)
        return nn.Dense(2, name="head")(x)


class NNXBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(WIDTH, momentum=0.9, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(3, WIDTH, WIDTH, WIDTH, decode=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x + self.attn(self.norm(x))
        return x + self.down(jnp.tanh(self.up(x)))


class NNXStacked(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.split_rngs(splits=LAYERS)(nnx.vmap(NNXBlock))(rngs)
        self.head = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        run = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.head(run(x, self.blocks))


class NNXUnrolled(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([NNXBlock(rngs) for _ in range(LAYERS)])
        self.head = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@dataclasses.dataclass(frozen=True)
class Form:
    """A model in one form: its framework, its spec, and its output for a flat state."""

    framework: str
    spec: Any
    run: Callable[[dict[str, Any], Any], Any]


def in_haiku(fn: Callable[[Any], Any], x: Any = X) -> Form:
    model = hk.transform_with_state(fn)
    spec = haiku_adapter.spec(fn, x)

    def run(state: dict[str, Any], x: Any) -> Any:
        return model.apply(*haiku_adapter.unflatten(state), None, x)[0]

    return Form("haiku", spec, run)


def in_linen(module: nn.Module, x: Any = X) -> Form:
    spec = linen_adapter.spec(module, x)

    def run(state: dict[str, Any], x: Any) -> Any:
        return module.apply(linen_adapter.unflatten(state, spec.native), x, mutable=["batch_stats"])[0]

    return Form("linen", spec, run)


def in_nnx(make: Callable[..., Any], x: Any = X) -> Form:
    spec = nnx_adapter.spec(make)
    like = make(rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(like)
    own = nnx_adapter.flatten(state)

    def run(state: dict[str, Any], x: Any) -> Any:
        model = nnx.merge(graphdef, nnx_adapter.unflatten({**own, **state}, like))
        return model(x)

    return Form("nnx", spec, run)


FORMS: dict[str, Callable[[], Form]] = {
    "haiku stack": lambda: in_haiku(haiku_stacked),
    "haiku": lambda: in_haiku(haiku_unrolled),
    "linen scan 0": lambda: in_linen(LinenStacked(0)),
    "linen scan 1": lambda: in_linen(LinenStacked(1)),
    "linen": lambda: in_linen(LinenUnrolled()),
    "nnx stack": lambda: in_nnx(NNXStacked),
    "nnx": lambda: in_nnx(NNXUnrolled),
}
