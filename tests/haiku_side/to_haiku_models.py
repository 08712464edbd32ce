"""Parts of every framework as Haiku modules, with values of which every number is random."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter
from bridges.haiku_adapter import ToHaiku
from tests.parts import Calls as Calls
from tests.parts import Core
from tests.parts import X as X

KEY = jax.random.PRNGKey(0)


def first(key=KEY):
    """Returns what the first `hk.next_rng_key()` gives, the key of which initial values are the native ones."""
    return next(hk.PRNGSequence(key))


def randomised(tree, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda v: jnp.asarray(rng.uniform(0.5, 1.5, v.shape), v.dtype)  # noqa: E731
    return jax.tree.map(lambda v: draw(v) if jnp.issubdtype(v.dtype, jnp.floating) else v, tree)


def batch_net(x, is_training=True):
    return hk.BatchNorm(True, True, 0.9)(hk.Linear(6)(x), is_training)


class Net(nn.Module):
    """BatchNorm, and dropout."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(6)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.norm = nnx.Linear(3, 6, rngs=rngs), nnx.BatchNorm(6, momentum=0.9, rngs=rngs)
        self.drop, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(self.norm(self.linear(x))))

    def encode(self, x):
        return self.linear(x)


class Coder(nn.Module):
    def setup(self):
        self.enc, self.dec = nn.Dense(4), nn.Dense(3)

    def __call__(self, x):
        return self.dec(self.enc(x))

    def encode(self, x):
        return self.enc(x)

    def decode(self, z):
        return self.dec(z)


def linen(part, *args, **kwargs):
    """Returns a transformed function that calls a part of this name."""
    return hk.transform_with_state(lambda x, **given: ToHaiku(part, *args, name="net", **kwargs)(x, **given))


NET, NNX_NET, CORE = linen(Net()), linen(NNXNet), linen(Core())


def native_net(params, state):
    """Returns the Linen variables of `NET`."""
    flat = haiku_adapter.flatten(params, state)
    moved = {p.replace("state/net/", "").replace("params/net/", "params/"): v for p, v in flat.items()}
    return linen_adapter.unflatten(br.State(moved))


class Deep(br.Module):
    size: int = 3

    def __init__(self):
        self.layers = [br.FlaxModule(nn.Dense, self.size) for _ in range(2)]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def nnx_native(params, state, seed=0):
    """Returns the NNX module with the values of `NNX_NET`."""
    model = NNXNet(nnx.Rngs(seed))
    entries = {"params/" + p.split("/", 2)[2]: v for p, v in haiku_adapter.flatten(params).items()}
    entries |= {p.split("/", 2)[2]: v for p, v in haiku_adapter.flatten({}, state).items()}
    nnx.update(model, nnx_adapter.unflatten(br.State({**nnx_adapter.flatten(model), **entries}), model))
    return model


def without(tree, module, leaf):
    return {m: {n: v for n, v in leaves.items() if (m, n) != (module, leaf)} for m, leaves in tree.items()}
