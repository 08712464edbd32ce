"""Twelve equal layers: a Haiku MLP by number, an NNX list made from the end."""

import haiku as hk
import jax
import numpy as np
from flax import nnx

WIDTH, DEPTH = 8, 12


def source():
    def forward(x):
        return hk.nets.MLP([WIDTH] * DEPTH, activation=jax.nn.gelu, name="regressor")(x)

    return forward


class Regressor(nnx.Module):
    def __init__(self, rngs):
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.fcs = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(DEPTH - 1)])

    def __call__(self, x):
        for fc in self.fcs:
            x = nnx.gelu(fc(x))
        return self.out(x)


def target():
    return lambda: Regressor(nnx.Rngs(0))


def inputs():
    return (np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float32),)


def truth(s):
    made = {}
    for i in range(DEPTH):
        to = "params/out" if i == DEPTH - 1 else f"params/fcs/{i}"
        made[f"{to}/kernel"] = s[f"params/regressor/~/linear_{i}/w"]
        made[f"{to}/bias"] = s[f"params/regressor/~/linear_{i}/b"]
    return made
