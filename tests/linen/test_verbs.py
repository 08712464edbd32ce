"""spec, init and apply of the Linen adapter, against Linen itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import bridges as br
from bridges.linen_adapter import apply, flatten, init, spec, unflatten
from tests.linen import models
from tests.linen.models import inputs, same, variables_of

KEY = jax.random.key(0)
IMAGES = inputs(2, 4, 4, 3)


def test_spec_is_what_init_makes_and_allocates_nothing():
    x = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)
    found = spec(models.ConvNet(), x)
    assert found.framework == "linen"
    assert found.entries["params/Conv_0/kernel"] == jax.ShapeDtypeStruct((3, 3, 3, 4), jnp.float32)
    assert found.entries.kind("batch_stats/BatchNorm_0/mean") is br.BatchStat
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(found.native))
    assert jax.tree.structure(found.native) == jax.tree.structure(jax.eval_shape(models.ConvNet().init, KEY, IMAGES))


def test_spec_lists_layers_with_their_hyperparameters():
    found = spec(models.ResNet(), IMAGES, train=True).layers
    assert found[""].type == "tests.linen.models.ResNet"
    assert found["Block_1"].hyperparameters == {"features": 8, "strides": 2}
    norm = found["Block_0/BatchNorm_1"]
    assert norm.type == "linen.BatchNorm"
    assert norm.hyperparameters["momentum"] == 0.9 and norm.hyperparameters["epsilon"] == 1e-5
    assert norm.hyperparameters["use_running_average"] is False
    assert found["Block_1/Conv_2"].hyperparameters["kernel_size"] == (1, 1)


def test_spec_by_method_and_through_setup():
    found = spec(models.AutoEncoder(), inputs(2, 4), method="encode")
    assert list(found.entries) == ["params/encoder/bias", "params/encoder/kernel"]
    assert found.layers["encoder"].hyperparameters["features"] == 2
    both = spec(models.AutoEncoder(), inputs(2, 4))
    assert both.layers["decoder"].type == "linen.Dense"


def test_spec_has_plain_hyperparameters_only():
    model = nn.RNN(nn.LSTMCell(4, gate_fn=nn.hard_sigmoid), time_major=True)
    layers = spec(model, inputs(2, 5, 3)).layers
    assert layers[""].hyperparameters["cell"] == "linen.LSTMCell"
    assert layers["cell"].hyperparameters["gate_fn"] == "hard_sigmoid"
    assert layers["cell"].hyperparameters["param_dtype"] == "float32"
    mask = np.ones((3, 3, 3, 2), np.float32)
    assert spec(nn.Conv(2, (3, 3), mask=mask), IMAGES).layers[""].hyperparameters["mask"] == "float32[3,3,3,2]"


def test_spec_path_is_escaped_like_the_entries():
    found = spec(nn.Sequential([nn.Dense(2, name="a/b")]), inputs(2, 3))
    assert all(path.split("/")[1] in found.layers for path in found.entries if path.count("/") == 2)


def test_spec_where_a_model_asks_for_a_stream_by_name():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x) if self.has_rng("noise") else x

    assert not spec(Noisy(), inputs(2, 3)).entries
    assert spec(Noisy(), inputs(2, 3), rngs={"noise": KEY}).entries


def test_init_is_native_bit_for_bit():
    model, x = models.MLP(), inputs(2, 4)
    native = model.init(KEY, x)
    assert same(unflatten(init(model, KEY, x), native), native)
    with pytest.raises(br.SeedError, match="random stream 'params', and rngs= has none"):
        init(model, {}, x)


def test_apply_returns_output_and_state_in_one_order():
    model = models.ConvNet()
    variables = variables_of(model, IMAGES)
    state = flatten(variables)
    evaluated, after = jax.jit(lambda s: apply(model, s, IMAGES))(state)
    assert same(evaluated, jax.jit(model.apply)(variables, IMAGES))
    assert same(after, state)

    rngs = {"dropout": KEY}
    out, after = jax.jit(lambda s: apply(model, s, IMAGES, train=True, rngs=rngs))(state)
    native = jax.jit(lambda v: model.apply(v, IMAGES, train=True, rngs=rngs, mutable=["batch_stats"]))(variables)
    assert same(out, native[0])
    assert same(unflatten(after, variables), {**variables, **native[1]})


def test_apply_takes_a_plain_dictionary_and_declares_kinds():
    model = models.ConvNet()
    plain = dict(flatten(variables_of(model, IMAGES)))
    out, after = apply(model, plain, IMAGES)
    assert out.shape == (2, 3)
    assert after.kind("batch_stats/BatchNorm_0/mean") is br.BatchStat
    assert "batch_stats/BatchNorm_0/mean" in plain and not isinstance(plain, br.State)


def test_apply_by_method():
    model, x = models.AutoEncoder(), inputs(2, 4)
    variables = variables_of(model, x)
    for method in ("encode", models.AutoEncoder.encode, model.encode, lambda module, x: module.encode(x)):
        out, _ = apply(model, flatten(variables), x, method=method)
        assert same(out, model.apply(variables, x, method="encode"))
    out, _ = apply(model, flatten(variables), x, method="encoder")
    assert same(out, model.apply(variables, x, method=lambda m, x: m.encoder(x)))
    with pytest.raises(br.FieldError, match=r"has no method 'encod'\. Did you mean 'encode'"):
        apply(model, flatten(variables), x, method="encod")


def test_apply_says_what_is_wrong():
    model = models.ConvNet()
    state = flatten(variables_of(model, IMAGES))
    with pytest.raises(br.SeedError, match="random stream 'dropout', and rngs= has none"):
        apply(model, state, IMAGES, train=True)
    with pytest.raises(
        br.PermissionsError, match="modifies the collection 'batch_stats', and mutable=False was passed"
    ):
        apply(model, state, IMAGES, train=True, rngs=KEY, mutable=False)
    with pytest.raises(br.MissingEntryError, match=r"missing 'params/Dense_0/kernel' \(float32\[4,3\]\)"):
        apply(model, {k: v for k, v in state.items() if k != "params/Dense_0/kernel"}, IMAGES)


def test_apply_records_what_is_sown():
    model, x = models.Sower(), inputs(2, 3)
    variables = {"params": variables_of(model, x)["params"]}
    _, after = apply(model, flatten(variables), x)
    native = model.apply(variables, x, mutable=["intermediates", "losses"])[1]
    assert same(unflatten(after, {**variables, **native}), {**variables, **native})
    assert after.kind("losses/l2") == br.Intermediate(collection="losses")
    _, again = apply(model, after, x)
    assert same(again, after)


def test_an_integer_stands_for_its_key():
    model, x = models.ConvNet(), IMAGES
    native = model.init({"params": jax.random.key(3), "dropout": jax.random.key(4)}, x, train=True)
    assert same(unflatten(init(model, {"params": 3, "dropout": 4}, x, train=True)), native)
    state = init(model, 3, x)
    assert same(unflatten(state), model.init(jax.random.key(3), x))
    out, _ = apply(model, state, x, train=True, rngs={"dropout": 4})
    want, _ = apply(model, state, x, train=True, rngs={"dropout": jax.random.key(4)})
    np.testing.assert_array_equal(out, want)


def test_all_that_is_wrong_is_listed_at_once():
    state = {"params/kernel": np.ones((2, 4)), "params/bais": np.ones(3)}
    with pytest.raises(br.EntryShapeError, match="params/kernel") as err:
        apply(nn.Dense(3), state, np.ones((1, 2), np.float32))
    assert "missing 'params/bias' (float32[3])" in str(err.value)
    assert "Did you mean 'params/bais'?" in str(err.value) and "unexpected 'params/bais'" in str(err.value)


def test_layers_of_lifted_and_derived_classes_are_those_of_flax():
    class Mine(nn.Dense):
        pass

    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.remat(nn.Dense)(3)(Mine(4)(nn.jit(nn.Dense)(5)(x)))

    layers = spec(Own(), np.ones((2, 6), np.float32)).layers
    assert {path: layer.type for path, layer in layers.items() if path} == {
        "JitDense_0": "linen.Dense",
        "Mine_0": "linen.Dense",
        "CheckpointDense_0": "linen.Dense",
    }
    assert layers[""].type.endswith("Own") and not layers[""].type.startswith("linen.")
