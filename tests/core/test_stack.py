"""Stacked entries: layers run by `scan`, ensembles run by `vmap`."""

from __future__ import annotations

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bridges as br
from tests.hlo import compiled, opcodes


class Layer(br.Module):
    rate: float = 0.5

    def __call__(self, x):
        w = self.get("w", lambda: jax.random.normal(br.rng(), (4, 4)))
        b = self.get("b", jnp.zeros, (4,))
        mean = self.get("mean", jnp.zeros, (4,), kind=br.BatchStat)
        y = jnp.tanh(x @ w + b)
        self.put("mean", mean + y.mean(0))
        if br.flag("train"):
            keep = jax.random.bernoulli(br.rng("dropout"), 1 - self.rate, y.shape)
            self.put("keep", keep, kind=br.Intermediate)
            y = jnp.where(keep, y / (1 - self.rate), 0)
        return y


class Deep(br.Module):
    layers: int = 3
    axis: int = 0

    def __init__(self):
        self.block = Layer()

    def __call__(self, x):
        self.put("calls", self.get("calls", jnp.zeros, (), jnp.int32) + 1)

        def step(x, i):
            self.put("steps", self.get("steps", jnp.zeros, (), jnp.int32) + i)
            return self.block(x), x.sum()

        axes = {self.block: self.axis, f"{self.block.path}/mean": 0}
        return br.scan(step, x, jnp.arange(self.layers), state_axes=axes)


X = jax.random.normal(jax.random.key(5), (2, 4))


def unrolled(state, x, axis=0):
    for i in range(3):
        w, b = (jnp.moveaxis(state[f"deep/block/{name}"], axis, 0)[i] for name in "wb")
        x = jnp.tanh(x @ w + b)
    return x


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_layers_have_values_of_their_own(axis):
    net = Deep(axis=axis)
    state = br.init(net)({}, X, seed=0)
    shape = [4, 4]
    shape.insert(axis if axis >= 0 else 2, 3)
    assert state["deep/block/w"].shape == tuple(shape) and state["deep/block/mean"].shape == (3, 4)
    assert state["deep/steps"].shape == () and len(np.unique(state["deep/block/w"])) == 48
    for pure in (br.pure(net), jax.jit(br.pure(net)), br.jit(net)):
        new, (out, sums) = pure(state, X)
        np.testing.assert_allclose(out, unrolled(state, X, axis), rtol=1e-5)
        assert sums.shape == (3,) and new["deep/steps"] == 3 and new["deep/calls"] == 1
        assert jax.tree.structure(new) == jax.tree.structure(state)
        assert len(np.unique(new["deep/block/mean"])) == 12  # each layer's own


def test_dropout_draws_anew_in_every_layer_and_every_call():
    net = Deep()
    state = br.init(net)({}, X, seed=0)
    run = jax.jit(br.pure(net, flags={"train": True}))
    new, _ = run(state, X, seed=1)
    masks = new["deep/block/keep"]  # what a step records is stacked too
    assert masks.shape == (3, 2, 4) and new.kind("deep/block/keep") is br.Intermediate
    assert len(np.unique(masks.reshape(3, -1), axis=0)) == 3
    again, other = (run(state, X, seed=seed)[0]["deep/block/keep"] for seed in (1, 2))
    assert (again == masks).all() and (other != masks).any()
    half, _ = run(new, X[:1], seed=1)  # another batch: what was recorded before is no input
    assert half["deep/block/keep"].shape == (3, 1, 4)


def test_gradients_and_remat_are_those_of_the_unrolled_layers():
    net = Deep()
    state = br.init(net)({}, X, seed=0)

    def loss(x):
        return (net(x)[0] ** 2).sum()

    def remat(x):
        step = br.checkpoint(lambda x, _: (net.block(x), None))
        return (br.scan(step, x, length=3, state_axes={net.block: 0})[0] ** 2).sum()

    params = state.filter(br.Param)
    want = jax.grad(lambda p: (unrolled(p, X) ** 2).sum())(params)
    for fn in (loss, remat):
        _, (_, _, grads) = jax.jit(br.pure(lambda x, fn=fn: br.grad(fn, net.block)(x)))(state, X)
        assert grads.keys() == want.keys()
        for path in want:
            np.testing.assert_allclose(grads[path], want[path], rtol=1e-4, atol=1e-6)


