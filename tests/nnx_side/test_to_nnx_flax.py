"""What `flax.nnx.bridge.ToNNX` is tested for (flax 0.12, tests/nnx/bridge/wrappers_test.py), asked of ours.

The mesh is in test_tools.py (eight devices), a layer under `nnx.vmap` in test_to_nnx.py. Left out: `functional` and
`nnx.bridge.Module`, which wrap nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import bridges as br
from tests.nnx_side.models import inputs

X = inputs(2, 4)


def test_a_layer():
    model = br.ToNNX(nn.Dense(8), rngs=nnx.Rngs(0)).lazy_init(X)
    kernel, bias = model.variables["params"]["kernel"], model.variables["params"]["bias"]
    assert isinstance(kernel, nnx.Variable)
    native = nn.Dense(8).apply({"params": {"kernel": kernel.get_value(), "bias": bias.get_value()}}, X)
    np.testing.assert_array_equal(model(X), native)


def test_layers_in_a_module():
    class Outer(nnx.Module):
        def __init__(self, rngs):
            self.dense = br.ToNNX(nn.Dense(3, use_bias=False), rngs=rngs)
            self.b = nnx.Param(rngs.params.uniform((1, 3)))
            self.norm = br.ToNNX(nn.BatchNorm(use_running_average=True), rngs=rngs)
            self.rngs = rngs

        def __call__(self, x):
            return self.norm(self.dense(x) + self.b)

    model = Outer(nnx.Rngs(0))
    before = nnx.graphdef(model)
    nnx.bridge.lazy_init(model, X)
    graphdef, state = nnx.split(model)
    assert before != graphdef
    assert {"dense", "norm", "b"} <= set(state)
    kernel = state["dense"]["variables"]["params"]["kernel"]
    # BatchNorm divides by sqrt(1 + 1e-5).
    np.testing.assert_allclose(model(X), X @ kernel + state["b"], rtol=1e-4)
    assert nnx.graphdef(model) == graphdef


class TwoMethods(nn.Module):
    @nn.compact
    def __call__(self, x):
        return self.dot(x) + self.param("b", nn.initializers.ones, (1, 3))

    @nn.compact
    def dot(self, x):
        return x @ self.param("w", nn.initializers.lecun_normal(), (4, 3))

    def rngs(self):
        raise ValueError("never called: NNX has an attribute of that name")


def test_another_method():
    model = br.ToNNX(TwoMethods(), rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(model.dot, X)
    w = model.variables["params"]["w"]
    np.testing.assert_allclose(model.dot(X), X @ w, rtol=1e-6)
    with pytest.raises(br.MissingEntryError, match="params/b"):
        model(X)
    assert isinstance(model.rngs, nnx.Rngs)


class Counter(nn.Module):
    def setup(self):
        self.count = self.variable("counter", "count", lambda: jnp.zeros((), jnp.int32))

    def __call__(self, function):
        if not self.is_initializing():
            self.count.value += 1
        return function


def test_what_is_mutable_and_a_function_as_argument():
    def function():
        return 1

    model = br.ToNNX(Counter(), rngs=nnx.Rngs(0)).lazy_init(function)
    count = model.variables["counter/count"]
    assert count[...] == 0
    assert model(function) is function
    assert count[...] == 1, "what a call modifies is written back, unasked"
    model(function, mutable=True)
    assert count[...] == 2
    model(function, mutable=["counter"])
    assert count[...] == 3


def test_streams_of_a_call():
    drop = nn.Dropout(0.5, deterministic=False)
    model = br.ToNNX(drop).lazy_init(X, rngs=nnx.Rngs(5))
    assert model.rngs is None
    given = nnx.Rngs(dropout=1)
    one, two = model(X, rngs=given), model(X, rngs=given)
    assert not np.array_equal(one, two)
    assert given.dropout.count[...] == 2
    np.testing.assert_array_equal(one, drop.apply({}, X, rngs={"dropout": nnx.Rngs(dropout=1).dropout()}))
    np.testing.assert_array_equal(model(X, rngs=jax.random.key(3)), model(X, rngs=jax.random.key(3)))
    with pytest.raises(br.SeedError):
        model(X)

    class Own(nn.Module):
        def __call__(self, x, rngs=None):
            return rngs

    assert br.ToNNX(Own()).lazy_init(X)(X, rngs="its own") == "its own"


def test_states_of_one_structure_wherever_the_border_runs():
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x):
            w = self.param("w", nn.initializers.lecun_normal(), (x.shape[-1], 3))
            return nn.Dropout(rate=0.5, deterministic=False)(x @ w)

    class LinenMiddle(nn.Module):
        @nn.compact
        def __call__(self, x):
            b = self.variable("bias", "b", nn.initializers.zeros_init(), None, (1, 3))
            return Inner(name="dot")(x) + b.value

    Bias = nnx.variable_type_from_name("bias", allow_register=True)

    class NNXMiddle(nnx.Module):
        def __init__(self, rngs):
            self.dot = br.ToNNX(Inner(), rngs=rngs)
            self.b = Bias(jnp.zeros((1, 3)))

        def __call__(self, x):
            return self.dot(x) + self.b

    def weights(model):
        """Returns the type of each Variable by its path, without the wrapper's name space."""
        state = nnx.state(nnx.bridge.lazy_init(model, X), nnx.Not(nnx.RngState))
        return {
            tuple(key for key in path if key not in ("variables", "params", "bias")): type(leaf)
            for path, leaf in nnx.to_flat_state(state)
        }

    whole, middle = br.ToNNX(LinenMiddle(), rngs=nnx.Rngs(0, dropout=1)), NNXMiddle(nnx.Rngs(0, dropout=1))
    assert weights(whole) == weights(middle) == {("dot", "w"): nnx.Param, ("b",): Bias}


