"""Any model as a function of flat values, in evaluation: one call for all kinds, dropout inactive, every leaf random."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bridges as br
from bridges._infer._end import End, taken
from bridges._infer._function import Function
from bridges.core._errors import FieldError, StructureError, UnsupportedError

X = np.zeros((2, 6, 6, 3), np.float32)  # zeros would hide everything: they are replaced


def haiku_net(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(x), is_training)
    x = hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x
    return hk.Linear(3)(x.mean((1, 2)))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(not train)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(3)(nn.Dropout(0.5)(x, deterministic=not train).mean((1, 2)))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.norm = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.drop, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(self.norm(self.conv(x))).mean((1, 2)))


class CoreNet(br.Module):
    def __init__(self):
        self.body, self.head = br.HaikuModule(hk.nets.MLP, [4, 3]), br.FlaxModule(nn.Dense, 3)

    def __call__(self, x):
        return self.head(self.body(x.mean((1, 2))))


def equinox_net():
    return eqx.nn.MLP(3, 3, 8, 2, key=jax.random.key(0))


MODELS = {
    "haiku function": haiku_net,
    "haiku transformed": hk.transform_with_state(haiku_net),
    "linen": LinenNet(),
    "linen, told by its field": nn.BatchNorm(use_running_average=None),
    "nnx class": NNXNet,
    "nnx instance": NNXNet(nnx.Rngs(0)),
    "core": CoreNet(),
    "function": Function(lambda model, x: jax.vmap(model)(x.mean((1, 2))), equinox_net()),
    "pair": (lambda p, x: x.mean((1, 2)) @ p["w"] + p["b"], {"w": np.ones((3, 2)), "b": np.ones(2)}),
}


@pytest.mark.parametrize("name", MODELS)
def test_any_model_runs_in_evaluation_on_random_values(name):
    end = End.of(MODELS[name], taken((X,)))
    values = end.values(1)
    assert values.keys() == end.spec.entries.keys() and set(end.weights) <= values.keys()
    first, again = (np.asarray(end.run(values, end.inputs.arrays)) for _ in range(2))
    assert np.array_equal(first, again) and np.ptp(first) > 0.1  # dropout is inactive, nothing is at zero
    for path in end.weights:
        if np.issubdtype(values[path].dtype, np.floating) and values[path].size > 1:
            assert np.ptp(values[path]) > 0, path
    assert all(values[path].min() > 0 for path in values if "var" in path and "mean" not in path)


def test_evaluation_reads_the_running_statistics():
    for name in ("haiku function", "linen", "nnx class"):
        end = End.of(MODELS[name], taken((X,)))
        values = end.values(1)
        mean = next(path for path in end.weights if path.endswith(("mean", "mean_ema/average")))
        moved = {**values, mean: values[mean] + 1}
        assert not np.allclose(end.run(values, end.inputs.arrays), end.run(moved, end.inputs.arrays), atol=1e-3), name


def test_one_call_serves_a_model_with_a_flag_and_one_without():
    inputs = taken((X, False), {"unknown": 3})
    for name in ("haiku function", "nnx class", "linen"):
        assert np.shape(End.of(MODELS[name], inputs).run(End.of(MODELS[name], inputs).values(), inputs.arrays)) == (
            2,
            3,
        )


def test_a_model_that_draws_is_given_a_key():
    end = End.of(lambda x: hk.Linear(2)(x) + jax.random.normal(hk.next_rng_key(), (2,)), taken((X[:, 0, 0],)))
    assert end.draws
    values = end.values()
    assert np.array_equal(end.run(values, end.inputs.arrays), end.run(values, end.inputs.arrays))


def test_inputs_are_drawn_where_they_are_shapes_or_all_the_same():
    given = np.arange(4.0, dtype=np.float32)
    tokens = np.array([5, 5], np.int32)
    arrays = taken((X, jax.ShapeDtypeStruct((3,), jnp.float32), given, tokens, 0.5, True)).arrays
    assert [np.ptp(arrays[f"0/{i}"]) > 0 for i in range(3)] == [True] * 3
    assert np.array_equal(arrays["0/2"], given) and np.array_equal(arrays["0/3"], tokens)
    assert set(arrays) == {"0/0", "0/1", "0/2", "0/3"}  # rates and flags stay settings
    zeros, ones, flag = taken((np.zeros((4, 9), np.int32), np.ones(3, np.int32), np.zeros(3, bool))).arrays.values()
    assert set(np.unique(zeros)) == {0, 1} and ones.tolist() == [1, 1, 1] and not flag.any()  # tokens, a mask, flags


def test_roots_of_entries_get_positive_values():
    end = End.of((lambda p, x: x * jnp.sqrt(p["a"]) + jnp.log(p["b"]), {"a": np.ones(3), "b": np.ones(3)}), taken((X,)))
    least = [min(end.values(positive=positive)[path].min() for path in "ab") for positive in (False, True)]
    assert least[0] < 0 < least[1]


def test_masks_and_integers_keep_their_values():
    mask = np.tril(np.ones((3, 3), np.float32))
    model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    model.mask = nnx.data(jnp.asarray(mask))
    end = End.of(model, taken((X,)))
    assert np.array_equal(end.values()["arrays/mask"], mask)
    ints = End.of(
        (lambda p, x: x[..., p["order"]] * p["w"], {"order": np.array([2, 0, 1]), "w": np.ones(3)}), taken((X,))
    )
    assert np.array_equal(ints.values()["order"], [2, 0, 1])


def test_a_function_takes_its_tree_apart_and_puts_it_together():
    model = Function(lambda m, x: jax.vmap(m)(x), equinox_net())
    state = model.flatten()
    assert "layers/0/weight" in state and all(hasattr(x, "shape") for x in state.values())
    again = model.unflatten({path: x + 1 for path, x in state.items()})
    assert np.array_equal(again.layers[0].weight, model.params.layers[0].weight + 1)
    assert again.activation is model.params.activation
    with pytest.raises(StructureError, match=r"missing 'layers/0/weight'.*Did you mean"):
        model.unflatten({"layers/0/weigth" if p == "layers/0/weight" else p: x for p, x in state.items()})
    with pytest.raises(FieldError, match="no array"):
        Function(lambda p, x: x, {})
    with pytest.raises(FieldError, match="no function"):
        Function({"w": np.ones(2)}, {"w": np.ones(2)})


def test_a_function_of_parameters_without_them_is_told_apart():
    with pytest.raises(UnsupportedError, match=r"bridges.Function\(apply, params\)"):
        End.of(lambda x: jnp.tanh(x), taken((X,)))
