"""spec, init and apply of Haiku models, against Haiku."""

from __future__ import annotations

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridges import haiku_adapter as ha
from bridges.core import EntryShapeError, FieldError, MissingEntryError, SeedError, StructureError, UnsupportedError


def same(a, b):
    """Whether two trees of arrays are equal bit for bit."""
    la, ta = jax.tree.flatten(dict(a))
    lb, tb = jax.tree.flatten(dict(b))
    return ta == tb and all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(la, lb, strict=True)
    )


def randomise(flat, seed=0):
    """Returns the state with every floating entry random and positive."""
    new = flat.copy()
    for i, (path, value) in enumerate(flat.items()):
        if jnp.issubdtype(value.dtype, jnp.floating):
            new[path] = jax.random.uniform(jax.random.key(seed + i), value.shape, value.dtype, 0.5, 1.5)
    return new


def net(x, is_training=True):
    x = hk.Conv2D(4, 3)(x)
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training))
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.5, x)
    return hk.nets.MLP([8, 3])(hk.Flatten()(x))


X = jax.random.normal(jax.random.key(7), (2, 6, 6, 3))
MODELS = {
    "function": (net, hk.transform_with_state(net)),
    "transformed": (hk.transform_with_state(net), hk.transform_with_state(net)),
    "transformed by hand": (
        hk.TransformedWithState(*map(lambda f: lambda *a, **k: f(*a, **k), hk.transform_with_state(net))),
        hk.transform_with_state(net),
    ),
}


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("key", [3, jax.random.PRNGKey(3), jax.random.key(3)], ids=["int", "old", "typed"])
def test_init_gives_exactly_the_native_values(which, key):
    model, native = MODELS[which]
    assert same(ha.init(model, key, X), ha.flatten(*native.init(key, X)))


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("is_training", [True, False])
def test_apply_is_the_native_apply(which, is_training):
    model, native = MODELS[which]
    state = randomise(ha.init(model, 0, X))
    key = jax.random.key(1) if is_training else None
    out, new = ha.apply(model, state, X, is_training, rngs=key)
    want, want_state = native.apply(*ha.unflatten(state), key, X, is_training)
    assert same({"": out}, {"": want})
    assert same(new, ha.flatten(ha.unflatten(state)[0], want_state))
    assert new.kinds == state.kinds


def test_gradients_and_the_next_training_step():
    native = hk.transform_with_state(net)
    state = randomise(ha.init(net, 0, X))
    params, rest = state.filter("params"), state.filter("state")

    def mine(params):
        out, new = ha.apply(net, params | rest, X, rngs=jax.random.key(5))
        return (out**2).sum(), new.filter("state")

    def theirs(params):
        out, new = native.apply(params, ha.unflatten(rest)[1], jax.random.key(5), X)
        return (out**2).sum(), new

    grads, new = jax.grad(mine, has_aux=True)(params)
    want, want_new = jax.grad(theirs, has_aux=True)(ha.unflatten(params)[0])
    assert same(grads, ha.flatten(want))
    assert same(new, ha.flatten({}, want_new))


def test_module_class_and_partial_and_methods():
    class Auto(hk.Module):
        def __init__(self, size, name=None):
            super().__init__(name)
            self.out = hk.Linear(size)

        def encode(self, x):
            return hk.Linear(2)(x)

        def __call__(self, x):
            return self.out(self.encode(x))

    x = jnp.ones((2, 3))
    model = functools.partial(Auto, 3)
    native = hk.transform(lambda x: Auto(3)(x))
    state = ha.init(model, 0, x)
    assert same(state, ha.flatten(native.init(0, x)))
    out, _ = ha.apply(model, state, x, method="encode")
    assert same({"": out}, {"": hk.transform(lambda x: Auto(3).encode(x)).apply(ha.unflatten(state)[0], None, x)})
    assert list(ha.spec(model, x, method="encode").entries) == [
        "params/auto/~encode/linear/b",
        "params/auto/~encode/linear/w",
    ]
    with pytest.raises(FieldError, match=r"no method 'encoed'.*Did you mean 'encode'"):
        ha.apply(model, state, x, method="encoed")


def multi():
    encoder, decoder = hk.Linear(2, name="encoder"), hk.Linear(3, name="decoder")
    return lambda x: decoder(encoder(x)), {"encode": encoder, "decode": decoder}


@pytest.mark.parametrize("with_state", [True, False])
def test_multi_transform(with_state):
    native = (hk.multi_transform_with_state if with_state else hk.multi_transform)(multi)
    x = jnp.ones((1, 3))
    state = ha.init(native, 0, x)
    params = native.init(0, x)
    assert same(state, ha.flatten(*params) if with_state else ha.flatten(params))
    assert list(ha.spec(native, x).entries) == list(state)
    out, new = ha.apply(native, state, x, method="encode")
    want = native.apply["encode"](*params, None, x)[0] if with_state else native.apply["encode"](params, None, x)
    assert same({"": out}, {"": want})
    assert same(new, state)
    with pytest.raises(FieldError, match="'decode', 'encode'"):
        ha.apply(native, state, x)


