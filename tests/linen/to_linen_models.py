"""Parts of every framework, for the tests of `ToLinen`."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import bridges as br
from tests.linen.models import randomised
from tests.parts import Calls
from tests.parts import LinenNet as LinenNet
from tests.parts import X as X
from tests.parts import batch_net as batch_net
from tests.parts import mlp as mlp

KEY = jax.random.key(7)


def dropping(x, is_training=True):
    x = hk.Linear(6)(x)
    return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x


class Net(nnx.Module):
    """BatchNorm, dropout, something sown, and methods."""

    def __init__(self, size=6, rate=0.5, *, rngs):
        self.dense = nnx.Linear(3, size, rngs=rngs)
        self.norm = nnx.BatchNorm(size, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(size, 2, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.dense(x))
        self.sow(nnx.Intermediate, "normed", x)
        return self.head(self.drop(x))

    def encode(self, x):
        return self.dense(x)


class Core(br.Module):
    """A layer of each framework, a counter of a kind of its own, and something recorded."""

    size: int = 2

    def __init__(self):
        self.enc = br.HaikuModule(hk.nets.MLP, [5, 4])

    def __call__(self, x):
        x = self.get("head", br.FromFlax(nn.Dense), self.size)(self.enc(x))
        calls = self.get("calls", jnp.zeros, (), jnp.int32, kind=Calls)
        self.put("calls", calls + 1)
        self.put("out", x, kind=br.Intermediate)
        return x + self.get("bias", jnp.ones, (self.size,))

    def encode(self, x):
        return self.enc(x)


def flat(variables):
    """Returns the entries of Linen variables by path."""
    return dict(br.linen_adapter.flatten(variables))


def close(a, b):
    """Compares two trees to the rounding of float32 sums that are added up in another order."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def initial(model, *args, **kwargs):
    """Returns random variables of a model; what is recorded is left out."""
    return randomised(jax.eval_shape(lambda: model.init(KEY, *args, **kwargs)))
