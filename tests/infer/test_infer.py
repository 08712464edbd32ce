"""infer_mapping from outside: any two kinds of model, what it returns, what it says of models that differ."""

import json

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bridges as br
import converters
from bridges._infer._model import ModelError
from bridges.core._errors import MappingError

X = np.zeros((4, 6), np.float32)


def haiku_net(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(jnp.tanh(hk.Linear(8)(x)), is_training)
    return hk.Linear(3)(x)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(not train, momentum=0.9, name="norm")(jnp.tanh(nn.Dense(8, name="first")(x)))
        return nn.Dense(3, name="last")(nn.Dropout(0.5)(x, deterministic=not train))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.head = nnx.Linear(8, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.body = nnx.Linear(6, 8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(self.norm(jnp.tanh(self.body(x)))))


class CoreNet(br.Module):
    def __init__(self):
        self.body, self.norm = br.FlaxModule(nn.Dense, 8), br.FlaxModule(nn.BatchNorm, True, momentum=0.9)
        self.head = br.HaikuModule(hk.Linear, 3)

    def __call__(self, x):
        return self.head(self.norm(jnp.tanh(self.body(x))))


class EquinoxNet(eqx.Module):
    body: eqx.nn.Linear
    head: eqx.nn.Linear
    scale: jax.Array
    statistics: dict

    def __init__(self):
        keys = jax.random.split(jax.random.key(0))
        self.body, self.head = eqx.nn.Linear(6, 8, key=keys[0]), eqx.nn.Linear(8, 3, key=keys[1])
        self.scale = jnp.ones(8)
        self.statistics = {"mean": jnp.zeros(8), "var": jnp.ones(8), "shift": jnp.zeros(8)}

    def __call__(self, x):
        s = self.statistics
        x = (jnp.tanh(self.body(x)) - s["mean"]) / jnp.sqrt(s["var"] + 1e-5) * self.scale + s["shift"]
        return self.head(x)


MODELS = {
    "haiku": haiku_net,
    "linen": LinenNet(),
    "nnx": NNXNet,
    "core": CoreNet(),
    "function": br.Function(lambda model, x: jax.vmap(model)(x), EquinoxNet()),
}


@pytest.mark.parametrize(("src", "dst"), [*zip(MODELS, [*MODELS][1:], strict=False), ("function", "haiku")])
def test_any_kind_to_any_kind(src, dst):
    mapping = br.infer_mapping(MODELS[src], MODELS[dst], X)
    if dst == "haiku":  # its averages without bias correction are of no use in evaluation: nothing tells them
        assert {leaf.path.rpartition("/")[2] for leaf in mapping.unplaced} <= {"hidden", "counter"}
        assert len(mapping.evidence) >= 8
        return
    assert mapping.complete, str(mapping)
    assert mapping.verified.outputs < 1e-12 and mapping.verified.dtype == "float64"
    assert br.Mapping.loads(mapping.dumps()) == mapping and mapping == br.Mapping.loads(mapping.dumps())
    assert "placed" in str(mapping) and mapping.to_dict()["complete"] is True
    assert json.loads(json.dumps(mapping.to_dict(), allow_nan=False)) == mapping.to_dict()


def test_verify_agrees():
    mapping = br.infer_mapping(NNXNet, LinenNet(), X)
    inputs = np.random.default_rng(0).normal(size=X.shape).astype(np.float32)
    linen = LinenNet().clone()
    report = converters.verify(
        lambda: _evaluated(NNXNet(nnx.Rngs(0))),
        lambda variables, x: linen.apply(br.linen_adapter.unflatten(variables), x, False),
        inputs,
        frameworks=("nnx", None),
        plan=mapping.plan(br.nnx_adapter.spec(NNXNet, inputs), br.linen_adapter.spec(linen, inputs, False)),
        dtypes=("float64", "float32"),
    )
    assert report.ok, str(report)


def _evaluated(model):
    model.eval()
    return model


def test_leaves_that_the_output_does_not_depend_on_are_placed_and_say_so():
    def attention(x):
        return hk.MultiHeadAttention(2, 3, w_init=hk.initializers.RandomNormal())(x, x, x)

    inputs = np.zeros((2, 4, 6), np.float32)
    dst = nn.MultiHeadDotProductAttention(2, qkv_features=6, out_features=6)
    mapping = br.infer_mapping(attention, dst, inputs)
    assert mapping.complete and "# 1 of them: the output does not depend on it" in mapping.dumps()
    assert mapping.evidence["params/key/bias"].text == "the output does not depend on it"
    assert mapping.evidence["params/query/bias"].error < 1e-12


def test_another_activation_is_another_function():
    def old(x):
        return hk.Linear(3)(jnp.tanh(hk.Linear(8)(x)))

    new = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
    try:
        mapping = br.infer_mapping(old, new, X)
    except br.DifferentModelsError as err:
        mapping = err.mapping
        assert "not one function" in str(err)
    assert not mapping.complete and "params/layers_0/kernel" in {*mapping.evidence, *(u.path for u in mapping.unplaced)}


def test_one_leaf_too_many_is_listed_and_the_plan_says_so():
    class Wider(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x) + self.param("extra", nn.initializers.zeros, (3,))

    mapping = br.infer_mapping(lambda x: hk.Linear(3)(x), Wider(), X)
    assert not mapping.complete and "extra" in str(mapping) + mapping.dumps()
    with pytest.raises(MappingError, match="gets nothing"):
        mapping.plan(br.haiku_adapter.spec(lambda x: hk.Linear(3)(x), X), br.linen_adapter.spec(Wider(), X))


def test_a_model_that_cannot_be_called_says_so():
    with pytest.raises(ModelError, match="raises, with the inputs"):
        br.infer_mapping(lambda x, y: hk.Linear(3)(x + y), nn.Dense(3), X)


def test_progress_is_told():
    seen = []
    br.infer_mapping(MODELS["linen"], NNXNet, X, progress=lambda done, total, where: seen.append((done, total, where)))
    assert all(0 <= done <= total for done, total, _ in seen)