def test_without_apply_rng():
    for transform in (hk.transform, hk.transform_with_state):
        model = hk.without_apply_rng(transform(lambda x: hk.Linear(2)(x)))
        state = ha.init(model, 0, X)
        assert ha.apply(model, state, X)[0].shape == (2, 6, 6, 2)
    for transform in (hk.multi_transform, hk.multi_transform_with_state):
        model = hk.without_apply_rng(transform(multi))
        state = ha.init(model, 0, X)
        assert ha.apply(model, state, X, method="encode")[0].shape == (2, 6, 6, 2)
        assert ha.apply(model, state, X, method="encode", rngs=0)[0].shape == (2, 6, 6, 2)


def test_without_apply_rng_of_a_function_whose_first_argument_is_called_rng():
    model = hk.without_apply_rng(hk.transform(lambda rng: hk.Linear(2)(rng)))
    assert ha.apply(model, ha.init(model, 0, X), X)[0].shape == (2, 6, 6, 2)


# spec ------------------------------------------------------------------------------------------------------------------


def forbidden(shape, dtype):
    raise AssertionError("An initialiser was traced.")


def test_spec_traces_no_initialiser_needs_no_seed_and_allocates_nothing():
    def f(x):
        x = hk.Linear(1 << 20, w_init=forbidden, b_init=forbidden)(x)
        return hk.dropout(hk.next_rng_key(), 0.5, x)

    before = len(jax.live_arrays())
    spec = ha.spec(f, jax.ShapeDtypeStruct((1, 1 << 20), jnp.bfloat16))
    assert len(jax.live_arrays()) == before
    assert spec.entries["params/linear/w"] == jax.ShapeDtypeStruct((1 << 20, 1 << 20), jnp.bfloat16)
    assert spec.framework == "haiku"


@pytest.mark.parametrize("is_training", [True, False])
def test_spec_of_batch_norm_in_either_mode(is_training):
    for call in (
        lambda x: hk.BatchNorm(True, True, 0.9)(x, is_training),
        lambda x: hk.BatchNorm(True, True, 0.9)(x, is_training=is_training),
    ):
        spec = ha.spec(call, X)
        assert [*spec.native[1]] == ["batch_norm/~/mean_ema", "batch_norm/~/var_ema"]
        assert len(spec.entries) == 8


def test_spec_is_the_structure_of_init():
    def f(x, n):
        x = hk.nets.ResNet18(n)(x, is_training=True)
        carry = hk.get_state("carry", (), init=lambda *_: (jnp.zeros(3), {"a": jnp.ones(2, jnp.int32)}))
        hk.set_state("carry", carry)
        return x

    spec, native = ha.spec(f, X, 5), jax.eval_shape(lambda: hk.transform_with_state(f).init(0, X, 5))
    assert jax.tree.structure(spec.native) == jax.tree.structure(native)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), native)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), spec.native) == shapes
    assert [*spec.entries] == [*ha.flatten(*native)]


def test_layers_carry_hyperparameters():
    def f(x):
        x = hk.Conv2D(4, (3, 5), padding=hk.pad.same, mask=np.ones((3, 5, 3, 4)), w_init=hk.initializers.Constant(1.0))(
            x
        )
        x = hk.BatchNorm(True, False, 0.99, eps=1e-3)(x, True)
        return hk.LayerNorm(-1, True, True)(
            hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling(), model_size=3)(x, x, x)
        )

    layers = ha.spec(f, X).layers
    conv = layers["conv2_d"]
    assert conv.type == "haiku.Conv2D"
    assert conv.hyperparameters["kernel_shape"] == (3, 5)
    assert conv.hyperparameters["mask"].shape == (3, 5, 3, 4)
    assert "w_init" not in conv.hyperparameters
    bn = layers["batch_norm"].hyperparameters
    assert (bn["eps"], bn["decay_rate"], bn["create_offset"], bn["data_format"]) == (1e-3, 0.99, False, "channels_last")
    assert layers["batch_norm/~/mean_ema"].hyperparameters["decay"] == 0.99
    assert layers["layer_norm"].hyperparameters["eps"] == 1e-5
    attention = layers["multi_head_attention"].hyperparameters
    assert (attention["num_heads"], attention["key_size"], attention["model_size"]) == (2, 4, 3)


