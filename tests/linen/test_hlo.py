"""The compiled step of a wrapped Linen model is that of the native one: the same optimised HLO, opcode by opcode."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import bridges as br
from bridges.linen_adapter import FlaxModule
from tests.hlo import compiled, compiled_lightly, opcodes
from tests.linen import models
from tests.linen.models import inputs, variables_of
from tests.linen.test_wrapper import below, native

KEY = jax.random.key(0)
TOKENS = jnp.ones((2, 3), jnp.int32)
MODELS = {
    "mlp": (models.MLP(), inputs(2, 4), {}),
    "resnet": (models.ResNet(), inputs(2, 6, 6, 3), {"train": True}),
    "transformer": (models.Transformer(), TOKENS, {"train": True}),
}


def steps(name):
    """A training step of a wrapped model and the native one, from variables to variables."""
    model, x, kwargs = MODELS[name]
    variables = variables_of(model, x)
    net = FlaxModule(model, name="net")

    def wrapped(state, x, key):
        params, rest = state.partition(br.Param, ...)

        def loss(params):  # The wrapper is the whole model here, and so draws with the key itself, as Linen does.
            after, out = br.pure(net)(params | rest, x, seed=key, **kwargs)
            return (out**2).mean(), after.filter(br.BatchStat)

        (value, updated), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads) | rest | updated, value

    return (wrapped, below("net", variables)), (native_step(model, kwargs), variables), (x, KEY)


def native_step(model, kwargs):
    def step(variables, x, key):
        def loss(params):
            out, updated = model.apply({**variables, "params": params}, x, rngs=key, mutable=["batch_stats"], **kwargs)
            return (out**2).mean(), updated

        (value, updated), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], grads)
        return {**variables, **updated, "params": params}, value

    return step


def check(wrapped, native_train, args):
    (wrapped, state), (native_train, variables) = wrapped, native_train
    one, two = compiled_lightly(wrapped, state, *args), compiled_lightly(native_train, variables, *args)
    assert opcodes(one) == opcodes(two)
    after, value = one(state, *args)
    want, want_value = two(variables, *args)
    # The same instructions, perhaps in another order inside of a fusion: equal up to the rounding of float32 sums.
    np.testing.assert_allclose(value, want_value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), native("net", after), want)


@pytest.mark.parametrize("name", MODELS)
def test_the_training_step_is_native(name):
    check(*steps(name))


def test_the_training_step_by_the_lifted_gradient_is_native():
    model, x, kwargs = MODELS["resnet"]
    variables = variables_of(model, x)
    net = FlaxModule(model, name="net")

    def train(x):
        value, params, grads = br.grad(lambda x: (net(x, **kwargs) ** 2).mean(), net)(x)
        br.context().update(jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
        return value

    def wrapped(state, x, key):
        return br.pure(train)(state, x)

    check((wrapped, below("net", variables)), (native_step(model, kwargs), variables), (x, KEY))


class Parts(br.Module):
    """An MLP of wrapped layers, against one Linen module of the same layers."""

    def __init__(self):
        self.layers = [FlaxModule(nn.Dense, size) for size in (8, 8, 3)]

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = nn.relu(layer(x))
        return self.layers[-1](x)


def test_a_model_of_wrapped_layers_is_native():
    x = inputs(2, 4)
    model, net = models.MLP(), Parts()
    variables = variables_of(model, x)
    state = {}
    for i in range(3):
        for leaf, value in variables["params"][f"Dense_{i}"].items():
            state[f"parts/layers_{i}/params/{leaf}"] = value
    one = compiled(lambda s, x: br.pure(net)(s, x)[1], state, x)
    two = compiled(model.apply, variables, x)
    assert opcodes(one) == opcodes(two)
    assert np.array_equal(one(state, x), two(variables, x))


def test_the_count_of_opcodes_can_tell_programs_apart():
    x = jnp.ones((2, 2))
    one, two = opcodes(compiled(lambda x: jnp.sin(x) @ x, x)), opcodes(compiled(lambda x: jnp.sin(jnp.sin(x)) @ x, x))
    assert one["sine"] == 1 and two["sine"] == 2 and one["dot"] == 1 and one["parameter"] >= 1
    text = "  ROOT %t.1 = (f32[2]{0}, /*index=1*/s32[]) tuple(%a, %b)\n  %d = f32[2,3]{1,0} dot(%a, %b), lhs={1}\n"
    assert opcodes(text) == {"tuple": 1, "dot": 1}
