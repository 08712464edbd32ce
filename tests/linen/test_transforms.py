"""Wrapped Linen modules under every lifted transformation, against Linen itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import bridges as br
from bridges.linen_adapter import FlaxModule
from tests.linen import models
from tests.linen.models import inputs, same, variables_of
from tests.linen.test_wrapper import below, native

KEY = jax.random.key(0)
IMAGES = inputs(2, 4, 4, 3)
X = inputs(2, 3)


def close(a, b):
    """Equal up to the rounding of float32: the programs are the same, their fusion need not be.

    The gradient of a bias before BatchNorm is zero but for rounding, beside others of order 1: hence the absolute part.
    """
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5), a, b)


@pytest.fixture(scope="module")
def convnet():
    variables = variables_of(models.ConvNet(), IMAGES)
    return variables, below("net", variables)


@pytest.fixture
def net():
    return FlaxModule(models.ConvNet, name="net")


def test_jit_from_outside_and_inside(convnet, net):
    variables, state = convnet
    want, updated = models.ConvNet().apply(variables, IMAGES, train=True, rngs=KEY, mutable=["batch_stats"])

    after, out = br.jit(net, static_argnames="train")(state, IMAGES, train=True, seed=KEY)
    close(out, want)
    close(native("net", after), {**variables, **updated})

    inner = br.jit(lambda x: net(x))
    after, out = br.pure(lambda x: inner(x))(state, IMAGES)
    close(out, models.ConvNet().apply(variables, IMAGES))


def test_jit_makes_what_is_missing():
    net = FlaxModule(nn.Dense, 4, name="net")
    after, out = br.jit(net)({}, X, seed=KEY)
    assert same(native("net", after), nn.Dense(4).init(KEY, X))
    close(out, nn.Dense(4).apply(native("net", after), X))


def test_grad_is_native_for_every_parameter(convnet, net):
    variables, state = convnet
    _, key = br.pure(lambda: br.context().draw("params", "net"))({}, seed=KEY)  # Inside of a model: a key of its own.

    def native_loss(params):
        out, updated = models.ConvNet().apply(
            {**variables, "params": params}, IMAGES, train=True, rngs=key, mutable=["batch_stats"]
        )
        return (out**2).sum(), updated

    (want, updated), want_grads = jax.jit(jax.value_and_grad(native_loss, has_aux=True))(variables["params"])

    def train(x):
        return br.grad(lambda x: (net(x, train=True) ** 2).sum(), net)(x)

    after, (loss, params, grads) = jax.jit(br.pure(train))(state, IMAGES, seed=KEY)
    close(loss, want)
    close(native("net", grads), {"params": want_grads})
    assert all(np.any(np.asarray(g)) for p, g in grads.items() if not p.endswith("Conv_0/bias"))  # BatchNorm hides it.
    close(native("net", after)["batch_stats"], updated["batch_stats"])
    assert all(path.startswith("net/params/") for path in params)


def test_grad_over_a_plain_dictionary_takes_params_only(convnet, net):
    _, state = convnet
    _, (_, params, _) = br.pure(lambda x: br.grad(lambda x: net(x).sum(), net)(x))(dict(state), IMAGES)
    assert params.keys() == {path for path in state if "/params/" in path}


def test_vmap_shares_the_parameters(convnet, net):
    variables, state = convnet
    batch = inputs(3, 2, 4, 4, 3)
    after, out = br.pure(lambda x: br.vmap(net)(x))(state, batch)
    close(out, jax.vmap(lambda x: models.ConvNet().apply(variables, x))(batch))
    assert same(after, state)


def test_vmap_of_an_ensemble():
    net = FlaxModule(nn.Dense, 4, name="net")
    run = lambda x: br.vmap(net, state_axes={"net": 0})(x)  # noqa: E731
    state = br.init(run)({}, inputs(3, 2, 3), seed=0)
    assert state["net/params/kernel"].shape == (3, 3, 4)
    assert not np.array_equal(state["net/params/kernel"][0], state["net/params/kernel"][1])
    after, out = br.pure(run)(state, inputs(3, 2, 3))
    close(out, jax.vmap(nn.Dense(4).apply)(native("net", state), inputs(3, 2, 3)))
    assert same(dict(after), dict(state))


def test_vmap_draws_other_masks_for_every_member():
    net = FlaxModule(nn.Dropout, 0.5, deterministic=False, name="net")
    _, out = br.pure(lambda x: br.vmap(net)(x))({}, jnp.ones((2, 50)), seed=0)
    assert not np.array_equal(out[0], out[1])


def test_scan_carries_what_the_call_modifies():
    model = nn.BatchNorm(use_running_average=False)
    variables = variables_of(model, X)
    net = FlaxModule(model, name="net")
    xs = inputs(4, 2, 3)

    def run(xs):
        return br.scan(lambda c, x: (c, net(x)), 0, xs)[1]

    after, ys = br.pure(run)(below("net", variables), xs)
    want = []
    for x in xs:
        y, updated = model.apply(variables, x, mutable=["batch_stats"])
        variables = {**variables, **updated}
        want.append(y)
    close(ys, jnp.stack(want))
    close(native("net", after), variables)
    assert br.init(run)({}, xs, seed=0).keys() == after.keys()


def test_scan_draws_another_mask_in_every_step():
    net = FlaxModule(nn.Dropout, 0.5, deterministic=False, name="net")
    _, ys = br.pure(lambda xs: br.scan(lambda c, x: (c, net(x)), 0, xs)[1])({}, jnp.ones((2, 50)), seed=0)
    assert not np.array_equal(ys[0], ys[1])


def test_scan_of_a_layer_that_sows():
    net = FlaxModule(models.Sower, name="net")
    run = lambda xs: br.scan(lambda c, x: (c, net(x)), 0, xs)[1]  # noqa: E731
    state = br.init(run)({}, inputs(4, 2, 3), seed=0)
    after, ys = br.pure(run)(state, inputs(4, 2, 3))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    close(after["net/intermediates/h/1"], ys[-1])


def test_vmap_of_a_layer_that_sows():
    net = FlaxModule(models.Sower, name="net")
    state = br.init(net)({}, X, seed=0)
    _, out = br.pure(lambda x: br.vmap(net)(x))(state, inputs(4, 2, 3))
    assert out.shape == (4, 2, 3)


def test_checkpoint_gives_the_same_gradient(convnet, net):
    _, state = convnet

    def train(loss):
        return lambda x: br.grad(loss, net)(x)

    plain = br.pure(train(lambda x: (net(x, train=True) ** 2).sum()))(state, IMAGES, seed=KEY)
    remat = br.pure(train(lambda x: (br.checkpoint(lambda x: net(x, train=True))(x) ** 2).sum()))(
        state, IMAGES, seed=KEY
    )
    close(remat[1][0], plain[1][0])
    close(dict(remat[1][2]), dict(plain[1][2]))
    close(dict(remat[0]), dict(plain[0]))


def test_cond_with_a_branch_that_modifies(convnet, net):
    variables, state = convnet

    def run(x, train):
        return br.cond(train, lambda x: net(x, train=True), lambda x: net(x), x)

    for train in (True, False):
        after, out = br.pure(run)(state, IMAGES, train, seed=KEY)
        changed = not np.array_equal(
            after["net/batch_stats/BatchNorm_0/mean"], state["net/batch_stats/BatchNorm_0/mean"]
        )
        assert changed == train
    close(out, models.ConvNet().apply(variables, IMAGES))


def test_linen_transformations_inside_of_the_wrapped_model():
    model = nn.Sequential([nn.jit(nn.Dense)(3), nn.remat(nn.Dense)(3), models.Stacked()])
    variables = variables_of(model, X)
    state = below("net", variables)
    net = FlaxModule(model, name="net")

    def train(x):
        return br.grad(lambda x: (net(x) ** 2).sum(), net)(x)

    _, (_, _, grads) = jax.jit(br.pure(train))(state, X)
    want = jax.jit(jax.grad(lambda v: (model.apply(v, X) ** 2).sum()))(variables)
    close(native("net", grads), want)


def test_a_trace_of_a_learned_call_traces_the_model_once():
    traced = []

    class Counts(nn.Module):
        @nn.compact
        def __call__(self, x):
            traced.append(True)
            return nn.BatchNorm(use_running_average=False)(nn.Dense(3)(x))

    net = FlaxModule(Counts, name="net")
    state = below("net", variables_of(Counts(), X))
    jax.make_jaxpr(br.pure(net))(state, X)
    traced.clear()
    jax.make_jaxpr(lambda s, x: br.pure(net)(s, x))(state, X)
    assert len(traced) == 1
    dense = FlaxModule(lambda: Counts(), name="net")
    traced.clear()
    jax.make_jaxpr(br.pure(dense))(state, X)
    assert len(traced) <= 4  # Once each: what init would make, immutable, mutable, and the call itself.


def test_a_call_without_effects_runs_in_a_plain_transformation_with_a_seed_too():
    x = inputs(2, 4)
    dense, dropout = FlaxModule(nn.Dense, 3, name="net"), FlaxModule(nn.Dropout, 0.5, deterministic=False)
    state = br.init(dense)({}, x, seed=0)
    _, want = br.pure(dense)(state, x)
    fresh = FlaxModule(nn.Dense, 3, name="net")
    _, out = br.pure(lambda x: jax.jit(fresh)(x))(state, x, seed=0)
    np.testing.assert_allclose(out, want, rtol=1e-6)
    with pytest.raises(br.LeakError, match="draw a random key"):
        br.pure(lambda x: jax.jit(dropout)(x))(state, x, seed=0)
