"""`infer_mapping` of networks of 10, 50 and 100 layers, against the forward pass of the model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from flax import linen as nn

import bridges as br
from benchmarks.paired import Spread, paired
from benchmarks.table import Row, Table, growth

WIDTH = 16


def measure(quick: bool = False) -> Table:
    """Returns the table."""
    found: list[Row] = []
    for layers in (10,) if quick else (10, 50, 100):
        haiku, linen = models(layers)
        x = jnp.ones((4, WIDTH))
        forward = paired({"forward": forward_pass(linen, x)}, 7)["forward"].seconds
        took = []
        for _ in range(1 if quick else 3):
            began = time.perf_counter()
            mapping = br.infer_mapping(haiku, linen, x)
            took.append(time.perf_counter() - began)
        plan = mapping.plan(br.haiku_adapter.spec(haiku, x), br.linen_adapter.spec(linen, x))
        spread = Spread.of(took)
        ratio = Spread(*(s / forward.median for s in (spread.median, spread.low, spread.high)))
        found += [
            Row(f"{layers} layers", "forward pass, compiled", forward, size=layers),
            Row(f"{layers} layers", "infer_mapping", spread, ratio, layers, {"leaves mapped": len(plan.dst)}),
        ]
    return Table(
        "inference",
        "`infer_mapping`",
        "linear in layers; 60 s at 100",
        tuple(found),
        (
            "Residual blocks of a layer norm, a linear layer up, an activation and one down, in Haiku and in Linen, with"
            " other names and another order of definition; the whole call: tracing both, matching, and the proof.",
            *growth(found),
        ),
    )


def forward_pass(model: Any, x: Any) -> Callable[[], Any]:
    """Returns a compiled call of a Linen module."""
    variables = model.init(jax.random.key(0), x)
    run = jax.jit(model.apply)
    return lambda: jax.block_until_ready(run(variables, x))


def models(layers: int) -> tuple[Any, Any]:
    """Returns a Haiku function and a Linen module of so many layers (two of them linear ones in each block)."""
    blocks = layers // 2

    def haiku(x: Any) -> Any:
        for _ in range(blocks):
            h = hk.LayerNorm(-1, True, True)(x)
            x = x + hk.Linear(WIDTH, name="down")(jax.nn.gelu(hk.Linear(2 * WIDTH, name="up")(h)))
        return x

    class Block(nn.Module):
        def setup(self) -> None:
            self.shrink, self.grow = nn.Dense(WIDTH), nn.Dense(2 * WIDTH)
            self.norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)

        def __call__(self, x: Any) -> Any:
            return x + self.shrink(nn.gelu(self.grow(self.norm(x))))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for _ in range(blocks):
                x = Block()(x)
            return x

    return haiku, Net()
