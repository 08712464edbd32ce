"""The host's flags as arguments of an NNX module's call; `test_wrapper.py` has those that set attributes."""

from __future__ import annotations

import flax.linen as nn
import haiku as hk
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


class Mixed(br.Module):
    """Layers that hear of training from nobody but the flags."""

    def __init__(self):
        self.linen = br.FlaxModule(nn.Sequential, [nn.Dense(4), nn.Dropout(0.5), nn.BatchNorm()])
        self.haiku = br.HaikuModule(hk.BatchNorm, True, True, 0.9)
        self.nnx = br.NNXModule(nnx.BatchNorm, 4)

    def __call__(self, x):
        return self.nnx(self.haiku(self.linen(x)))


def test_train_and_eval_of_to_nnx_reach_the_layers_inside_of_a_core_module():
    model = br.ToNNX(Mixed(), rngs=nnx.Rngs(0))
    model.train()
    model.lazy_init(X)
    for train in (True, False):
        model.train() if train else model.eval()
        before = jax.tree.map(lambda x: x, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
        outs = [model(X) for _ in range(2)]
        after = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        moved = [bool((a != b).any()) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)]
        assert bool((outs[0] != outs[1]).any()) is train
        assert all(moved) if train else not any(moved)
