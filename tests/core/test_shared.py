"""Shared modules are one set of entries: through gradients, updates and transformations."""

from __future__ import annotations

import flax.linen as nn
import haiku as hk
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import bridges as br

X = jax.random.normal(jax.random.key(3), (5, 2))


class Dense(br.Module):
    def __call__(self, x):
        return x @ self.get("w", lambda: jax.random.normal(br.rng(), (2, 2)))


class Block(br.Module):
    """A block that is given the layer that it shares, as in the first NNX."""

    def __init__(self, shared):
        self.shared = shared
        self.norm = br.FlaxModule(nn.BatchNorm)

    def __call__(self, x):
        return nn.relu(self.norm(self.shared(x)))


class Model(br.Module):
    def __init__(self, make):
        shared = make()
        self.block1, self.block2 = Block(shared), Block(shared)
        self.opt = br.OptaxModule(optax.sgd, 0.1)

    def __call__(self, x):
        return self.block2(self.block1(x))

    def loss(self, x):
        return ((self(x) - 1) ** 2).mean()

    def train(self, x):
        return self.opt(self, self.loss, x)


LAYERS = {
    "core": (Dense, "model/dense/w"),
    "haiku": (lambda: br.HaikuModule(hk.Linear, 2, with_bias=False), "model/linear/params/linear/w"),
    "linen": (lambda: br.FlaxModule(nn.Dense, 2, use_bias=False), "model/dense/params/kernel"),
    "nnx": (lambda: br.NNXModule(nnx.Linear, 2, 2, use_bias=False), "model/linear/params/kernel"),
}


@pytest.mark.parametrize("framework", LAYERS)
def test_a_shared_layer_is_one_entry_and_has_the_gradient_of_both_uses(framework):
    make, path = LAYERS[framework]
    net = Model(make)
    state = br.init(net.train)({}, X, seed=0, flags={"train": True})
    kernels = [p for p, v in state.filter(br.Param).items() if v.shape == (2, 2)]
    assert kernels == [path] and net.block1.shared is net.block2.shared
    assert net.block1.path == "model/block1" and "model/block2/norm/batch_stats/mean" in state

    def two(w1, w2, x):
        for w, block in ((w1, "block1"), (w2, "block2")):
            x = x @ w
            p = {n: state[f"model/{block}/norm/params/{n}"] for n in ("scale", "bias")}
            mean, var = x.mean(0), x.var(0)
            x = nn.relu((x - mean) * jax.lax.rsqrt(var + 1e-5) * p["scale"] + p["bias"])
        return ((x - 1) ** 2).mean()

    g1, g2 = jax.grad(two, (0, 1))(state[path], state[path], X)
    run = br.pure(lambda x: br.grad(net.loss, net)(x), flags={"train": True})
    _, (_, _, grads) = run(state, X)
    np.testing.assert_allclose(grads[path], g1 + g2, rtol=1e-3, atol=1e-5)  # sums of BatchNorm in another order

    train = br.jit(br.pure(net.train, flags={"train": True}))
    new, _ = train(state, X)
    np.testing.assert_allclose(new[path], state[path] - 0.1 * grads[path], rtol=1e-5, atol=1e-7)
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_one_statistic_updated_by_two_uses_is_updated_twice():
    norm = br.FlaxModule(nn.BatchNorm, use_scale=False, use_bias=False)
    fn = lambda x: norm(norm(x) + 1)  # noqa: E731
    state = br.init(fn)({}, X, seed=0, flags={"train": True})
    new, _ = br.pure(fn)(state, X, flags={"train": True})
    mean = 0.99 * (0.01 * X.mean(0)) + 0.01 * 1.0  # the second sees a mean of one
    np.testing.assert_allclose(new["batch_norm/batch_stats/mean"], mean, rtol=1e-4)


