"""What public models do that wrappers trip over, in `ToNNX`; each beside the native model."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import bridges as br
from tests.linen import models as linen_models
from tests.nnx_side.models import inputs, randomised, same

X = inputs(4, 3)


def wrapper(part, *args, x=X, rngs=0):
    return randomised(br.ToNNX(part, *args, rngs=nnx.Rngs(rngs)).lazy_init(x))


def native(model):
    """Returns the variables of a wrapped Linen module, as Linen has them."""
    state = nnx.state(model.variables)
    return br.linen_adapter.unflatten(br.State({"/".join(p): v.get_value() for p, v in nnx.to_flat_state(state)}))


def test_training_decided_by_whether_statistics_are_mutable():
    model = wrapper(linen_models.ByMutability())
    variables = native(model)
    evaluated = linen_models.ByMutability().apply(variables, X)
    trained, new = linen_models.ByMutability().apply(variables, X, mutable=["batch_stats"])
    np.testing.assert_array_equal(model(X), evaluated)  # The default is what the call itself does.
    assert same(native(model)["batch_stats"], variables["batch_stats"])
    np.testing.assert_array_equal(model(X, mutable=["batch_stats"]), trained)
    assert same(native(model)["batch_stats"], new["batch_stats"])
    np.testing.assert_array_equal(nnx.jit(lambda m, x: m(x, mutable=False))(model, X).shape, trained.shape)


def test_scopes_of_haiku_methods():
    class Coder(hk.Module):
        def __call__(self, x):
            return self.decode(hk.Linear(4)(x))

        def decode(self, z):
            return hk.Linear(3)(z)

    model = wrapper(Coder)
    params = hk.transform(lambda x: Coder()(x)).init(jax.random.key(0), X)
    assert {"coder/linear", "coder/~decode/linear"} == set(params)
    assert {"linear", "~decode"} == set(model.variables["params"]["coder"])
    params, _ = br.haiku_adapter.unflatten(
        br.State({"/".join(p): v.get_value() for p, v in nnx.to_flat_state(nnx.state(model.variables))})
    )
    np.testing.assert_array_equal(model(X), hk.transform(lambda x: Coder()(x)).apply(params, None, X))


def test_metadata_that_lies_beside_the_arrays():
    x = inputs(2, 3)
    model = wrapper(linen_models.T5X(), x=x)
    assert "kernel" in model.variables["params"]
    assert "kernel_axes" in model.variables["params_axes"]
    variables = native(model)
    np.testing.assert_array_equal(model(x), linen_models.T5X().apply(variables, x))
    twice = nnx.merge(*nnx.split(model))
    np.testing.assert_array_equal(nnx.jit(lambda m, x: m(x))(twice, x).shape, (2, 4))


@pytest.mark.parametrize("graph", [True, False])
def test_layers_stacked_on_axis_1(graph):
    model = wrapper(linen_models.Stacked())
    assert model.variables["params"]["layer"]["kernel"].shape == (3, 3, 3)
    variables = native(model)
    want = jax.grad(lambda v: linen_models.Stacked().apply(v, X).sum())(variables)
    grads = nnx.jit(nnx.grad(lambda m: m(X).sum(), graph=graph), graph=graph)(model)
    got = nnx.to_pure_dict(grads if graph else nnx.state(grads, nnx.Param))["variables"]["params"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, dict(want["params"]))


def test_shared_scopes():
    model = wrapper(linen_models.Lora())
    assert set(model.variables["params"]) == {"kernel", "bias", "a", "b"}
    np.testing.assert_array_equal(model(X), linen_models.Lora().apply(native(model), X))


def test_tuples_and_integer_keys_in_a_collection_that_changes():
    model = br.ToNNX(linen_models.TupleCache(), rngs=nnx.Rngs(0)).lazy_init(X)
    variables = linen_models.TupleCache().init(jax.random.key(0), X)
    step = nnx.jit(lambda model, x: model(x))
    for _ in range(2):
        out, new = linen_models.TupleCache().apply(variables, X, mutable=["memory"])
        variables = {**variables, **new}
        np.testing.assert_allclose(step(model, X), out, rtol=1e-6)
    found = {p.rpartition("cell/")[2]: v for p, v in flat(model).items() if "memory" in p}
    first, second = variables["memory"]["cell"]
    np.testing.assert_allclose(found["0"], first, rtol=1e-6)
    assert (found["1/0"], found["1/10"].tolist()) == (second[0], second[10].tolist())


def flat(model):
    return {"/".join(p): v.get_value() for p, v in nnx.to_flat_state(nnx.state(model.variables))}


def test_digits_as_names():
    class Blocks(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i in range(11):
                x = nn.Dense(3, name=str(i))(x)
            return x

    model = wrapper(Blocks())
    assert list(model.variables["params"]) == sorted(str(i) for i in range(11))
    copy = nnx.merge(*nnx.split(model))
    np.testing.assert_array_equal(copy(X), Blocks().apply(native(model), X))
    assert nnx.state(model)["variables"]["params"]["10"]["kernel"].shape == (3, 3)


class Late(nnx.Module):
    """Makes a Variable in its first call, and keeps random keys."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        if not hasattr(self, "seen"):
            self.seen = nnx.BatchStat(jnp.zeros(()))
        self.seen[...] += 1
        return self.dropout(self.linear(x))


def test_variables_that_a_call_makes_and_keys_in_the_state():
    model = br.ToNNX(Late, rngs=nnx.Rngs(params=0, dropout=1)).lazy_init(X)
    reference = Late(nnx.Rngs(**{n: s() for n, s in nnx.Rngs(params=0, dropout=1).fork().items()}))
    for _ in range(3):
        np.testing.assert_array_equal(model(X), reference(X))
    assert flat(model)["batch_stats/seen"] == 4  # Made by the call that lazy_init makes, and counted by it.
    assert {p for p in flat(model) if p.startswith("Rng")} == {
        "RngCount/dropout/rngs/count",
        "RngKey/dropout/rngs/key",
    }


def test_bfloat16_state():
    model = wrapper(nn.BatchNorm(use_running_average=False, momentum=0.5))
    model = jax.tree.map(lambda v: v.astype(jnp.bfloat16), model)
    model(X.astype(jnp.bfloat16))
    assert {v.dtype for v in flat(model).values()} == {jnp.dtype(jnp.bfloat16)}


def test_names_with_separators():
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.param("a/b", nn.initializers.ones, (3,)) + self.param("100%", nn.initializers.ones, (3,))

    def haiku(x):
        return x * hk.get_parameter("__init__", (3,), init=jnp.ones)

    model = wrapper(Odd())
    assert set(model.variables["params"]) == {"a%2Fb", "100%25"}
    np.testing.assert_array_equal(nnx.merge(*nnx.split(model))(X), Odd().apply(native(model), X))
    model = wrapper(haiku)
    assert model.variables["params"]["~"]["__init__"].shape == (3,)
    assert nnx.merge(*nnx.split(model))(X).shape == (4, 3)
