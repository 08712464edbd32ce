"""What Haiku does with its modules, with those that are parts of other frameworks."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bridges.haiku_adapter import ToHaiku
from tests.haiku_side.models import same
from tests.haiku_side.to_haiku_models import (
    KEY,
    NET,
    Coder,
    Net,
    X,
    randomised,
)


def test_vmap():
    def f(x, train):
        net = ToHaiku(Net(), name="net")
        return hk.vmap(lambda x: net(x, train=train), in_axes=0, split_rng=not hk.running_init() and train)(x)

    f = hk.transform_with_state(f)
    batch = jnp.stack([X, X])
    params, state = f.init(KEY, batch, False)
    assert params["net/Dense_0"]["kernel"].shape == (3, 6)
    out = f.apply(params, state, None, batch, False)[0]
    np.testing.assert_allclose(out[0], NET.apply(params, state, None, X)[0], rtol=1e-5)  # A product of other shapes.

    def dropped(x):
        net = ToHaiku(nn.Dropout(0.5, deterministic=False))
        return hk.vmap(net, split_rng=not hk.running_init())(x)

    dropped = hk.transform(dropped)
    one, two = dropped.apply(dropped.init(KEY, batch), KEY, batch)
    assert not np.array_equal(one, two)


def test_scan_and_loops():
    def f(x):
        net = ToHaiku(Counting(), name="net")
        x, _ = hk.scan(lambda x, _: (net(x), None), x, None, length=3)
        x = hk.fori_loop(0, 2, lambda _, x: net(x), x)
        x = net(x) if hk.running_init() else hk.while_loop(lambda x: x.sum() > 1e9, net, x)
        x = net(x) if hk.running_init() else hk.cond(x.sum() > -1e9, net, lambda x: x, x)
        return hk.switch(1, [lambda x: x, net], x) if not hk.running_init() else net(x)

    f = hk.transform_with_state(f)
    params, state = f.init(KEY, X)
    out, after = f.apply(params, state, KEY, X)
    assert after["net/stats"]["n"] == 7
    want = X
    for _ in range(7):
        want = nn.Dense(3).apply({"params": params["net/Dense_0"]}, want)
    np.testing.assert_allclose(out, want, rtol=1e-5)


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x):
        n = self.variable("stats", "n", lambda: jnp.zeros((), jnp.int32))
        if not self.is_initializing():
            n.value += 1
        return nn.Dense(3)(x)


def test_remat():
    def f(x, wrap):
        net = ToHaiku(Net(), name="net")
        return wrap(net)(x).sum()

    params, state = randomised(NET.init(KEY, X))
    f = hk.transform_with_state(f)
    losses = {
        name: jax.grad(lambda p, wrap=wrap: f.apply(p, state, None, X, wrap)[0])(params)
        for name, wrap in {"plain": lambda f: f, "remat": hk.remat}.items()
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), losses["plain"], losses["remat"])
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: f.apply(p, state, None, X, hk.remat)[0]))(params)
    assert "remat" in str(jaxpr) or "checkpoint" in str(jaxpr)
    assert set(f.init(KEY, X, hk.remat)[0]) == set(params)


def test_layer_stack():
    def f(x):
        return hk.layer_stack(3)(lambda x: jax.nn.relu(ToHaiku(nn.Dense(3), name="net")(x)))(x)

    f = hk.transform(f)
    params = f.init(KEY, X)
    (name,) = params
    assert params[name]["kernel"].shape == (3, 3, 3)
    assert len(np.unique(np.asarray(params[name]["kernel"]))) == 27
    want = X
    for i in range(3):
        want = nn.relu(nn.Dense(3).apply({"params": jax.tree.map(lambda v, i=i: v[i], params[name])}, want))
    np.testing.assert_allclose(f.apply(params, None, X), want, rtol=1e-5, atol=1e-6)


def test_lift_and_multi_transform():
    inner = hk.transform_with_state(lambda x: ToHaiku(Net(), name="net")(x))

    def lifted(x):
        init, updater = hk.lift_with_state(inner.init, name="lifted")
        params, state = init(hk.maybe_next_rng_key(), x)
        out, state = inner.apply(params, state, None, x)
        updater.update(state)
        return out

    lifted = hk.transform_with_state(lifted)
    params, state = lifted.init(KEY, X)
    assert set(params) == {"lifted/net/Dense_0", "lifted/net/Dense_1", "lifted/net/BatchNorm_0"}
    assert lifted.apply(params, state, None, X)[0].shape == (4, 2)

    @hk.multi_transform
    def two():
        net = ToHaiku(Coder())
        return net, {"encode": net.encode, "decode": net.decode}

    params = two.init(KEY, X)
    code = two.apply["encode"](params, None, X)
    assert same(
        two.apply["decode"](params, None, code),
        Coder().apply({"params": {"enc": params["coder/enc"], "dec": params["coder/dec"]}}, X),
    )


def test_eval_shape():
    def f(x):
        net = ToHaiku(Net(), name="net")
        shape = hk.eval_shape(net, x)
        assert shape.shape == (4, 2)
        return net(x)

    f = hk.transform_with_state(f)
    params, state = f.init(KEY, X)
    assert same((params, state), NET.init(jax.random.PRNGKey(0), X)) or set(params) == set(NET.init(KEY, X)[0])
    assert same(f.apply(params, state, None, X)[0], NET.apply(params, state, None, X)[0])
    shapes = jax.eval_shape(NET.init, KEY, jax.ShapeDtypeStruct((4, 3), jnp.float32))
    assert jax.tree.structure(shapes) == jax.tree.structure((params, state))


def test_reports():
    table = hk.experimental.tabulate(NET)(X)
    assert "net (ToHaiku)" in table
    assert "ToHaiku(part=Net()" in table
    assert "kernel: f32[3,6]" in table
    params, state = NET.init(KEY, X)
    info = hk.experimental.jaxpr_info.make_model_info(lambda x: NET.apply(params, state, None, x))(X)
    assert "net" in str(info)


def test_creators_getters_setters_and_interceptors():
    seen = []

    def zeros(next_creator, shape, dtype, init, context):
        seen.append(context.full_name)
        return next_creator(shape, dtype, jnp.zeros)

    def half(next_getter, value, context):
        return next_getter(value.astype(jnp.bfloat16))

    def negative(next_setter, value, context):
        return next_setter(-value)

    def f(x, train=False):
        with hk.custom_creator(zeros), hk.custom_getter(half), hk.custom_setter(negative):
            return ToHaiku(Net(), name="net")(x, train=train)

    f = hk.transform_with_state(f)
    params, state = f.init(KEY, X)
    assert sorted(seen) == sorted(f"{module}/{leaf}" for module, leaves in params.items() for leaf in leaves)
    assert all(not v.any() for v in jax.tree.leaves(params))
    params, state = randomised((params, state))
    halved = jax.tree.map(lambda v: v.astype(jnp.bfloat16), params)
    assert same(f.apply(params, state, None, X)[0], NET.apply(halved, state, None, X)[0])
    _, after = f.apply(params, state, KEY, X, train=True)
    _, plain = NET.apply(halved, state, KEY, X, train=True)
    assert same(after["net/batch_stats/BatchNorm_0"]["mean"], -plain["net/batch_stats/BatchNorm_0"]["mean"])


def test_values_that_are_not_stored():
    kernel = jnp.full((3, 2), 7.0)

    def creator(next_creator, shape, dtype, init, context):
        return hk.experimental.DO_NOT_STORE if context.name == "kernel" else next_creator(shape, dtype, init)

    def getter(next_getter, value, context):
        return next_getter(kernel if value is hk.experimental.DO_NOT_STORE else value)

    def f(x):
        with hk.custom_creator(creator), hk.custom_getter(getter):
            return ToHaiku(nn.Dense(2))(x)

    f = hk.transform(f)
    params = f.init(KEY, X)
    assert jax.tree.map(jnp.shape, params) == {"dense": {"bias": (2,)}}
    assert same(f.apply(params, None, X), X @ kernel)


def test_a_precision_policy():
    class Policed(ToHaiku): ...

    policy = hk.mixed_precision.get_policy(ToHaiku)
    assert policy is None
    jmp = pytest.importorskip("jmp")
    hk.mixed_precision.set_policy(Policed, jmp.get_policy("params=float32,compute=bfloat16,output=float32"))
    f = hk.transform(lambda x: Policed(nn.Dense(2), name="net")(x))
    params = f.init(KEY, X)
    out = f.apply(params, None, X)
    low = nn.Dense(2).apply(
        {"params": jax.tree.map(lambda v: v.astype(jnp.bfloat16), params["net"])}, X.astype(jnp.bfloat16)
    )
    assert out.dtype == jnp.float32
    assert same(out, low.astype(jnp.float32))


def test_an_ensemble_by_lifting():
    inner = hk.transform(lambda x: ToHaiku(nn.Dense(2), name="net")(x))

    def ensemble(x):
        init = lambda rng, x: jax.vmap(inner.init, (0, None))(jax.random.split(rng, 3), x)  # noqa: E731
        params = hk.lift(init, name="ensemble")(hk.next_rng_key() if hk.running_init() else None, x)
        return jax.vmap(inner.apply, (0, None, None))(params, None, x)

    f = hk.transform(ensemble)
    params = f.init(KEY, X)
    kernels = params["ensemble/net"]["kernel"]
    assert kernels.shape == (3, 3, 2)
    assert not np.array_equal(kernels[0], kernels[1])
    np.testing.assert_allclose(
        f.apply(params, None, X)[1], X @ kernels[1] + params["ensemble/net"]["bias"][1], rtol=1e-5
    )


def test_gradients_within_a_function_and_random_numbers_ahead():
    def f(x):
        net = ToHaiku(Counting(), name="net")
        return hk.grad(lambda x: net(x).sum())(x)

    f = hk.transform_with_state(f)
    params, state = f.init(KEY, X)
    out, after = f.apply(params, state, None, X)
    np.testing.assert_allclose(out, jnp.ones((4, 3)) @ params["net/Dense_0"]["kernel"].T, rtol=1e-5)
    assert after["net/stats"]["n"] == 1

    def g(x):
        return ToHaiku(nn.Dense(2))(x), hk.Linear(2)(x)

    assert set(hk.transform(hk.experimental.optimize_rng_use(g)).init(KEY, X)) == {"dense", "linear"}
