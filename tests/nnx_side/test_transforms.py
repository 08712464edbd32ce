"""Wrapped NNX modules under every lifted transformation, against NNX itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bridges as br
from bridges.nnx_adapter import NNXModule, flatten
from tests.nnx_side import models
from tests.nnx_side.models import equal, inputs, randomised, same
from tests.nnx_side.test_wrapper import IMAGES, below, close

X = inputs(2, 4)


@pytest.fixture
def native():
    return randomised(models.ConvNet(rngs=nnx.Rngs(0)))


@pytest.fixture
def net():
    return NNXModule(models.ConvNet, name="net")


def test_jit_from_outside_and_inside(native, net):
    state, want = below("net", native), native(IMAGES)
    after, out = br.jit(net)(state, IMAGES)
    close(out, want)
    close(dict(after.filter(br.BatchStat)), dict(below("net", native).filter(br.BatchStat)))
    assert after["net/RngCount/drop/rngs/count"] == 1
    inner = br.jit(lambda x: net(x))
    close(br.pure(lambda x: inner(x))(state, IMAGES)[1], want)


def test_jit_makes_what_is_missing(net):
    after, out = br.jit(net)({}, IMAGES, seed=3)
    native = models.ConvNet(rngs=nnx.Rngs(3))
    close(out, native(IMAGES))
    for path, value in flatten(native).filter(br.Param, br.RngState)[0].items():
        assert equal(after[f"net/{path}"], value)


@pytest.mark.parametrize("plain", [False, True])
def test_grad_is_native_for_every_parameter(native, net, plain):
    state = below("net", native)

    def train(x):
        return br.grad(lambda x: (net(x) ** 2).sum(), net)(x)

    after, (loss, params, grads) = jax.jit(br.pure(train))(dict(state) if plain else state, IMAGES)
    want, want_grads = nnx.value_and_grad(lambda module: (module(IMAGES) ** 2).sum())(native)
    close(loss, want)
    close(dict(grads), {f"net/{path}": value for path, value in flatten(want_grads).items()})
    close(dict(after.filter(br.BatchStat)), dict(below("net", native).filter(br.BatchStat)))
    assert all(path.startswith("net/params/") for path in params)


def test_vmap_shares_the_parameters(native, net):
    native.eval()
    batch, state = inputs(3, 2, 6, 6, 3), below("net", native)
    after, out = br.pure(lambda x: br.vmap(net)(x), flags={"train": False})(state, batch)
    close(out, jnp.stack([native(x) for x in batch]))
    assert same(after, state)


def test_vmap_of_an_ensemble():
    net = NNXModule(models.MLP, name="net")
    run = lambda x: br.vmap(net, state_axes={"net": 0})(x)  # noqa: E731
    x = inputs(3, 2, 4)
    state = br.init(run)({}, x, seed=0)
    assert state["net/params/layers/0/kernel"].shape == (3, 4, 8)
    assert not equal(state["net/params/layers/0/kernel"][0], state["net/params/layers/0/kernel"][1])
    after, out = br.pure(run)(state, x)
    for i in range(3):
        member = {path[4:]: value[i] for path, value in state.items()}
        close(out[i], br.nnx_adapter.apply(models.MLP, member, x[i])[0])
    assert same(dict(after), dict(state))


def test_vmap_draws_alike_unless_each_member_has_a_key():
    net, x = NNXModule(nnx.Dropout, 0.5, name="net"), jnp.ones((2, 50))
    for axes, alike in ({}, True), ({"net/RngKey": 0}, False), ({net: 0}, False):
        run = lambda x, axes=axes: br.vmap(net, state_axes=axes)(x)  # noqa: E731
        state = br.init(run)({}, x, seed=0)
        after, out = br.pure(run)(state, x)
        assert equal(out[0], out[1]) is alike
        assert (after["net/RngCount/rngs/count"] == 1).all()


def test_scan_carries_what_the_call_modifies(native, net):
    xs = inputs(4, 2, 6, 6, 3)

    def run(xs):
        return br.scan(lambda carry, x: (carry, net(x)), 0, xs)[1]

    after, ys = br.pure(run)(below("net", native), xs)
    close(ys, jnp.stack([native(x) for x in xs]))
    close(dict(after.filter(br.BatchStat)), dict(below("net", native).filter(br.BatchStat)))
    assert after["net/RngCount/drop/rngs/count"] == 4  # Another mask in every step.
    assert br.init(run)({}, xs, seed=0).keys() == after.keys()


def test_scan_of_a_layer_that_sows():
    net = NNXModule(models.Sower, name="net")
    run = lambda xs: br.scan(lambda carry, x: (carry, net(x)), 0, xs)[1]  # noqa: E731
    state = br.init(run)({}, inputs(4, 2, 3), seed=0)
    after, ys = br.pure(run)(state, inputs(4, 2, 3))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    close(after["net/intermediates/h/1"], ys[-1])


def test_vmap_of_a_layer_that_sows():
    net = NNXModule(models.Sower, name="net")
    state = br.init(net)({}, X[:, :3], seed=0)
    after, out = br.pure(lambda x: br.vmap(net)(x))(state, inputs(4, 2, 3))
    assert out.shape == (4, 2, 3)
    close(after["net/intermediates/last"], out)


def test_checkpoint_gives_the_same_gradient(native, net):
    state = below("net", native)
    plain = br.pure(lambda x: br.grad(lambda x: (net(x) ** 2).sum(), net)(x))(state, IMAGES)
    remat = br.pure(lambda x: br.grad(lambda x: (br.checkpoint(net)(x) ** 2).sum(), net)(x))(state, IMAGES)
    close(remat[1][0], plain[1][0])
    close(dict(remat[1][2]), dict(plain[1][2]))
    for path in plain[0].filter(br.Not(br.RngState)):
        close(remat[0][path], plain[0][path])


def test_cond_with_a_branch_that_modifies(native, net):
    state = below("net", native)

    def run(x, train):
        def branch(train):
            def call(x):
                with br.flags(train=train):
                    return net(x)

            return call

        return br.cond(train, branch(True), branch(False), x)

    for train in (True, False):
        after, _ = br.pure(run)(state, IMAGES, train)
        assert equal(after["net/batch_stats/norm/mean"], state["net/batch_stats/norm/mean"]) is not train


def test_while_loop():
    net = NNXModule(models.Counter, 4, 4, name="net")
    state = br.init(net)({}, X, seed=0)
    run = lambda x: br.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, net(c[1])), (0, x))  # noqa: E731
    after, _ = br.pure(run)(state, X)
    assert after["net/Count/count"] == 3


def test_nnx_transformations_inside_of_the_wrapped_model():
    class Stack(nnx.Module):
        """Layers stacked by nnx.vmap, scanned, under nnx.remat; and one under nnx.jit."""

        def __init__(self, *, rngs):
            @nnx.split_rngs(splits=3)
            @nnx.vmap
            def make(rngs):
                return models.Counter(4, 4, rngs=rngs)

            self.layers, self.last = make(rngs), nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x):
            @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            @nnx.remat
            def run(layer, x):
                return jnp.tanh(layer(x))

            return nnx.jit(lambda last, x: last(x))(self.last, run(self.layers, x))

    native = randomised(Stack(rngs=nnx.Rngs(0)))
    net, state = NNXModule(Stack, name="net"), below("net", native)
    assert state["net/params/layers/w"].shape == (3, 4, 4)
    assert br.init(net)({}, X, seed=0)["net/params/layers/w"].shape == (3, 4, 4)
    after, out = jax.jit(br.pure(net))(state, X)
    close(out, native(X))
    assert after["net/Count/layers/count"].tolist() == [1, 1, 1]
    close(dict(after.filter(br.BatchStat)), dict(below("net", native).filter(br.BatchStat)))
    _, (_, _, grads) = br.pure(br.grad(lambda x: (net(x) ** 2).sum(), net))(state, X)
    want = nnx.grad(lambda module: (module(X) ** 2).sum())(nnx.clone(native))
    # The statistics differ by the first call, which a gradient in training mode does not see.
    close(dict(grads), {f"net/{path}": value for path, value in flatten(want).items()})


def test_a_trace_of_a_call_traces_the_model_once():
    traces = []

    class Traced(models.MLP):
        def __call__(self, x):
            traces.append(1)
            return super().__call__(x)

    net = NNXModule(Traced, name="net")
    state = br.init(net)({}, X, seed=0)
    assert len(traces) == 1
    jax.jit(br.pure(net))(state, X)
    jax.jit(br.pure(NNXModule(Traced, name="net")))(state, X)
    assert len(traces) == 3


def test_a_float_state_stays_differentiable_beside_keys(native, net):
    state = below("net", native)
    params, rest = state.partition(br.Param, ...)
    grads = jax.grad(lambda params: (br.pure(net)(params | rest, IMAGES)[1] ** 2).sum())(params)
    assert all(np.isfinite(value).all() for value in grads.values())


def test_scan_over_layers_of_which_each_has_its_entries_and_keys():
    class Tower(br.Module):
        def __init__(self):
            self.linear = br.NNXModule(nnx.Linear, 3, 3)
            self.drop = br.NNXModule(nnx.Dropout, 0.5)

        def __call__(self, x):
            def step(x, _):
                return self.drop(self.linear(x)), None

            return br.scan(step, x, length=4, state_axes={self.linear: 0, self.drop: 0})[0]

    tower, x = Tower(), inputs(2, 3)
    state = br.init(tower)({}, x, seed=0)
    assert state["tower/linear/params/kernel"].shape == (4, 3, 3)
    assert len(np.unique(state["tower/linear/params/kernel"][:, 0, 0])) == 4
    keys = jax.random.key_data(state["tower/drop/RngKey/rngs/key"])
    assert len({key.tobytes() for key in np.asarray(keys)}) == 4

    @nnx.split_rngs(splits=4)
    @nnx.vmap(in_axes=0, out_axes=0)
    def create(rngs):
        return nnx.Sequential(nnx.Linear(3, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))

    native = create(nnx.Rngs(0))
    kernel, bias = native.layers[0].kernel, native.layers[0].bias
    kernel.set_value(state["tower/linear/params/kernel"])
    bias.set_value(state["tower/linear/params/bias"])
    stream = native.layers[1].rngs
    stream.key.set_value(state["tower/drop/RngKey/rngs/key"])
    stream.count.set_value(state["tower/drop/RngCount/rngs/count"])
    forward = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    for _ in range(2):
        state, out = br.pure(tower)(state, x)
        np.testing.assert_allclose(out, forward(x, native), rtol=1e-6)
    np.testing.assert_array_equal(state["tower/drop/RngCount/rngs/count"], [2] * 4)