def test_tied_entries_of_modules_that_hold_one_another():
    """A cycle of references is no cycle of entries."""

    class Node(br.Module):
        def __init__(self):
            self.dense = Dense()
            self.other = None

        def __call__(self, x, depth=1):
            x = self.dense(x)
            return self.other(x, depth - 1) if depth and self.other is not None else x

    class Pair(br.Module):
        def __init__(self):
            self.a, self.b = Node(), Node()
            self.a.other, self.b.other = self.b, self.a

        def __call__(self, x):
            return self.a(x, depth=3)

    state = br.init(Pair())({}, X, seed=0)
    assert list(state) == ["pair/a/dense/w", "pair/b/dense/w"]
    a, b = state.values()
    np.testing.assert_allclose(br.pure(Pair())(state, X)[1], X @ a @ b @ a @ b, rtol=1e-5)


@pytest.mark.parametrize("lift", ["scan", "vmap", "cond", "checkpoint", "jit"])
def test_sharing_holds_inside_of_transformations(lift):
    dense = Dense(name="dense")
    run = {
        "scan": lambda x: br.scan(lambda x, _: (dense(x), None), dense(x), length=2)[0],
        "vmap": lambda x: br.vmap(dense)(br.vmap(dense)(dense(x))),
        "cond": lambda x: br.cond(True, lambda x: dense(dense(x)), dense, dense(x)),
        "checkpoint": lambda x: br.checkpoint(dense)(br.checkpoint(dense)(dense(x))),
        "jit": lambda x: br.jit(dense)(br.jit(dense)(dense(x))),
    }[lift]
    state = br.init(run)({}, X, seed=0)
    assert list(state) == ["dense/w"]
    want = lambda w: ((X @ w @ w @ w) ** 2).sum()  # noqa: E731
    _, (_, _, grads) = br.pure(lambda x: br.grad(lambda x: (run(x) ** 2).sum(), dense)(x))(state, X)
    np.testing.assert_allclose(grads["dense/w"], jax.grad(want)(state["dense/w"]), rtol=1e-4)


def test_containers_may_be_reordered_grown_and_cut_after_they_are_made():
    """Names are given once, by place or key when the module was made, and stay with the instance."""

    class Net(br.Module):
        def __init__(self):
            self.layers = [Dense(), Dense()]
            self.layers.append(Dense())
            self.heads = {"b": Dense(), "a/1": [Dense()], 0: (Dense(),)}
            self.heads["late"] = Dense()

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return sum(
                layer(x) for layer in (self.heads["b"], self.heads["a/1"][0], self.heads[0][0], self.heads["late"])
            )

    net = Net()
    state = br.init(net)({}, X, seed=0)
    assert list(state) == [
        "net/heads_0_0/w", "net/heads_a%2F1_0/w", "net/heads_b/w", "net/heads_late/w", "net/layers_0/w",
        "net/layers_1/w", "net/layers_2/w",
    ]  # fmt: skip
    net.layers.reverse()
    _, out = br.pure(net)(state, X)
    w = [state[f"net/layers_{i}/w"] for i in (2, 1, 0)]
    heads = sum(v for p, v in state.items() if "heads" in p)
    np.testing.assert_allclose(out, X @ w[0] @ w[1] @ w[2] @ heads, rtol=1e-4)
    del net.layers[1]
    _, out = br.pure(net)(state, X)  # an entry that nobody reads is no error
    np.testing.assert_allclose(out, X @ w[0] @ w[2] @ heads, rtol=1e-4)
    assert jax.tree.map(lambda layer: layer.path, net.layers) == ["net/layers_2", "net/layers_0"]


def test_a_module_made_outside_keeps_a_path_of_its_own():
    class Net(br.Module):
        def __init__(self, layers):
            self.layers = layers

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    state = br.init(Net([Dense(name="one"), Dense(name="two")]))({}, X, seed=0)
    assert list(state) == ["one/w", "two/w"]
    with pytest.raises(br.NamingError, match=r"path 'dense'.*name='other'.*share"):
        br.init(Net([Dense(), Dense()]))({}, X, seed=0)