def test_reverse_and_inputs():
    layer = Layer(name="layer")

    def fn(x, scales, reverse):
        step = lambda x, s: (layer(x) * s, x)  # noqa: E731
        return br.scan(step, x, scales, reverse=reverse, state_axes={layer: 0})

    scales = jnp.array([1.0, 2.0, 3.0])
    state = br.init(fn)({}, X, scales, False, seed=0)
    for reverse in (False, True):
        _, (out, xs) = br.pure(fn)(state, X, scales, reverse)
        want = X
        for i in (2, 1, 0) if reverse else (0, 1, 2):
            np.testing.assert_allclose(xs[i], want, rtol=1e-5)
            want = jnp.tanh(want @ state["layer/w"][i]) * scales[i]
        np.testing.assert_allclose(out, want, rtol=1e-5)


def test_a_stack_inside_of_an_ensemble():
    net = Deep()
    run = lambda x: br.vmap(lambda x: net(x)[0], in_axes=None, axis_size=2, state_axes={net: 0})(x)  # noqa: E731
    state = br.init(run)({}, X, seed=0)
    assert state["deep/block/w"].shape == (2, 3, 4, 4) and len(np.unique(state["deep/block/w"])) == 96
    _, out = br.pure(run)(state, X)
    for i in range(2):
        want = unrolled(jax.tree.map(lambda a, i=i: a[i], state), X)
        np.testing.assert_allclose(out[i], want, rtol=1e-5)


@pytest.mark.parametrize(
    "block, path",
    [
        (br.HaikuModule(hk.Linear, 4, name="block"), "block/params/linear/w"),
        (br.FlaxModule(nn.Dense, 4, name="block"), "block/params/kernel"),
        (br.NNXModule(nnx.Linear, 4, 4, name="block"), "block/params/kernel"),
    ],
)
def test_layers_of_every_framework(block, path):
    fn = lambda x: br.scan(lambda x, _: (block(x), None), x, length=3, state_axes={block: 0})[0]  # noqa: E731
    state = br.init(fn)({}, X, seed=0)
    assert state[path].shape == (3, 4, 4) and len(np.unique(state[path])) == 48
    want = X
    for i in range(3):
        want = br.apply(block, jax.tree.map(lambda a, i=i: a[i], state))(want)[0]
    np.testing.assert_allclose(jax.jit(br.pure(fn))(state, X)[1], want, rtol=1e-5)


def test_nnx_dropout_keeps_a_key_for_every_layer():
    block = br.NNXModule(lambda rngs: nnx.Dropout(0.5, rngs=rngs), name="block")
    fn = lambda x: br.scan(lambda c, _: (c, block(x)), 0, length=4, state_axes={block: 0})[1]  # noqa: E731
    state = br.init(fn)({}, X, seed=0)
    new, masks = br.pure(fn)(state, X)
    assert len(np.unique(masks.reshape(4, -1) == 0, axis=0)) == 4
    assert {value.shape[0] for value in new.values()} == {4}


@pytest.mark.parametrize("count", [2, 5])
def test_the_lengths_must_agree(count):
    state = br.init(Deep())({}, X, seed=0)
    with pytest.raises(br.EntryShapeError, match=rf"(?s)deep/block/b.*deep/block/w.*length {count}"):
        br.pure(Deep(layers=count))(state, X)


@pytest.mark.parametrize("axes", [{"layer/w": 0}, {"layer": 0, "layer/b": None, "layer/mean": None}])
def test_an_entry_of_a_layer_may_be_shared(axes):
    """It is one for all steps, and carried from step to step."""
    layer = Layer(name="layer")
    fn = lambda x: br.scan(lambda x, _: (layer(x), None), x, length=3, state_axes=axes)[0]  # noqa: E731
    state = br.init(fn)({}, X, seed=0)
    assert state["layer/w"].shape == (3, 4, 4) and state["layer/b"].shape == state["layer/mean"].shape == (4,)
    new, out = br.pure(fn)(state, X)
    total = jnp.zeros(4)
    want = X
    for w in state["layer/w"]:
        want = jnp.tanh(want @ w)
        total += want.mean(0)
    np.testing.assert_allclose(out, want, rtol=1e-5)
    np.testing.assert_allclose(new["layer/mean"], total, rtol=1e-4)


class Member(br.Module):
    def __init__(self):
        self.layer = Layer()
        self.shared = Layer(rate=0.0)

    def __call__(self, x):
        return self.layer(self.shared(x))


