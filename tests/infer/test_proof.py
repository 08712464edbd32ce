"""The proof of an inferred mapping: rounding passes, anything else does not."""

import flax.linen as nn
import haiku as hk
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bridges as br
from bridges._infer import _proof
from bridges._infer._end import End, taken
from bridges._infer._proof import agree, verified

X = np.zeros((4, 6), np.float32)


def old(x):
    for n in range(2):
        x = hk.LayerNorm(-1, True, True, name=f"norm_{n}")(jnp.tanh(hk.Linear(6, name=f"dense_{n}")(x)))
    return x


class New(nn.Module):
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x):
        for n in range(2):
            x = jnp.tanh(nn.Dense(6, name=f"dense_{n}")(x))
            x = nn.LayerNorm(epsilon=self.epsilon, use_fast_variance=False, name=f"norm_{n}")(x)
        return x


def proof(src, dst, mapping, x=X):
    inputs = taken((x,))
    ends = End.of(src, inputs), End.of(dst, inputs)
    return verified(*ends, mapping.plan(ends[0].spec, ends[1].spec))


def test_the_right_mapping_is_proved_in_float64():
    found = proof(old, New(), br.conventions("haiku", "linen"))
    assert agree(found) and found.dtype == "float64" and found.outputs < 1e-14 and found.gradients < 1e-13
    assert "in float64" in str(found)


@pytest.mark.parametrize("swapped", ["dense", "norm"])
def test_layers_in_each_others_place_are_not(swapped):
    lines = {f"{swapped}_0": f"{swapped}_1", f"{swapped}_1": f"{swapped}_0"}
    found = proof(old, New(), br.Mapping.of(modules=lines) | br.conventions("haiku", "linen"))
    assert not agree(found) and found.outputs > 1e-3


def test_another_epsilon_is_not_rounding():
    accepted = br.Mapping.of(accept={"{m:module}": ["epsilon"]}) | br.conventions("haiku", "linen")
    assert not agree(proof(old, New(1.1e-5), accepted))


def test_another_shape_of_output_is_not_equal():
    class Flat(nn.Module):
        @nn.compact
        def __call__(self, x):
            return New(name="net")(x).ravel()

    lines = {f"{kind}_{n}": f"net/{kind}_{n}" for kind in ("dense", "norm") for n in range(2)}
    assert proof(old, Flat(), br.Mapping.of(modules=lines) | br.conventions("haiku", "linen")).outputs == float("inf")


def test_what_computes_in_float32_is_judged_so():
    tokens = np.array([[1, 4, 2]], np.int32)
    embed = nnx.Embed(7, 5, rngs=nnx.Rngs(0))  # takes the gradient in float32 whatever it is given (flax 0.12.8)
    found = proof(nn.Embed(7, 5), embed, br.conventions("linen", "nnx"), tokens)
    assert agree(found) and found.dtype == "float32"


def test_roots_and_logarithms_are_given_what_they_can_take():
    def apply(p, x):
        return x * jnp.sqrt(p["a"]) + jnp.log(p["b"])

    params = {"a": np.ones(6, np.float32), "b": np.ones(6, np.float32)}
    mapping = br.Mapping.of(rules=[{"src": "a", "dst": "a"}, {"src": "b", "dst": "b"}])
    assert agree(proof((apply, params), (apply, params), mapping))


@pytest.mark.parametrize("limit", ["_SHORT", "_ALIKE"])
def test_long_programs_are_run_operation_by_operation(monkeypatch, limit):
    conventions = br.conventions("haiku", "linen")
    compiled = proof(old, New(), conventions)
    monkeypatch.setattr(_proof, limit, 1)
    one_by_one = proof(old, New(), conventions)
    assert agree(compiled) and agree(one_by_one)
    swapped = br.Mapping.of(modules={"dense_0": "dense_1", "dense_1": "dense_0"}) | conventions
    assert not agree(proof(old, New(), swapped))
