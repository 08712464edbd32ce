"""One small network in each framework, with every variable random; batch norm, two dense layers and a convolution."""

import flax.linen as nn
import haiku as hk
import jax
import numpy as np
from flax import nnx

X = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)


def forward(x, train=True):
    x = hk.Conv1D(4, 3, name="stem")(x)
    x = hk.BatchNorm(True, True, 0.9, name="norm")(x, train)
    return hk.nets.MLP([5, 2], name="head")(jax.nn.relu(x))


HAIKU = hk.without_apply_rng(hk.transform_with_state(forward))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3,), name="stem")(x)
        x = nn.BatchNorm(not train, momentum=0.9, name="norm")(x)
        return nn.Dense(2, name="dense_1")(nn.relu(nn.Dense(5, name="dense_0")(nn.relu(x))))


LINEN = Linen()


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 4, (3,), rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, use_running_average=True, rngs=rngs)
        self.head = nnx.List([nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)])

    def __call__(self, x):
        return self.head[1](nnx.relu(self.head[0](nnx.relu(self.norm(self.stem(x))))))


class Dropping(NNX):
    """The same with random state."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)


def randomised(tree, seed=1):
    """Returns the tree with positive random values: no leaf is at its initial value, and variances are variances."""
    rng = np.random.default_rng(seed)

    def one(x):
        high = 9 if np.issubdtype(x.dtype, np.integer) else 1.3
        return np.asarray(rng.uniform(0.3, high, x.shape)).astype(x.dtype)

    return jax.tree.map(one, tree)


def haiku_variables():
    """Returns Haiku's `(params, state)` of `HAIKU`, as plain dictionaries of NumPy arrays."""
    pair = jax.eval_shape(lambda key: HAIKU.init(key, X, True), jax.random.key(0))
    return tuple(randomised({module: dict(leaves) for module, leaves in bundle.items()}) for bundle in pair)


def linen_variables():
    """Returns the variables of `LINEN`."""
    return randomised(jax.eval_shape(lambda key: LINEN.init(key, X), jax.random.key(0)))
