"""A core part with control flow of its own, as a guest: the host's keys reach into loops and branches."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import bridges as br

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
KEY = jax.random.key(1)


class Looping(br.Module):
    def __init__(self):
        self.linear, self.drop = br.FlaxModule(nn.Dense, 3), br.FlaxModule(nn.Dropout, 0.5)

    def __call__(self, x, train=False):
        def step(x, _):
            return self.drop(self.linear(x), deterministic=not train), None

        x, _ = br.scan(step, x, None, length=3)
        x = br.cond(x.sum() > -1e9, lambda x: self.drop(x, deterministic=not train), lambda x: x, x)
        x = br.vmap(lambda x: self.drop(x, deterministic=not train))(x)
        return br.checkpoint(self.linear)(br.jit(self.linear)(x))


def in_haiku(state, x, train):
    f = hk.transform(lambda x: br.ToHaiku(Looping(), name="looping")(x, train))
    params, _ = br.haiku_adapter.unflatten({f"params/{p}": v for p, v in state.items()})
    return f.apply(params, KEY if train else None, x), next(hk.PRNGSequence(KEY))


def in_linen(state, x, train):
    variables = br.linen_adapter.unflatten(br.State({f"params/{p}": v for p, v in state.items()}))
    return br.ToLinen(Looping()).apply(variables, x, train, rngs={"dropout": KEY} if train else None), {"dropout": KEY}


def in_nnx(state, x, train):
    model = br.ToNNX(Looping(), rngs=nnx.Rngs(7)).lazy_init(x)
    for path, value in state.items():
        model.variables[path].set_value(value)
    key = jax.random.fold_in(model.rngs.default.key[...], model.rngs.default.count[...])
    return model(x, train), key


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("host", [in_haiku, in_linen, in_nnx])
def test_the_hosts_keys_reach_into_control_flow(host, train):
    state = br.init(Looping())({}, X, seed=0)
    out, key = host(state, X, train)
    np.testing.assert_allclose(out, br.pure(Looping())(state, X, train, seed=key)[1], rtol=1e-6)
    if train:
        assert not np.array_equal(out, br.pure(Looping())(state, X, train, seed=5)[1])
