"""spec, init and apply: nothing allocated, exactly the native values, strict, and the instance is never changed."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bridges as br
from bridges.nnx_adapter import apply, flatten, init, spec
from tests.nnx_side import models
from tests.nnx_side.models import equal, inputs, randomised, same


def listed(state):
    return {path: (value.shape, value.dtype) for path, value in state.items()}


# spec ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [models.MLP, models.ConvNet, models.Transformer, models.Odd], ids=lambda m: m.__name__
)
def test_spec_of_a_class_a_factory_and_an_instance_agree(model):
    instance = model(rngs=nnx.Rngs(0))
    want = spec(instance)
    for other in (model, lambda rngs: model(rngs=rngs), lambda: model(rngs=nnx.Rngs(0)), functools.partial(model)):
        found = spec(other)
        assert listed(found.entries) == listed(want.entries) == listed(flatten(instance))
        assert found.entries.kinds == want.entries.kinds
        assert found.layers == want.layers
        assert found.framework == "nnx"
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((want.native, found.native)))


def test_spec_allocates_nothing():
    s = spec(nnx.Linear, 10**6, 10**6)
    assert s.entries["params/kernel"].shape == (10**6, 10**6)


def test_spec_lets_inputs_pass_as_the_other_adapters_take_them():
    x = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    assert listed(spec(models.MLP, x).entries) == listed(spec(models.MLP).entries)
    assert listed(spec(models.MLP(rngs=nnx.Rngs(0)), x).entries) == listed(spec(models.MLP).entries)
    assert spec(models.MLP, (4, 2)).entries["params/layers/0/kernel"].shape == (4, 2)
    assert spec(models.MLP, sizes=(4, 2)).entries["params/layers/0/kernel"].shape == (4, 2)


def test_layers_and_their_hyperparameters():
    layers = spec(models.ConvNet).layers
    assert list(layers) == ["", "conv", "drop", "head", "norm"]
    assert layers[""] == br.Layer("tests.nnx_side.models.ConvNet", {})
    assert layers["norm"].type == "nnx.BatchNorm" and layers["conv"].type == "nnx.Conv"
    wanted = {"epsilon": 1e-5, "momentum": 0.99, "use_running_average": False, "param_dtype": "float32", "dtype": None}
    assert wanted.items() <= layers["norm"].hyperparameters.items()
    assert {"kernel_size": (3, 3), "padding": "SAME"}.items() <= layers["conv"].hyperparameters.items()
    assert spec(models.Transformer).layers["layers/1/attention/query"].type == "nnx.LinearGeneral"


def test_a_class_that_hands_its_keywords_on_is_given_rngs():
    class Wide(models.MLP):
        def __init__(self, **kwargs):
            super().__init__((4, 64, 3), **kwargs)

    assert spec(Wide).entries["params/layers/0/kernel"].shape == (4, 64)


@pytest.mark.parametrize("wrong", [3, "net", lambda: 3, lambda rngs: rngs.params()], ids=range(4))
def test_what_gives_no_module_is_refused(wrong):
    with pytest.raises(br.FieldError, match="a module class, an instance, or a function"):
        spec(wrong)


# init ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [models.MLP, models.ConvNet, models.Transformer, models.Odd], ids=lambda m: m.__name__
)
@pytest.mark.parametrize("rngs", [7, {"params": 1, "default": 2, "dropout": 3}], ids=["seed", "streams"])
def test_init_gives_the_native_values(model, rngs):
    native = flatten(model(rngs=nnx.Rngs(rngs) if isinstance(rngs, int) else nnx.Rngs(**rngs)))
    ours = nnx.Rngs(rngs) if isinstance(rngs, int) else nnx.Rngs(**rngs)
    for given in (rngs, ours, ours):
        assert same(init(model, given), native)  # Twice with the same Rngs: they are not advanced.


def test_init_passes_arguments_on():
    assert same(init(nnx.Linear, 0, 2, 3, use_bias=False), flatten(nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))))
    assert same(
        init(nnx.Linear, jax.random.key(0), 2, 3), init(functools.partial(nnx.Linear, 2, 3), 0, jnp.ones((1, 2)))
    )


def test_init_without_a_stream_that_is_drawn_from():
    with pytest.raises(br.SeedError, match=r"rngs is None"):
        init(models.MLP, None)
    with pytest.raises(br.SeedError, match=r"(?s)'params'.*streams given are \['dropout'\]"):
        init(models.MLP, {"dropout": 0})


# apply ---------------------------------------------------------------------------------------------------------------


def test_apply_computes_and_returns_what_native_does():
    module = randomised(models.ConvNet(rngs=nnx.Rngs(0)))
    before, x = flatten(module), inputs(2, 6, 6, 3)
    native = nnx.clone(module)
    want = native(x)
    for model in (module, models.ConvNet):
        out, after = apply(model, before, x)
        assert equal(out, want) and same(after, flatten(native))
        out, after = apply(model, dict(before), x)
        assert equal(out, want) and same(after, flatten(native))
    assert same(flatten(module), before)
    assert equal(module(x), want)  # Of another trace, if apply had changed it.


def test_apply_of_an_evaluating_instance_changes_nothing():
    module = randomised(models.ConvNet(rngs=nnx.Rngs(0)))
    module.eval()
    x, state = inputs(2, 6, 6, 3), flatten(module)
    out, after = apply(module, state, x)
    assert equal(out, module(x)) and all(after[path] is state[path] for path in state)


def test_apply_under_jit_and_grad():
    module, x = randomised(models.ConvNet(rngs=nnx.Rngs(0))), inputs(2, 6, 6, 3)
    state = flatten(module)
    params, rest = state.partition(br.Param, ...)

    def loss(params, x):
        out, after = apply(module, params | rest, x)
        return (out**2).mean(), after

    (value, after), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, x)

    @nnx.jit
    def native(module, x):
        return nnx.value_and_grad(lambda module: (module(x) ** 2).mean())(module)

    want, native_grads = native(module, x)
    # The same instructions, perhaps in another order inside of a fusion: equal up to the rounding of float32 sums.
    np.testing.assert_allclose(value, want, rtol=1e-6)
    for path, value in {**flatten(native_grads), **flatten(module).filter(br.BatchStat)}.items():
        np.testing.assert_allclose(after[path] if path in rest else grads[path], value, rtol=1e-5, atol=1e-5)


def test_methods():
    module, x = randomised(models.AutoEncoder(rngs=nnx.Rngs(0))), inputs(2, 4)
    state = flatten(module)
    want = module.encode(x)
    for method in ("encode", models.AutoEncoder.encode, module.encode, lambda m, x: m.encode(x)):
        assert equal(apply(module, state, x, method=method)[0], want)
    assert equal(apply(module, state, x, method="encoder")[0], module.encoder(x))
    with pytest.raises(br.FieldError, match=r"no method 'encod'. Did you mean 'encode'"):
        apply(module, state, x, method="encod")
    mlp = models.MLP(rngs=nnx.Rngs(0))
    assert equal(apply(mlp, flatten(mlp), x, method="layers.0")[0], mlp.layers[0](x))


def test_streams_for_one_call():
    module, x = models.ConvNet(rngs=nnx.Rngs(0, dropout=1)), inputs(2, 6, 6, 3)
    state = flatten(module)
    one, after = apply(module, state, x, rngs={"dropout": jax.random.key(5)})
    two, _ = apply(module, state, x, rngs=nnx.Rngs(dropout=5))
    other, _ = apply(module, state, x)
    assert equal(one, two) and not equal(one, other)
    assert after["RngCount/drop/rngs/count"] == 1
    native = nnx.clone(module)
    nnx.reseed(native, dropout=5)
    assert equal(native(x), one)
    attention = nnx.MultiHeadAttention(2, 4, dropout_rate=0.5, decode=False, deterministic=False, rngs=nnx.Rngs(0))
    x, state = inputs(2, 3, 4), flatten(attention)
    assert equal(apply(attention, state, x, rngs=7)[0], attention(x, rngs=nnx.Rngs(7)))


def test_missing_unknown_and_misshapen_entries():
    module, x = models.MLP(rngs=nnx.Rngs(0)), inputs(2, 4)
    state = flatten(module)
    bad = {**state, "params/layers/0/kernal": state["params/layers/0/kernel"]}
    with pytest.raises(br.StructureError, match="unexpected 'params/layers/0/kernal'"):
        apply(module, bad, x)
    del bad["params/layers/0/kernel"]
    with pytest.raises(
        br.MissingEntryError, match=r"(?s)missing 'params/layers/0/kernel'.*Did you mean 'params/layers/0/kernal'"
    ):
        apply(module, bad, x)
    with pytest.raises(br.MissingEntryError):
        apply(module, {}, x)
    bad = {**state, "params/layers/2/bias": jnp.ones(5), "params/layers/0/kernel": jnp.ones((4, 1))}
    with pytest.raises(br.EntryShapeError) as err:
        apply(module, bad, x)
    assert "'params/layers/2/bias': got float32[5], wanted float32[3]" in str(err.value)
    assert "'params/layers/0/kernel': got float32[4,1], wanted float32[4,8]" in str(err.value)


def test_raw_key_data_is_not_a_key():
    module, x = models.ConvNet(rngs=nnx.Rngs(0)), inputs(2, 6, 6, 3)
    state = flatten(module)
    path = "RngKey/drop/rngs/key"
    with pytest.raises(br.EntryShapeError, match="wrap_key_data"):
        apply(module, {**state, path: jax.random.key_data(state[path])}, x)


def test_intermediates_come_anew_at_every_call():
    module, x = models.Sower(rngs=nnx.Rngs(0)), inputs(2, 3)
    state = flatten(module)
    y, one = apply(module, state, x)
    _, two = apply(module, one, x)
    assert same(one, two)
    assert [p for p in one if p not in state] == [f"intermediates/{p}" for p in ("h/0", "h/1", "l2", "last")]
    assert equal(one["intermediates/last"], y) and equal(one["intermediates/h/1"], y)
    assert one.filter(br.Intermediate).keys() == {p for p in one if p not in state}


def test_a_variable_that_a_call_creates_must_be_created_first():
    class Lazy(nnx.Module):
        def __call__(self, x):
            if not hasattr(self, "count"):
                self.count = models.Count(jnp.zeros((), jnp.int32))
            self.count[...] += 1
            return x

    with pytest.raises(br.CreateError, match="Count/count"):
        apply(Lazy(), {}, jnp.ones(1))
    _, state = apply(Lazy(), {"Count/count": np.int32(4)}, jnp.ones(1))
    assert state["Count/count"] == 5


def test_changes_that_a_state_cannot_hold_are_refused():
    class Static(nnx.Module):
        def __init__(self, *, rngs):
            self.dense, self.calls = nnx.Linear(2, 2, rngs=rngs), 0

        def __call__(self, x):
            self.calls += 1
            return self.dense(x)

        def forget(self):
            del self.dense.bias

    module = Static(rngs=nnx.Rngs(0))
    with pytest.raises(br.UnsupportedError, match="calls: 0 -> 1"):
        apply(module, flatten(module), jnp.ones((1, 2)))
    with pytest.raises(br.UnsupportedError, match="'params/dense/bias': it is gone"):
        apply(module, flatten(module), method="forget")
    assert module.calls == 0


def test_layers_of_derived_classes_are_those_of_flax():
    class Mine(nnx.Linear):
        pass

    class Own(nnx.Module):
        def __init__(self, *, rngs):
            self.mine = Mine(3, 4, rngs=rngs)

    layers = spec(lambda: Own(rngs=nnx.Rngs(0))).layers
    assert layers["mine"].type == "nnx.Linear"
    assert layers[""].type.endswith("Own") and not layers[""].type.startswith("nnx.")
