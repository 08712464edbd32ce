"""Averages and spectral norms that Haiku keeps under encoded names come back as trees like the parameters."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bridges import haiku_adapter, nnx_adapter
from bridges.core._errors import CollisionError, StructureError
from bridges.param_mapping import conventions


def net(x):
    return hk.nets.MLP([5, 4])(x)


X = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)


def trees(make, steps=3):
    """The parameters after a few changes, and the state that a tree module keeps of them."""
    params = hk.transform(net).init(jax.random.key(0), X)
    tree = hk.transform_with_state(lambda params: make()(params))
    _, state = tree.init(jax.random.key(1), params)
    for i in range(steps):
        params = jax.tree.map(lambda p, i=i: p * (i + 1.5), params)
        out, state = tree.apply({}, state, None, params)
    return params, state, out


def test_averages_are_a_tree_like_the_parameters():
    params, state, out = trees(lambda: hk.EMAParamsTree(0.9))
    averages = haiku_adapter.read_params_tree(state, params)
    assert jax.tree.all(jax.tree.map(np.array_equal, averages, dict(out)))
    assert haiku_adapter.read_params_tree(state, params, "counter")["mlp/~/linear_0"]["w"] == 3
    written = haiku_adapter.write_params_tree(averages)
    assert {m: e["average"] is state[m]["average"] for m, e in written.items()} == dict.fromkeys(state, True)


def test_averages_reach_another_framework_by_the_plan_of_the_parameters():
    params, state, out = trees(lambda: hk.EMAParamsTree(0.9))
    model = nnx.Sequential(nnx.Linear(6, 5, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(5, 4, rngs=nnx.Rngs(1)))
    plan = conventions("haiku", "nnx").plan(haiku_adapter.spec(net, X), nnx_adapter.spec(model))
    new = plan.forward(haiku_adapter.flatten(haiku_adapter.read_params_tree(state, params)))
    nnx.update(model, nnx_adapter.unflatten(new, model))
    np.testing.assert_array_equal(model(X), hk.transform(net).apply(dict(out), None, X))


def test_spectral_norms():
    params, state, out = trees(lambda: hk.SNParamsTree(ignore_regex=".*b$"))
    sigma = haiku_adapter.read_params_tree(state, params, "sigma", "sn_params_tree")
    assert sorted(sigma) == ["mlp/~/linear_0", "mlp/~/linear_1"] and list(sigma["mlp/~/linear_0"]) == ["w"]
    for module, leaves in sigma.items():
        np.testing.assert_allclose(out[module]["w"], params[module]["w"] / leaves["w"], rtol=1e-6)
    u0 = haiku_adapter.read_params_tree(state, params, "u0", "sn_params_tree")
    written = haiku_adapter.write_params_tree(u0, "u0", "sn_params_tree")
    assert sorted(written) == sorted(state)


def test_names_that_haiku_makes_one_are_refused():
    """Haiku numbers the second of them in the order of its call, which nothing tells."""
    params = {"a/b": {"w": jnp.ones(2)}, "a__b": {"w": jnp.zeros(2)}}
    tree = hk.transform_with_state(lambda params: hk.EMAParamsTree(0.9)(params))
    _, state = tree.init(jax.random.key(1), params)
    assert sorted(state) == ["ema_params_tree/a__b__w", "ema_params_tree/a__b__w_1"]
    with pytest.raises(CollisionError, match="one name here"):
        haiku_adapter.read_params_tree(state, params)


def test_what_does_not_belong_is_an_error():
    params, state, _ = trees(lambda: hk.EMAParamsTree(0.9))
    with pytest.raises(StructureError, match="of no parameter"):
        haiku_adapter.read_params_tree(state, {"mlp/~/linear_0": params["mlp/~/linear_0"]})
    with pytest.raises(StructureError, match="has no 'average' below 'ema'"):
        haiku_adapter.read_params_tree(state, params, name="ema")
