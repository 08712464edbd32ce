"""flatten and unflatten: every variable tree that Linen makes comes back bit for bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict, freeze
from hypothesis import given
from hypothesis import strategies as st

import bridges as br
from bridges.linen_adapter import flatten, spec, unflatten
from tests.linen import models
from tests.linen.models import inputs, same, variables_of

KEY = jax.random.key(0)
MODELS = {
    "mlp": (models.MLP(), inputs(2, 4)),
    "convnet": (models.ConvNet(), inputs(2, 4, 4, 3)),
    "resnet": (models.ResNet(), inputs(2, 4, 4, 3)),
    "transformer": (models.Transformer(), jnp.ones((2, 3), jnp.int32)),
    "partitioned": (models.Partitioned(), inputs(2, 3)),
    "logically": (models.Partitioned(nn.with_logical_partitioning), inputs(2, 3)),
    "t5x": (models.T5X(), inputs(2, 3)),
    "tuples": (models.TupleCache(), inputs(2, 3)),
    "spectral": (nn.SpectralNorm(nn.Dense(3)), inputs(2, 3)),
    "stacked": (models.Stacked(), inputs(2, 3)),
    "lora": (models.Lora(), inputs(2, 3)),
    "reserved": (models.ReservedNames(), inputs(2, 3)),
    "decoder": (models.Decoder(), inputs(2, 5, 4)),
}


def made(name):
    model, x = MODELS[name]
    kwargs = {"update_stats": True} if name == "spectral" else {}
    return model, x, kwargs, variables_of(model, x, **kwargs)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("frozen", [False, True])
def test_round_trip_with_like_is_exact(name, frozen):
    _, _, _, variables = made(name)
    variables = freeze(variables) if frozen else variables
    state = flatten(variables)
    assert same(unflatten(state, variables), variables)
    assert type(unflatten(state, variables)) is type(variables)
    assert all(isinstance(path, str) for path in state)


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_with_a_spec_is_exact(name):
    model, x, kwargs, variables = made(name)
    assert same(unflatten(flatten(variables), spec(model, x, **kwargs)), variables)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "tuples"])
def test_round_trip_without_like_needs_only_kinds(name):
    _, _, _, variables = made(name)
    assert same(unflatten(flatten(variables)), variables)


def test_kinds_follow_collections():
    leaf = np.ones(2, np.float32)
    state = flatten({c: {"w": leaf} for c in ("params", "batch_stats", "cache", "intermediates", "mine", "a/b")})
    assert state.kind("params/w") is br.Param
    assert state.kind("batch_stats/w") is br.BatchStat
    assert state.kind("cache/w") is br.Cache
    assert state.kind("intermediates/w") is br.Intermediate
    assert state.kind("mine/w") == br.Variable(collection="mine")
    assert state.kind("a%2Fb/w") == br.Variable(collection="a/b")


def test_peers_traverse_util_collision_is_none():
    variables = {"params": {"a/b": {"w": np.ones(1)}, "a": {"b": {"w": np.zeros(1)}}}}
    state = flatten(variables)
    assert list(state) == ["params/a%2Fb/w", "params/a/b/w"]
    assert same(unflatten(state), variables)


def test_peers_digits_as_dict_keys():
    variables = {"params": {"h": {"0": {"attn": np.ones(2)}, "10": {"attn": np.zeros(2)}}}}
    assert same(unflatten(flatten(variables)), variables)
    integers = {"params": {"h": {0: {"attn": np.ones(2)}, 10: {"attn": np.zeros(2)}}}}
    assert same(unflatten(flatten(integers), integers), integers)
    assert same(unflatten(flatten(variables), integers), integers)


def test_peers_partition_metadata_is_kept_beside_the_array():
    _, _, _, variables = made("partitioned")
    state = flatten(variables)
    assert list(state) == ["params/Dense_0/bias", "params/Dense_0/kernel"]
    assert state["params/Dense_0/kernel"].shape == (3, 4)
    box = state.kind("params/Dense_0/kernel").metadata["box"]
    assert box.names == ("in", "out") and box.value is None
    assert isinstance(unflatten(state)["params"]["Dense_0"]["kernel"], nn.Partitioned)


def test_logical_boxes_with_other_names_are_other_kinds():
    """nn.LogicallyPartitioned compares by its value alone (flax 0.12.8): empty boxes of any names would be equal."""
    one, two = (
        flatten({"params": {"w": nn.LogicallyPartitioned(np.ones(2), names=(name,))}}) for name in ("embed", "mlp")
    )
    assert nn.LogicallyPartitioned(None, ("embed",)) == nn.LogicallyPartitioned(None, ("mlp",))
    assert one.kind("params/w") != two.kind("params/w")
    assert jax.tree.structure(one) != jax.tree.structure(two)
    same_again = flatten({"params": {"w": nn.LogicallyPartitioned(np.ones(2), names=("mlp",))}})
    assert jax.tree.structure(same_again) == jax.tree.structure(two)
    assert hash(same_again.kind("params/w")) == hash(two.kind("params/w"))


def test_boxes_of_any_class_and_boxes_in_boxes():
    variables = {
        "params": {
            "own": models.CustomBox(np.ones(2), "note"),
            "nested": nn.Partitioned(models.CustomBox(np.ones(3), "in"), names=("x",)),
            "listed": nn.Partitioned(np.ones(3), names=["x", None]),
        }
    }
    state = flatten(variables)
    assert sorted(state) == ["params/listed", "params/nested", "params/own"]
    assert state["params/nested"].shape == (3,)
    assert same(unflatten(state), variables)
    jax.jit(lambda s: s)(state)


def test_peers_axis_metadata_leaves_beside_arrays():
    _, _, _, variables = made("t5x")
    assert jax.tree.leaves(variables["params_axes"]) == []
    state = flatten(variables)
    kind = state.kind("params_axes/kernel_axes")
    assert kind.metadata["node"].names == ("embed", "mlp")
    assert state["params_axes/kernel_axes"].size == 0
    assert same(unflatten(state), variables)
    assert unflatten(state)["params_axes"]["kernel_axes"] == variables["params_axes"]["kernel_axes"]
    # A checkpoint that has only the arrays fills a structure that also has the metadata.
    assert same(unflatten({"params/kernel": variables["params"]["kernel"]}, variables), variables)


def test_empty_collections_and_none_come_back_with_like():
    variables = {"params": {"drop": {}}, "state": FrozenDict({"a": None, "b": np.ones(1)})}
    state = flatten(variables)
    assert list(state) == ["state/b"]
    assert same(unflatten(state, variables), variables)


def test_unflatten_is_strict():
    _, _, _, variables = made("mlp")
    state = flatten(variables)
    state["params/Dense_0/kernal"] = state.pop("params/Dense_0/kernel")
    with pytest.raises(
        br.StructureError, match=r"missing 'params/Dense_0/kernel'. Did you mean 'params/Dense_0/kernal'"
    ):
        unflatten(state, variables)


def test_unflatten_checks_shapes_inside_of_boxes():
    _, _, _, variables = made("partitioned")
    state = flatten(variables)
    state["params/Dense_0/kernel"] = np.ones((4, 3), np.float32)
    with pytest.raises(br.EntryShapeError, match=r"'params/Dense_0/kernel': got float32\[4,3\], wanted float32\[3,4\]"):
        unflatten(state, variables)


def test_flatten_refuses_what_is_no_mapping():
    with pytest.raises(br.StructureError, match="dictionary of collections, got list"):
        flatten([1])


def test_flatten_takes_abstract_arrays():
    model, x, _, variables = made("partitioned")
    state = flatten(jax.eval_shape(model.init, KEY, x))
    assert state["params/Dense_0/kernel"] == jax.ShapeDtypeStruct((3, 4), jnp.float32)
    assert state.kinds == flatten(variables).kinds


def test_arrays_are_handed_on_as_they_are():
    array = np.asfortranarray(np.ones((2, 3), np.float64))
    state = flatten({"params": {"w": array, "b": jnp.ones(2, jnp.bfloat16)}})
    assert state["params/w"] is array
    assert unflatten(state)["params"]["w"] is array
    assert state["params/b"].dtype == jnp.bfloat16


names = st.text(st.characters(codec="utf-8"), max_size=4)
arrays = st.builds(lambda n: np.arange(n, dtype=np.float32), st.integers(0, 3))
boxed = arrays.map(lambda a: nn.Partitioned(a, names=("x",)))
trees = st.recursive(
    arrays | boxed,
    lambda inner: (
        st.dictionaries(names, inner, min_size=1, max_size=3)
        | st.dictionaries(names, inner, max_size=3).map(FrozenDict)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers(0, 20), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(names, st.dictionaries(names, trees, max_size=3), max_size=3))
def test_round_trip_property(variables):
    assert same(unflatten(flatten(variables), variables), variables)


def nested(inner):
    return st.dictionaries(names, inner, min_size=1, max_size=3)


@given(nested(st.recursive(arrays | boxed, nested, max_leaves=8)))
def test_round_trip_property_without_like(variables):
    variables = {"params": variables}
    assert same(unflatten(flatten(variables)), variables)