def test_variables_that_a_call_adds():
    class Late(nn.Module):
        @nn.compact
        def __call__(self):
            if not self.is_initializing() and self.is_mutable_collection("cache"):
                self.put_variable("cache", "x", 0)
            return self.get_variable("cache", "x")

    class Outer(nnx.Module):
        def __init__(self):
            self.module = br.ToNNX(Late()).lazy_init()

        def __call__(self):
            return self.module(mutable=["cache"]), self.module()

    model = Outer()
    assert model() == (0, 0)
    assert type(model.module.variables["cache/x"]) is nnx.Cache


class Innermost(nnx.Module):
    def __init__(self, din, dout, rate, *, rngs):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("in", "out"), eager_sharding=False)
        self.w = nnx.Param(init(rngs.params(), (din, dout)))
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x):
        return self.dropout(x @ self.w)


class Middle(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, x):
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("alias",), rules=(("alias", "out"),))
        return br.ToLinen(Innermost, x.shape[-1], 6, self.rate, name="dot")(x) + self.param("b", init, (2, 6))


class Outermost(nnx.Module):
    def __init__(self, rate, *, rngs):
        self.inner = br.ToNNX(Middle(rate), rngs=rngs)
        self.rngs = rngs

    def __call__(self, x):
        return self.inner(x)


def test_nnx_in_linen_in_nnx_draws_anew_and_is_reseeded():
    model = nnx.bridge.lazy_init(Outermost(0.5, rngs=nnx.Rngs(default=1, dropout=2)), X)
    nnx.reseed(model, dropout=2)
    one, two = model(X), model(X)
    assert not np.allclose(one, two)
    nnx.reseed(model, dropout=2)
    np.testing.assert_array_equal(one, model(X))


def test_nnx_in_linen_in_nnx_keeps_values_and_names_of_axes():
    model = nnx.bridge.lazy_init(Outermost(0.0, rngs=nnx.Rngs(default=1, dropout=2)), X)
    w, b = model.inner.variables["params"]["dot"]["w"], model.inner.variables["params"]["b"]
    np.testing.assert_allclose(model(X), X @ w + b, rtol=1e-6)
    assert isinstance(w, nnx.Param)
    assert w.get_metadata("out_sharding") == ("in", "out")
    assert b.get_metadata("out_sharding") == ("alias",)
    assert b.get_metadata("sharding_rules") == (("alias", "out"),)
    assert jax.tree.structure(model) == jax.tree.structure(nnx.merge(*nnx.split(model)))