def test_members_of_an_ensemble_have_values_and_masks_of_their_own():
    net = Member()

    def run(x):
        axes = {net.layer: 0, f"{net.shared.path}/mean": 0}
        return br.vmap(net, in_axes=None, axis_size=3, state_axes=axes)(x)

    state = br.init(run)({}, X, seed=0)
    assert state["member/shared/w"].shape == (4, 4) and len(np.unique(state["member/layer/w"])) == 48
    new, out = jax.jit(br.pure(run, flags={"train": True}))(state, X, seed=1)
    assert len(np.unique(new["member/layer/keep"].reshape(3, -1), axis=0)) == 3
    assert out.shape == (3, 2, 4) and new["member/layer/mean"].shape == (3, 4)

    def step(x):
        loss = lambda x: (run(x) ** 2).mean()  # noqa: E731
        _, params, grads = br.grad(loss, net)(x)
        net.put(jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))

    trained, _ = jax.jit(br.pure(step))(state, X)
    moved = jnp.abs(trained["member/layer/w"] - state["member/layer/w"]).reshape(3, -1).max(1)
    assert (moved > 0).all() and trained["member/shared/w"].shape == (4, 4)


def test_what_is_there_stays_when_the_rest_is_made():
    net = Deep()
    weights = {"deep/block/w": jax.random.normal(jax.random.key(9), (3, 4, 4))}
    state = br.init(net)(weights, X, seed=0)
    assert (state["deep/block/w"] == weights["deep/block/w"]).all() and state["deep/block/b"].shape == (3, 4)
    assert jax.tree.structure(state) == jax.tree.structure(br.init(net)({}, X, seed=0))
    at_once = br.init(net, out_shardings=None)({}, X, seed=0)
    np.testing.assert_allclose(at_once["deep/block/w"], br.init(net)({}, X, seed=0)["deep/block/w"], rtol=1e-6)


@pytest.mark.parametrize("lift", ["scan", "vmap"])
def test_names_that_would_stack_nothing_are_refused(lift):
    layer, idle = Layer(name="layer"), Layer(name="idle")

    def fn(x, axes):
        if lift == "scan":
            return br.scan(lambda x, _: (layer(x), None), x, length=3, state_axes=axes)[0]
        return br.vmap(layer, in_axes=None, axis_size=3, state_axes=axes)(x)

    def make(axes):
        return br.init(lambda x: fn(x, axes))({}, X, seed=0)

    with pytest.raises(br.MissingEntryError, match=r"(?s)'layer/v'.*Did you mean 'layer/w'"):
        make({layer: 0, "layer/v": 0})
    with pytest.raises(br.FilterError, match=r"names modules, paths and prefixes, and got.*Param"):
        make({br.Param: 0})
    assert make({(layer, idle): 0})["layer/w"].shape == (3, 4, 4)  # a module may have no entries


class Plain(br.Module):
    def __call__(self, x):
        return jnp.tanh(x @ self.get("w", lambda: jax.random.normal(br.rng(), (4, 4))) + self.get("b", jnp.ones, (4,)))


@pytest.mark.parametrize("lift", ["scan", "vmap"])
def test_the_compiled_training_step_is_that_of_plain_jax(lift):
    """The same optimised HLO, opcode by opcode."""
    block = Plain(name="block")
    layer = lambda w, b, x: jnp.tanh(x @ w + b)  # noqa: E731
    if lift == "scan":
        ours = lambda x: br.scan(lambda x, _: (block(x), None), x, length=3, state_axes={block: 0})[0]  # noqa: E731
        theirs = lambda w, b, x: jax.lax.scan(lambda x, wb: (layer(*wb, x), None), x, (w, b))[0]  # noqa: E731
    else:
        ours = lambda x: br.vmap(block, in_axes=None, axis_size=3, state_axes={block: 0})(x)  # noqa: E731
        theirs = lambda w, b, x: jax.vmap(layer, (0, 0, None))(w, b, x)  # noqa: E731
    state = br.init(ours)({}, X, seed=0)

    def step(state, x):
        loss = lambda state: (br.apply(ours, state)(x)[0] ** 2).mean()  # noqa: E731
        return jax.tree.map(lambda p, g: p - 0.1 * g, state, jax.grad(loss)(state))

    def plain(params, x):
        loss = lambda p: (theirs(p["block/w"], p["block/b"], x) ** 2).mean()  # noqa: E731
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))

    one, two = compiled(step, state, X), compiled(plain, dict(state), X)
    assert opcodes(one) == opcodes(two)
    new, wanted = one(state, X), two(dict(state), X)
    for path in wanted:
        np.testing.assert_array_equal(new[path], wanted[path])
