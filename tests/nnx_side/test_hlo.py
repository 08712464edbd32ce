"""The compiled step of a wrapped NNX model is that of the native one: the same optimised HLO, opcode by opcode."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bridges as br
from bridges.nnx_adapter import NNXModule, flatten
from tests.hlo import compiled, compiled_lightly, opcodes
from tests.nnx_side import models
from tests.nnx_side.models import equal, inputs, randomised
from tests.nnx_side.test_wrapper import below

MODELS = {
    "mlp": (models.MLP, inputs(2, 4)),
    "conv_net": (models.ConvNet, inputs(2, 6, 6, 3)),
    "transformer": (models.Transformer, jnp.ones((2, 3), jnp.int32)),
    "tied": (models.Tied, inputs(2, 2)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_training_step_is_native(name):
    make, x = MODELS[name]
    module = randomised(make(rngs=nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    net, state = NNXModule(make, name="net"), below("net", module)

    def wrapped(state, x):
        params, rest = state.partition(br.Param, ...)

        def loss(params):
            after, out = br.pure(net)(params | rest, x)
            return (out**2).mean(), after.filter(br.Not(br.Param))

        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads) | rest, value

    def native(params, rest, x):
        def loss(params):
            module = nnx.merge(graphdef, params, rest, copy=True)
            out = module(x)
            return (out**2).mean(), nnx.state(module, nnx.Not(nnx.Param))

        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), rest, value

    one, two = compiled_lightly(wrapped, state, x), compiled_lightly(native, params, rest, x)
    assert opcodes(one) == opcodes(two)
    after, value = one(state, x)
    params, rest, want = two(params, rest, x)
    # The same instructions, perhaps in another order inside of a fusion: equal up to the rounding of float32 sums.
    np.testing.assert_allclose(value, want, rtol=1e-6)
    for path, native_value in flatten(nnx.merge_state(params, rest)).items():
        if "Rng" in path:
            assert equal(after[f"net/{path}"], native_value)
        else:
            np.testing.assert_allclose(after[f"net/{path}"], native_value, rtol=1e-5, atol=1e-6)


def test_a_model_of_wrapped_layers_is_native():
    class Parts(br.Module):
        def __init__(self):
            self.layers = [NNXModule(nnx.Linear, i, o) for i, o in ((4, 8), (8, 8), (8, 3))]

        def __call__(self, x):
            for layer in self.layers[:-1]:
                x = nnx.relu(layer(x))
            return self.layers[-1](x)

    module, x = randomised(models.MLP(rngs=nnx.Rngs(0))), inputs(2, 4)
    state = {f"parts/layers_{p[14]}/params/{p[16:]}": value for p, value in flatten(module).items()}
    graphdef, native = nnx.split(module)
    one = compiled(lambda state, x: br.pure(Parts())(state, x)[1], state, x)
    two = compiled(lambda native, x: nnx.merge(graphdef, native)(x), native, x)
    assert opcodes(one) == opcodes(two)
    assert equal(one(state, x), two(native, x))
