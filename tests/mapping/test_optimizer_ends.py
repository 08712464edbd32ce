"""Optimizer state into and out of `nnx.Optimizer` and `TrainState`: real training goes on, ten updates, end for end."""

from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict
from flax.training.train_state import TrainState

from bridges import haiku_adapter, linen_adapter, nnx_adapter
from bridges.core._errors import EntryShapeError, StructureError
from bridges.param_mapping import conventions
from tests.light import light

X = jax.random.normal(jax.random.key(0), (4, 3, 4))
Y = jax.random.normal(jax.random.key(1), (4, 3, 2))


# Attention without biases: the gradient of a key's bias is zero but for rounding, which Adam would blow up.
def old(x):
    x = hk.MultiHeadAttention(2, 2, w_init=hk.initializers.RandomNormal(), model_size=4, with_bias=False)(x, x, x)
    return hk.Linear(2)(hk.LayerNorm(-1, True, True, eps=1e-6)(x))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.MultiHeadDotProductAttention(2, use_bias=False)(x, x, x)
        return nn.Dense(2)(nn.LayerNorm(use_fast_variance=False)(x))


class Model(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 4, use_bias=False, rngs=rngs, decode=False)
        self.norm = nnx.LayerNorm(4, use_fast_variance=False, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(self.attention(x)))


HAIKU = hk.without_apply_rng(hk.transform(old))
SPECS = {
    "haiku": haiku_adapter.spec(old, X),
    "linen": linen_adapter.spec(Net(), X),
    "nnx": nnx_adapter.spec(Model(nnx.Rngs(0)), X),
}


def plan(src, dst):
    return conventions(src, dst).plan(SPECS[src], SPECS[dst])


def by_size(tree):
    return jax.tree.map(lambda x: "few" if x.size < 10 else "many", tree)


OPTIMIZERS = {
    "adamw": lambda: optax.adamw(1e-2),
    "multi_transform": lambda: optax.multi_transform({"few": optax.adam(1e-2), "many": optax.sgd(1e-2, 0.9)}, by_size),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=optax.linear_schedule(1e-2, 1e-3, 20)),
}


class HaikuEnd:
    def __init__(self, tx):
        self.tx, self.params = tx, HAIKU.init(jax.random.key(2), X)
        self.state = tx.init(self.params)

    def train(self, steps):
        @light
        def step(params, state):
            grads = jax.grad(lambda p: ((HAIKU.apply(p, X) - Y) ** 2).mean())(params)
            updates, state = self.tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        for _ in range(steps):
            self.params, self.state = step(self.params, self.state)

    def entries(self):
        return haiku_adapter.flatten(self.params)

    def load(self, entries, opt_state, steps):
        self.params, self.state = haiku_adapter.unflatten(entries)[0], opt_state


class LinenEnd:
    def __init__(self, tx):
        params = Net().init(jax.random.key(3), X)["params"]
        self.train_state = TrainState.create(apply_fn=Net().apply, params=params, tx=tx)

    params = property(lambda self: self.train_state.params)
    state = property(lambda self: self.train_state.opt_state)

    def train(self, steps):
        @light
        def step(state):
            grads = jax.grad(lambda p: ((state.apply_fn({"params": p}, X) - Y) ** 2).mean())(state.params)
            return state.apply_gradients(grads=grads)

        for _ in range(steps):
            self.train_state = step(self.train_state)

    def entries(self):
        return linen_adapter.flatten({"params": self.params})

    def load(self, entries, opt_state, steps):
        self.train_state = linen_adapter.train_state(self.train_state, entries, opt_state, step=steps)
        assert self.train_state.step == steps


class NNXEnd:
    def __init__(self, tx):
        self.model = Model(nnx.Rngs(4))
        self.optimizer = nnx.Optimizer(self.model, tx, wrt=nnx.Param)

    params = property(lambda self: nnx.state(self.model, nnx.Param))
    state = property(lambda self: self.optimizer.opt_state)

    def train(self, steps):
        @nnx.jit
        def step(model, optimizer):
            optimizer.update(model, nnx.grad(lambda model: ((model(X) - Y) ** 2).mean())(model))

        for _ in range(steps):
            step(self.model, self.optimizer)

    def entries(self):
        return nnx_adapter.flatten(nnx.state(self.model, nnx.Param))

    def load(self, entries, opt_state, steps):
        rest = nnx_adapter.flatten(self.model)
        nnx.update(self.model, nnx_adapter.unflatten(rest | entries, self.model))
        nnx.update(self.optimizer, nnx_adapter.optimizer_state(opt_state, self.optimizer, step=steps))
        assert int(self.optimizer.step[...]) == steps


