"""NNX modules and states <-> entries: names, kinds, and the way back, bit for bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import bridges as br
from bridges import linen_adapter
from bridges.nnx_adapter import flatten, spec, unflatten
from tests.nnx_side import models
from tests.nnx_side.models import randomised, same

MODELS = {
    "mlp": lambda: models.MLP(rngs=nnx.Rngs(0)),
    "conv_net": lambda: models.ConvNet(rngs=nnx.Rngs(0, dropout=1)),
    "transformer": lambda: models.Transformer(12, rngs=nnx.Rngs(0)),
    "tied": lambda: models.Tied(rngs=nnx.Rngs(0)),
    "pytree": lambda: models.Counter(2, 3, rngs=nnx.Rngs(0)),
    "odd": lambda: models.Odd(rngs=nnx.Rngs(0, dropout=1)),
    "rngs": lambda: nnx.Rngs(0, dropout=1),
}


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_the_native_state(name):
    module = randomised(MODELS[name]())
    want = nnx.state(module)
    for source in (module, want):
        state = flatten(source)
        for like in (module, want):
            assert same(unflatten(state, like), want)
            assert same(unflatten(dict(state), like), want)


@pytest.mark.parametrize("name", MODELS)
def test_back_by_a_spec_restores_types_and_native_keys(name):
    module = randomised(MODELS[name]())
    assert same(unflatten(flatten(module), spec(MODELS[name])), nnx.state(module))


@pytest.mark.parametrize("name", MODELS)
def test_a_merged_module_has_the_values_of_the_entries(name):
    graphdef, _ = nnx.split(MODELS[name]())
    module = randomised(MODELS[name]())
    assert same(nnx.state(nnx.merge(graphdef, unflatten(flatten(module), module))), nnx.state(module))


LEAVES = st.builds(
    lambda make, shape, dtype: make(np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)),
    st.sampled_from([nnx.Param, nnx.BatchStat, nnx.Cache, models.Count, lambda x: x]),
    st.sampled_from([(), (2,), (2, 3), (0,)]),
    st.sampled_from([np.float32, np.int32, jnp.bfloat16]),
)
KEY = st.one_of(st.text(max_size=3), st.text("a/%", max_size=3))
STATES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(KEY, inner, min_size=1, max_size=3),
        st.dictionaries(st.integers(0, 20), inner, min_size=1, max_size=3),
        st.dictionaries(
            st.tuples(st.text("ab%", max_size=2), st.text("ab%", max_size=2)), inner, min_size=1, max_size=3
        ),
    ),
    max_leaves=6,
).filter(lambda tree: isinstance(tree, dict))


@given(STATES)
def test_any_state_there_and_back(tree):
    native = nnx.State(tree)
    state = flatten(native)
    assert same(unflatten(state, native), native)
    assert len(state) == len(jax.tree.leaves(native))


def test_names_and_kinds():
    state = flatten(models.Odd(rngs=nnx.Rngs(0, dropout=1)))
    assert {
        path: repr(kind) if isinstance(kind, br.Variable) else kind.__name__ for path, kind in state.kinds.items()
    } == {
        "Count/names/100%25": "Variable(collection='Count')",
        "LoRA/custom": "Param(collection='LoRA', note='rank 2')",
        "RngCount/rngs/default/count": "RngState(collection='RngCount', tag='default')",
        "RngCount/rngs/dropout/count": "RngState(collection='RngCount', tag='dropout')",
        "RngKey/rngs/default/key": "RngState(collection='RngKey', tag='default')",
        "RngKey/rngs/dropout/key": "RngState(collection='RngKey', tag='dropout')",
        "Variable/tree/x": "Variable(collection='Variable')",
        "Variable/tree/y/0": "Variable(collection='Variable')",
        "Variable/tree/y/1": "Variable(collection='Variable')",
        "arrays/conv/mask": "Variable(collection='arrays')",
        "arrays/numbers/2": "Variable(collection='arrays')",
        "batch_stats/spectral/batch_stats/kernel%2Fsigma": "BatchStat",
        "batch_stats/spectral/batch_stats/kernel%2Fu": "BatchStat",
        "params/conv/bias": "Param",
        "params/conv/kernel": "Param",
        "params/names/a%2Fb": "Param",
        "params/numbers/1": "Param",
        "params/numbers/10": "Param",
        "params/spectral/layer_instance/bias": "Param",
        "params/spectral/layer_instance/kernel": "Param",
    }


def test_a_layer_has_the_paths_that_it_has_in_linen():
    x = jnp.ones((2, 4))
    for native, linen in [
        (nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nn.Dense(3)),
        (nnx.BatchNorm(4, rngs=nnx.Rngs(0)), nn.BatchNorm(use_running_average=False)),
        (nnx.LayerNorm(4, rngs=nnx.Rngs(0)), nn.LayerNorm()),
    ]:
        one, two = flatten(native), linen_adapter.spec(linen, x).entries
        assert list(one) == list(two) and one.kinds == two.kinds


def test_a_shared_variable_is_one_entry_under_its_first_path():
    state = flatten(models.Transformer(rngs=nnx.Rngs(0)))
    assert "params/embed/embedding" in state and not any("zz_head" in path for path in state)
    assert [path for path in flatten(models.Tied(rngs=nnx.Rngs(0))) if "linear" in path] == [
        "params/blocks/0/linear/bias",
        "params/blocks/0/linear/kernel",
    ]


def test_partition_metadata_is_kept_without_a_mesh_and_does_not_leak_into_names():
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("in", "out"))
    with nnx.use_eager_sharding(False):
        module = nnx.Linear(2, 3, kernel_init=init, rngs=nnx.Rngs(0))
    state = flatten(module)
    assert list(state) == ["params/bias", "params/kernel"]
    assert state.kind("params/kernel") == br.Param(out_sharding=("in", "out"))
    assert hash(jax.tree.structure(state)) == hash(jax.tree.structure(state))
    assert unflatten(state, module)["kernel"].get_metadata() == module.kernel.get_metadata()


def test_metadata_that_python_cannot_hash_is_kept():
    module = models.AutoEncoder(rngs=nnx.Rngs(0))
    module.encoder.kernel.set_metadata(axes=["in", "out"])
    kind = flatten(module).kind("params/encoder/kernel")
    assert kind.metadata["axes"].value == ["in", "out"] and hash(kind) == hash(
        flatten(module).kind("params/encoder/kernel")
    )


def test_values_in_mutable_arrays_are_read():
    module = models.AutoEncoder(rngs=nnx.Rngs(0))
    module.extra = nnx.Param(jnp.arange(2.0), ref=True)
    state = flatten(module)
    assert isinstance(state["params/extra"], jax.Array) and state["params/extra"].tolist() == [0.0, 1.0]
    back = unflatten(state, module)
    assert back["extra"].ref and back["extra"][...].tolist() == [0.0, 1.0]


def test_an_optimizer_is_flattened_too():
    optax = pytest.importorskip("optax")
    module = models.MLP(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(module, optax.adam(1e-3), wrt=nnx.Param)
    assert same(unflatten(flatten(optimizer), optimizer), nnx.state(optimizer))


def test_missing_unknown_and_misshapen_entries_are_all_listed():
    module = models.MLP(rngs=nnx.Rngs(0))
    state = flatten(module)
    state["params/layers/0/kernal"] = state.pop("params/layers/0/kernel")
    del state["params/layers/1/bias"]
    with pytest.raises(br.StructureError) as err:
        unflatten(state, module)
    for text in ("missing 'params/layers/0/kernel'", "Did you mean 'params/layers/0/kernal'", "'params/layers/1/bias'"):
        assert text in str(err.value)
    state = flatten(module)
    state["params/layers/0/bias"] = np.ones(7, np.float32)
    with pytest.raises(br.EntryShapeError, match=r"'params/layers/0/bias': got float32\[7\], wanted float32\[8\]"):
        unflatten(state, module)


def test_colliding_keys_are_an_error():
    module = models.AutoEncoder(rngs=nnx.Rngs(0))
    module.more = nnx.data({("a", "b"): nnx.Param(jnp.ones(1)), ("a/b",): nnx.Param(jnp.ones(1))})
    with pytest.raises(br.CollisionError, match="params/more/a%2Fb"):
        flatten(module)


def test_keys_that_do_not_sort_are_an_error():
    with pytest.raises(br.StructureError, match="must sort"):
        flatten(nnx.State({1: nnx.Param(jnp.ones(1)), "a": nnx.Param(jnp.ones(1))}))


@pytest.mark.parametrize("wrong", [{"kernel": np.ones(2)}, 3, np.ones(3), None, nnx.Linear], ids=repr)
def test_what_is_no_module_is_refused(wrong):
    with pytest.raises(br.StructureError, match=r"nnx\.state\(module\)"):
        flatten(wrong)


def test_flattening_neither_copies_nor_changes_the_module():
    module = models.MLP(rngs=nnx.Rngs(0))
    kernel = module.layers[0].kernel.get_raw_value()
    state = flatten(module)
    assert state["params/layers/0/kernel"] is kernel
    unflatten(jax.tree.map(lambda x: x + 1, state), module)
    assert module.layers[0].kernel.get_raw_value() is kernel


def test_it_works_where_flax_is_set_to_tree_mode():
    with nnx.set_graph_mode(False):
        assert len(flatten(models.Tied(rngs=nnx.Rngs(0)))) == 2 + 2 * 4
