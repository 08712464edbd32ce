"""What a wrapper learns of a Linen module it knows of every equal one: Haiku functions make theirs at every trace."""

from __future__ import annotations

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import bridges as br
from bridges._linen._memory import Memory, _key

X = jnp.ones((4, 3))
TRACES: list[float] = []


class Scaled(nn.Module):
    """BatchNorm, so that it has to be found out what a call modifies."""

    scale: float
    init: object = nn.initializers.ones

    @nn.compact
    def __call__(self, x, train):
        TRACES.append(self.scale)
        return nn.BatchNorm(not train)(nn.Dense(2)(x)) * self.scale * self.param("w", self.init, ())


def apply_count(scale, train=True):
    """Returns how often the module's body runs in a trace of the function."""
    f = hk.transform_with_state(lambda x, train: br.ToHaiku(Scaled(scale), name="net")(x, train))
    params, state = f.init(jax.random.key(0), X, True)
    TRACES.clear()
    out = jax.eval_shape(lambda params, state: f.apply(params, state, None, X, train)[0], params, state)
    assert out.shape == (4, 2)
    return len(TRACES)


def test_a_call_that_is_known_is_traced_once():
    assert apply_count(0.25) == 1  # `init` has shown what such a call does.
    assert apply_count(0.25, train=False) > 1
    assert apply_count(0.25, train=False) == 1


def test_equal_modules_share_what_is_known_and_others_do_not():
    of = Memory.of_model
    assert of(Scaled(1.0)) is of(Scaled(1.0))
    assert of(Scaled(1.0)) is not of(Scaled(2.0))
    assert of(Scaled(1)) is not of(Scaled(True))
    normal = nn.initializers.normal
    assert of(Scaled(1.0, normal(0.1))) is of(Scaled(1.0, normal(0.1)))
    assert of(Scaled(1.0, normal(0.1))) is not of(Scaled(1.0, normal(0.2)))
    assert of(nn.Dense(2, dtype=jnp.bfloat16)) is not of(nn.Dense(2))
    assert of(nn.Sequential((nn.Dense(2), jnp.tanh))) is not of(nn.Sequential((nn.Dense(3), jnp.tanh)))
    partial = functools.partial(normal, 0.1)
    assert of(Scaled(1.0, partial)) is of(Scaled(1.0, functools.partial(normal, 0.1)))


def recursive():
    def again(x):
        return again(x)

    return again


HELD = np.ones(2)


@pytest.mark.parametrize("held", [HELD, jnp.ones(2), lambda x, held=HELD: x + held, {"a": 1}, recursive()])
def test_what_holds_arrays_or_cannot_be_compared_is_not_shared(held):
    assert _key(Scaled(1.0, held)) is None
    assert Memory.of_model(Scaled(1.0, held)) is not Memory.of_model(Scaled(1.0, held))


def test_the_values_around_a_function_count():
    def scaled(value):
        class Module(nn.Module):
            fn: object

            @nn.compact
            def __call__(self, x):
                return self.fn(nn.BatchNorm(False)(x))

        return Module(lambda x: x * value)

    f = hk.transform_with_state(lambda x, value: br.ToHaiku(scaled(value), name="net")(x))
    state = f.init(jax.random.key(0), X, 1.0)
    x = X.at[0].set(5.0)
    one, three = (f.apply(*state, None, x, value)[0] for value in (1.0, 3.0))
    np.testing.assert_allclose(3 * one, three, rtol=1e-6)


def test_axis_names_of_nnx_need_no_mesh():
    kernel_init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("in", "out"))
    f = hk.transform(lambda x: br.ToHaiku(nnx.Linear, 3, 2, kernel_init=kernel_init)(x))
    params = f.init(jax.random.key(0), X)
    assert f.apply(params, None, X).shape == (4, 2)


def test_streams_among_the_arguments():
    rngs = nnx.Rngs(7)
    native = nnx.Linear(3, 2, rngs=nnx.Rngs(7)).kernel.get_value()
    for part in (functools.partial(nnx.Linear, 3, 2, rngs=rngs), nnx.Linear(3, 2, rngs=nnx.Rngs(7))):
        f = hk.transform(lambda x, part=part: br.ToHaiku(part)(x))
        np.testing.assert_array_equal(f.init(None, X)["linear"]["kernel"], native)
        variables = br.ToLinen(part).init(jax.random.key(0), X)
        np.testing.assert_array_equal(variables["params"]["kernel"], native)
        state = br.init(br.NNXModule(part))({}, X)
        np.testing.assert_array_equal(state["linear/params/kernel"], native)