ENDS = {"haiku": HaikuEnd, "linen": LinenEnd, "nnx": NNXEnd}


@pytest.mark.parametrize(
    ("src", "dst", "name"),
    [
        ("haiku", "nnx", "multi_transform"),
        ("linen", "nnx", "injected"),
        ("nnx", "linen", "adamw"),
        ("nnx", "haiku", "adamw"),
    ],
)
def test_training_goes_on(src, dst, name):
    ours, theirs, way = ENDS[src](OPTIMIZERS[name]()), ENDS[dst](OPTIMIZERS[name]()), plan(src, dst)
    ours.train(4)
    theirs.load(way.forward(ours.entries()), way.optimizer(ours.state, ours.params, theirs.params), 4)
    ours.train(10)
    theirs.train(10)
    wanted, got = way.forward(ours.entries()), theirs.entries()
    for (
        path,
        want,
    ) in wanted.items():  # attention sums in another order: a few units in the last place, grown by training
        np.testing.assert_allclose(got[path], want, rtol=1e-4, atol=1e-5)


def test_an_optimizer_takes_no_other_state():
    end = NNXEnd(optax.adam(1e-2))
    with pytest.raises(StructureError, match=r"missing 'opt_state/0/mu"):
        nnx_adapter.optimizer_state(optax.sgd(1e-2).init(end.params), end.optimizer)
    wrong = jax.tree.map(lambda x: jnp.zeros((*x.shape, 1)), nnx.as_pure(end.state))
    with pytest.raises(EntryShapeError, match="opt_state/0/mu/head/bias"):
        nnx_adapter.optimizer_state(wrong, end.optimizer)
    with pytest.raises(StructureError, match=r"nnx.Optimizer is wanted"):
        nnx_adapter.optimizer_state(wrong, end.model)
    kept = nnx_adapter.optimizer_state(nnx.as_pure(end.state), end.optimizer)
    assert int(kept["step"][...]) == 0


def test_the_optimizer_of_an_old_style_holds_its_model():
    model = Model(nnx.Rngs(0))
    optimizer = nnx.ModelAndOptimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    new = nnx_adapter.optimizer_state(jax.tree.map(lambda x: x + 1, nnx.as_pure(optimizer.opt_state)), optimizer)
    nnx.update(optimizer, new)
    assert float(optimizer.opt_state[0].mu["head"]["bias"][0]) == 1


class Stated(TrainState):
    batch_stats: Any
    dropout_key: Any


def stated(tx):
    model = nn.Sequential([nn.Dense(2), nn.BatchNorm(use_running_average=False)])
    variables = model.init(jax.random.key(0), X)
    return variables, Stated.create(apply_fn=model.apply, tx=tx, dropout_key=jax.random.key(1), **variables)


def test_a_train_state_with_more_collections():
    variables, fresh = stated(optax.adam(1e-2))
    flat = linen_adapter.flatten(jax.tree.map(lambda x: x + 1, variables))
    new = linen_adapter.train_state(fresh, flat, fresh.opt_state, step=3)
    assert float(new.batch_stats["layers_1"]["mean"][0]) == 1 and new.step == 3
    assert new.dropout_key is fresh.dropout_key and jax.tree.structure(new) == jax.tree.structure(fresh)
    frozen = fresh.replace(params=FrozenDict(fresh.params))
    assert type(linen_adapter.train_state(frozen, variables, fresh.opt_state).params) is FrozenDict


def test_a_train_state_takes_nothing_else():
    variables, fresh = stated(optax.adam(1e-2))
    plain = TrainState.create(apply_fn=None, params=variables["params"], tx=optax.adam(1e-2))
    with pytest.raises(StructureError, match="no fields for these collections:\n  - 'batch_stats'"):
        linen_adapter.train_state(plain, variables, plain.opt_state)
    with pytest.raises(StructureError, match="missing '0/count'"):
        linen_adapter.train_state(fresh, variables, optax.sgd(1.0).init(variables["params"]))
    with pytest.raises(StructureError, match="have no params"):
        linen_adapter.train_state(fresh, {"batch_stats": {}}, fresh.opt_state)
