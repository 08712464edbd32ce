"""The host's flags as arguments of an NNX module's call; `test_wrapper.py` has those that set attributes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

import bridges as br

X = jax.random.normal(jax.random.key(0), (4, 3))


class Block(nnx.Module):
    """As in the README of the first NNX: told by an argument."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x, *, train):
        x = self.norm(self.linear(x), use_running_average=not train)
        return self.dropout(x, deterministic=not train)

    def scaled(self, x, is_training=False, deterministic=None):
        return x * (2 if is_training else 1) * (3 if deterministic is None else 5)


def test_train_is_passed_to_a_call_that_takes_it():
    net = br.NNXModule(Block)
    state = br.init(net)({}, X, seed=0, flags={"train": False})
    for train in (True, False):
        new, out = jax.jit(br.pure(net, flags={"train": train}))(state, X)
        assert bool((out == 0).any()) is train
        assert bool((new["block/batch_stats/norm/mean"] != state["block/batch_stats/norm/mean"]).any()) is train
        explicit, wanted = br.pure(net)(state, X, train=train)
        np.testing.assert_allclose(out, wanted, rtol=1e-6)
        assert br.pure(net, flags={"train": not train})(state, X, train=train)[0].keys() == explicit.keys()
    with pytest.raises(TypeError, match="train"):
        br.pure(net)(state, X)


def test_an_argument_that_is_open_by_default_is_left_to_the_attributes():
    net = br.NNXModule(Block)
    state = br.init(net)({}, X, seed=0, flags={"train": False})
    for fn in (net.scaled, lambda x: net(x, method="scaled"), lambda x: net(x, method=Block.scaled)):
        np.testing.assert_allclose(br.pure(fn, flags={"train": True})(state, X)[1], 6 * X, rtol=1e-6)
        np.testing.assert_allclose(br.pure(fn)(state, X)[1], 3 * X, rtol=1e-6)
