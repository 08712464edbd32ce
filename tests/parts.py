"""Small parts, [4, 3] -> [4, 2], that the tests of bridges into several frameworks wrap.

A test of one bridge has parts of its own beside them, where it looks at something that these do not have.
"""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
from flax import linen as nn

import bridges as br
from tests.arrays import inputs

X = inputs(4, 3)


def mlp(x):
    return hk.nets.MLP([5, 2])(x)


def batch_net(x, is_training=True):
    x = hk.Linear(6)(x)
    x = hk.BatchNorm(True, True, 0.9)(x, is_training)
    return hk.Linear(2)(jax.nn.relu(x))


class LinenNet(nn.Module):
    """BatchNorm, dropout and something sown."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(6)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        self.sow("intermediates", "normed", x)
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


class Calls(br.Variable): ...


class Core(br.Module):
    """Layers of two frameworks, an entry of its own, and a counter of a kind of its own; no method but its call."""

    size: int = 2

    def __init__(self):
        self.enc = br.HaikuModule(hk.nets.MLP, [5, 4])

    def __call__(self, x):
        x = self.get("head", br.FromFlax(nn.Dense), self.size)(self.enc(x))
        calls = self.get("calls", jnp.zeros, (), jnp.int32, kind=Calls)
        self.put("calls", calls + 1)
        return x + self.get("bias", jnp.ones, (self.size,))
