"""100 layers, scanned in Linen, unrolled in NNX"""

import flax.linen as nn
import numpy as np
from flax import nnx

DIM, LAYERS = 8, 100
SLOW = True


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.Dense(DIM, name="wi")(nn.LayerNorm(name="ln")(x))
        return x + nn.Dense(DIM, name="wo")(nn.gelu(y)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
        x, _ = stack(name="layers")(x, None)
        return nn.Dense(DIM, name="head")(x)


def source():
    return Scanned()


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(DIM, rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(DIM, DIM, rngs=rngs), nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return x + self.fc2(nnx.gelu(self.fc1(self.norm(x))))


class Unrolled(nnx.Module):
    def __init__(self, rngs):
        self.readout = nnx.Linear(DIM, DIM, rngs=rngs)
        self.blocks = nnx.List([Layer(rngs) for _ in range(LAYERS)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.readout(x)


def target():
    return lambda: Unrolled(nnx.Rngs(0))


def inputs():
    return (np.random.default_rng(0).normal(size=(4, DIM)).astype(np.float32),)


def truth(s):
    made = {f"params/readout/{leaf}": s[f"params/head/{leaf}"] for leaf in ("kernel", "bias")}
    for i in range(LAYERS):
        for new, old in (("fc1", "wi"), ("fc2", "wo"), ("norm", "ln")):
            weight = "scale" if new == "norm" else "kernel"
            made |= {
                f"params/blocks/{i}/{new}/{leaf}": s[f"params/layers/{old}/{leaf}"][i] for leaf in (weight, "bias")
            }
    return made