def test_layers_of_user_classes_and_inside_layer_stack():
    class Mine(hk.Module):
        def __call__(self, x):
            return hk.Linear(x.shape[-1])(x)

    class Thinner(hk.Linear):
        pass

    def f(x):
        return Thinner(2)(hk.layer_stack(3)(lambda x: Mine()(x))(x))

    spec = ha.spec(f, X)
    assert spec.layers["__layer_stack_no_per_layer/mine/linear"].type == "haiku.Linear"
    assert spec.layers["__layer_stack_no_per_layer/mine"].type.endswith("Mine")
    assert spec.layers["thinner"].type == "haiku.Linear"
    assert {path.rsplit("/", 1)[0] for path in spec.entries} <= {f"params/{path}" for path in spec.layers}


# errors ----------------------------------------------------------------------------------------------------------------


def test_missing_misshapen_and_unknown_variables():
    f = lambda x: hk.Linear(3)(x)  # noqa: E731
    state = ha.init(f, 0, X)
    with pytest.raises(MissingEntryError, match=r"missing 'params/linear/w' \(float32\[3,3\]\)"):
        ha.apply(f, {"params/linear/b": state["params/linear/b"]}, X)
    with pytest.raises(EntryShapeError, match=r"'params/linear/b' is float32\[4\] and must be float32\[3\]"):
        ha.apply(f, state | {"params/linear/b": jnp.ones(4)}, X)
    with pytest.raises(StructureError, match=r"unexpected 'params/linear/bias'"):
        ha.apply(f, state | {"params/linear/bias": jnp.ones(4)}, X)
    with pytest.raises(StructureError, match=r"unexpected 'batch_stats/x'"):
        ha.apply(f, state | {"batch_stats/x": jnp.ones(4)}, X)


def test_a_seed_is_asked_for_only_when_one_is_drawn():
    f = lambda x, drop: hk.dropout(hk.next_rng_key(), 0.5, hk.Linear(3)(x)) if drop else hk.Linear(3)(x)  # noqa: E731
    with pytest.raises(SeedError, match="no seed was given"):
        ha.init(f, None, X, False)
    state = ha.init(f, {"params": 0}, X, True)
    ha.apply(f, state, X, False)
    with pytest.raises(SeedError, match="no seed was given") as caught:
        ha.apply(f, state, X, True)
    assert "PRNGKey" in str(caught.value.__cause__)
    same_key = [
        ha.apply(f, state, X, True, rngs=r)[0] for r in (1, {"default": 1}, {"dropout": 1}, {"params": 0, "dropout": 1})
    ]
    assert all((out == same_key[0]).all() for out in same_key)
    with pytest.raises(SeedError, match="no random stream 'default'"):
        ha.apply(f, state, X, True, rngs={"dropout": 1, "noise": 2})
    assert ha.init(lambda: hk.get_parameter("w", [], init=jnp.zeros), None)["params/~/w"] == 0


def test_what_is_no_haiku_model():
    with pytest.raises(UnsupportedError, match="compiled"):
        ha.spec(jax.jit(lambda x: x), X)
    with pytest.raises(UnsupportedError, match="no Haiku model"):
        ha.spec(3, X)
    with pytest.raises(UnsupportedError, match="no Haiku model"):
        ha.spec(dict, X)
    inside = []
    hk.transform(lambda: inside.append(hk.Linear(3))).init(None)
    with pytest.raises(UnsupportedError, match="lives only inside"):
        ha.spec(inside[0], X)


def test_a_stream_that_nobody_draws_from_is_not_missed():
    x = jnp.ones((2, 3))
    net = functools.partial(hk.nets.MLP, [4, 2])
    flat = ha.init(net, 0, x)
    want, _ = ha.apply(net, flat, x)
    for rngs in ({}, {"dropout": 0, "noise": 1}, {"params": jax.random.key(0)}):
        np.testing.assert_array_equal(ha.apply(net, flat, x, rngs=rngs)[0], want)
    draws = hk.transform(lambda x: x + jax.random.normal(hk.next_rng_key(), x.shape))
    with pytest.raises(SeedError, match="no random stream 'default' among"):
        ha.apply(draws, {}, x, rngs={"dropout": 0, "noise": 1})
    with pytest.raises(SeedError):
        ha.apply(draws, {}, x, rngs={})


def test_functions_of_a_multi_transform_by_number():
    def make():
        layer = hk.Linear(3)
        return layer, (layer, lambda x: -layer(x))

    x = jnp.ones((2, 2))
    multi = hk.multi_transform(make)
    flat = ha.init(multi, 0, x)
    np.testing.assert_array_equal(ha.apply(multi, flat, x, method=1)[0], -ha.apply(multi, flat, x, method="0")[0])
    assert ha.spec(multi, x, method=1).entries.keys() == flat.keys() == ha.init(multi, 0, x, method=1).keys()
