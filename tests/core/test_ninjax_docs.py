"""The snippets of the two Ninjax documents, with bridges as nj.

Adapted: `jax.tree.map` for the removed `jax.tree_map`, `(state, out)` as in the quickstart where the tutorial has the two
the other way round, a constructor where a snippet reads an entry before anything has made it, and shapes that fit.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bridges as nj

Linear = nj.FromFlax(nn.Dense)


class Regressor(nj.Module):
    lr: float = 0.01

    def __init__(self, size):
        self.size = size
        self.opt = optax.adam(self.lr)
        self.h1 = Linear(16, name="h1")
        self.h2 = Linear(16, name="h2")

    def predict(self, x):
        x = jax.nn.relu(self.h1(x))
        x = jax.nn.relu(self.h2(x))
        x = self.get("h3", Linear, self.size, use_bias=False)(x)
        x += self.get("bias", jnp.zeros, self.size)
        return x

    def train(self, x, y):
        keys = [self.h1, self.h2, f"{self.path}/h3", f"{self.path}/bias"]
        loss, params, grads = nj.grad(self.loss, keys)(x, y)
        optstate = self.get("optstate", self.opt.init, params)
        updates, optstate = self.opt.update(grads, optstate)
        self.put(optax.apply_updates(params, updates))
        return loss

    def loss(self, x, y):
        return ((self.predict(x) - y) ** 2).mean()


X = jnp.ones((8, 4), jnp.float32)
Y = jnp.ones((8, 3), jnp.float32)


def test_quickstart():
    model = Regressor(3, lr=0.01, name="model")
    state = {}
    state = nj.init(model.train)(state, X, Y, seed=0)
    np.testing.assert_array_equal(state["model/bias"], [0.0, 0.0, 0.0])
    train = nj.pure(model.train)
    train = jax.jit(train)
    losses = []
    for x, y in [(X, Y)] * 10:
        state, loss = train(state, x, y)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert state["model/bias"].shape == (3,) and (state["model/bias"] != 0).all()
    assert train._cache_size() == 1
    assert all(isinstance(key, str) and isinstance(value, jax.Array) for key, value in state.items())


def test_several_functions_populate_one_state():
    model = Regressor(3, name="model")
    state = nj.init(model.predict)({}, X, seed=0)
    params = set(state)
    state = nj.init(model.train)(state, X, Y, seed=0)
    assert params < set(state) and any(path.startswith("model/optstate/") for path in set(state) - params)
    state, out = jax.jit(nj.pure(model.predict))(state, X)
    assert out.shape == (8, 3)


def test_creating_entries():
    seen = []

    class Affine(nj.Module):
        def compute(self, x):
            init = jax.nn.initializers.variance_scaling(1, "fan_avg", "uniform")
            weights = self.get("weights", init, nj.rng(), (64, 32))
            bias = self.get("bias", jnp.zeros, (32,), jnp.float32)
            seen.append(sorted(self.getm()))
            return x @ weights + bias

    model = Affine(name="module")
    state = nj.init(model.compute)({}, jnp.ones((1, 64)), seed=0)
    state, out = nj.pure(model.compute)(state, jnp.ones((1, 64)), seed=0)
    assert out.shape == (1, 32) and seen[-1] == ["module/bias", "module/weights"]


@pytest.mark.parametrize("write", ["put", "putm"])
def test_updating_entries(write):
    seen = []

    class Counting(nj.Module):
        def counting(self):
            counter = nj.get("counter", jnp.zeros, (), jnp.int32)
            self.put("counter", counter + 1)
            seen.append(self.get("counter"))
            state = self.getm()
            state["counter"] += 1
            getattr(self, write)(state)
            seen.append(self.getm()["counter"])
            seen.append(self.get("counter"))

    model = Counting()
    state = nj.init(model.counting)({})
    seen.clear()
    state, _ = nj.pure(model.counting)(state)
    assert [int(n) for n in seen] == [1, 2, 2] and state == {"counting/counter": 2}


def test_compiling_and_creating_at_once():
    model = Regressor(3, name="model")
    train = nj.jit(model.train)
    params = {}
    for _ in range(3):
        params, _ = train(params, X, Y, seed=0)
    assert (params["model/bias"] != 0).all()
    created, _ = jax.jit(functools.partial(nj.pure(model.train), create=True))({}, X, Y, seed=0)
    assert set(created) == set(params)


def test_gradients_of_explicit_inputs_and_of_state():
    class Model(nj.Module):
        def __call__(self, x):
            return x @ self.get("w", jnp.ones, (4, 3)) + self.get("b", jnp.zeros, 3)

        def train(self, x, y):
            self(x)
            params = self.getm(".*")
            loss, params, grads = nj.grad(self.loss, params.keys())(x, y)
            params = jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)
            self.putm(params)
            return loss

        def loss(self, x, y):
            return ((self(x) - y) ** 2).mean()

    model = Model()
    state = nj.init(model.train)({}, X, Y)
    new, _ = nj.pure(model.train)(state, X, Y)
    wanted = jax.grad(lambda p: ((X @ p["model/w"] + p["model/b"] - Y) ** 2).mean())(dict(state))
    for path in state:
        np.testing.assert_allclose(new[path], state[path] - 0.01 * wanted[path], rtol=1e-6)
    grad = jax.grad(lambda x: nj.pure(model.loss)(state, x, Y)[1])(X)
    assert grad.shape == X.shape


def test_the_global_state():
    inner, outer = Linear(2, name="inner"), Linear(2, name="outer")

    def fn(x):
        outer(inner(x))
        assert set(inner.getm(".*kernel")) == {path for path in nj.state() if "inner" in path and "kernel" in path}
        return {path: value.shape for path, value in nj.state().items()}

    state = nj.init(fn)({}, X, seed=0)
    assert len(nj.pure(fn)(state, X)[1]) == len(state) == 4


def test_compact_modules():
    class Compact(nj.Module):
        def __call__(self, x):
            x = jax.nn.relu(self.get("h1", Linear, 16)(x))
            x = jax.nn.relu(self.get("h2", Linear, 16)(x))
            x = self.get("h3", Linear, 8)(x)
            return x

    model = Compact()
    state = nj.init(model)({}, X, seed=0)
    assert {path.split("/")[1] for path in state} == {"h1", "h2", "h3"}
    assert jax.jit(nj.pure(model))(state, X)[1].shape == (8, 8)


MLP = functools.partial(nj.HaikuModule, hk.nets.MLP)
HaikuLinear = functools.partial(nj.HaikuModule, hk.Linear)
Conv2D = functools.partial(nj.HaikuModule, hk.Conv2D)
Dense = functools.partial(nj.FlaxModule, nn.Dense)
Conv = functools.partial(nj.FlaxModule, nn.Conv)


def test_haiku_modules():
    class Module(nj.Module):
        def __init__(self):
            self.mlp = nj.HaikuModule(hk.nets.MLP, [16, 16, 3])

        def __call__(self, x):
            return self.mlp(x)

    model = Module()
    state = nj.init(model)({}, X, seed=0)
    assert nj.pure(model)(state, X)[1].shape == (8, 3)
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([16, 16, 3])(x)))
    assert len(state) == len(jax.tree.leaves(net.init(jax.random.key(0), X)))


def test_flax_modules():
    class Module(nj.Module):
        def __init__(self):
            self.linear = nj.FlaxModule(nn.Dense, 12)

        def __call__(self, x):
            return self.linear(x)

    model = Module()
    state = nj.init(model)({}, X, seed=0)
    assert nj.pure(model)(state, X)[1].shape == (8, 12) and len(state) == 2


def test_aliases():
    class Mixed(nj.Module):
        def __init__(self):
            self.conv, self.conv2 = Conv2D(4, 3, name="conv"), Conv(4, (3, 3))
            self.head, self.rest = HaikuLinear(5), Dense(2)

        def __call__(self, x):
            x = self.conv2(self.conv(x)).mean((1, 2))
            return self.rest(self.head(x)) + self.get("extra", MLP, [2])(x)

    images = jnp.ones((2, 4, 4, 1))
    state = nj.init(Mixed())({}, images, seed=0)
    assert {path.split("/")[1] for path in state} == {"conv", "conv2", "head", "rest", "extra"}
    assert jax.jit(nj.pure(Mixed()))(state, images)[1].shape == (2, 2)


def test_optax_optimizers():
    class Trainer(nj.Module):
        def __init__(self):
            self.mlp = nj.HaikuModule(hk.nets.MLP, [16, 3])
            self.opt = nj.OptaxModule(optax.adam, 1e-2)

        def train(self, x, y):
            self.mlp(x)
            metrics = self.opt(self.mlp.getm(".*"), self.loss, x, y)
            return metrics

        def loss(self, x, y):
            return ((self.mlp(x) - y) ** 2).mean()

    model = Trainer()
    state = nj.init(model.train)({}, X, Y, seed=0)
    train = jax.jit(nj.pure(model.train))
    losses = []
    for _ in range(10):
        state, metrics = train(state, X, Y)
        assert set(metrics) == {"loss", "grad_norm"}
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]


def test_what_the_introduction_claims():
    """Any method may create, read and write; modules call each other's train functions; state is a flat dict."""

    class Critic(nj.Module):
        def train(self, x):
            w = self.get("w", jnp.ones, ())
            self.put("w", w * 0.5)
            return w * x

    class Agent(nj.Module):
        def __init__(self):
            self.critic = Critic()

        def train(self, x):
            out = self.critic.train(x)
            seen = self.get("seen", jnp.zeros, ())
            self.put("seen", seen + 1)
            return out

        def policy(self, x):
            return self.critic.get("w") * x

    agent = Agent()
    state = nj.init(agent.train)({}, 2.0)
    state, out = jax.jit(nj.pure(agent.train))(state, 2.0)
    assert out == 2 and state == {"agent/critic/w": 0.5, "agent/seen": 1}
    assert nj.pure(agent.policy)(state, 2.0)[1] == 1
