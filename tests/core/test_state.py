"""State: a dict-like pytree with kinds."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bridges as br


class Calls(br.Variable):
    pass


class Special(br.Param):
    pass


def small() -> br.State:
    return br.State(
        {"net/w": jnp.ones((2, 2)), "net/n": jnp.int32(3), "bn/mean": jnp.zeros(2), "key": jax.random.key(0)},
        {"net/n": Calls, "bn/mean": br.BatchStat, "net/w": br.Param(sharding=("in", None))},
    )


def test_it_behaves_as_a_dictionary():
    state = small()
    assert sorted(state) == list(state) == list(state.keys())
    assert len(state) == 4 and "net/w" in state and "nope" not in state and 3 not in state
    state["net/w"] = jnp.zeros((2, 2))
    state["net/b"] = jnp.zeros(2)
    assert state.kind("net/b") is br.Param
    del state["net/b"]
    assert state.pop("net/n") == 3 and state.pop("net/n", None) is None
    assert state.setdefault("bn/mean", 5) is state["bn/mean"]
    assert dict(state | {"x": 1})["x"] == 1 and "x" not in state
    assert isinstance({"x": 1} | state, br.State)
    with pytest.raises(br.MissingEntryError, match="Did you mean 'net/w'"):
        state["net/v"]
    with pytest.raises(KeyError):
        del state["nope"]


def test_default_kinds_follow_from_the_values():
    state = br.State({"f": np.float32(1), "b": jnp.bfloat16(1), "i": np.int32(1), "k": jax.random.key(0)})
    assert state.kinds == {"f": br.Param, "b": br.Param, "i": br.Variable, "k": br.RngState}


def test_kinds_and_metadata_survive_everything_that_copies():
    state = small()
    copies = {
        "jit": jax.jit(lambda s: s)(state),
        "tree.map": jax.tree.map(lambda x: x, state),
        "pickle": pickle.loads(pickle.dumps(br.State({k: v for k, v in state.items() if k != "key"}, state.kinds))),
        "copy": copy.copy(state),
        "deepcopy": copy.deepcopy(state),
        "method": state.copy(),
        "state": br.State(state),
        "eval_shape": jax.eval_shape(lambda s: s, state),
    }
    for name, other in copies.items():
        assert isinstance(other, br.State), name
        for path in other:
            assert other.kind(path) == state.kind(path), (name, path)
    assert copies["pickle"].kind("net/w").metadata == {"sharding": ("in", None)}


def test_a_copy_is_independent():
    state = small()
    other = state.copy()
    other["net/w"] = 0
    other["new"] = 1
    assert "new" not in state and state["net/w"].shape == (2, 2)


def test_grad_and_tree_paths():
    state = br.State({"a/w": jnp.ones(2), "b": jnp.float32(3)})
    grads = jax.grad(lambda s: (s["a/w"] ** 2).sum() * s["b"])(state)
    assert isinstance(grads, br.State)
    np.testing.assert_array_equal(grads["a/w"], [6, 6])
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert paths == ["['a/w']", "['b']"]


def test_structures_agree_exactly_when_paths_and_kinds_do():
    one, two = br.State({"a": 1.0, "b": 2.0}), br.State({"b": 5.0, "a": 6.0})
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert hash(jax.tree.structure(one)) == hash(jax.tree.structure(two))
    other = br.State({"a": 1.0, "b": 2.0}, {"a": br.BatchStat})
    assert jax.tree.structure(one) != jax.tree.structure(other)
    assert jax.tree.map(lambda x, y: x + y, one, two)["a"] == 7.0


def test_equal_kind_metadata_is_one_structure():
    one = br.State({"a": 1.0}, {"a": br.Param(axes=("x",))})
    two = br.State({"a": 1.0}, {"a": br.Param(axes=("x",))})
    assert jax.tree.structure(one) == jax.tree.structure(two)


def test_filters():
    state = small()
    assert list(state.filter(br.Param)) == ["net/w"]
    assert list(state.filter(Calls, br.BatchStat)[1]) == ["bn/mean"]
    assert list(state.filter(br.Variable)) == list(state)
    assert list(state.filter(...)) == list(state)
    assert list(state.filter("net")) == ["net/n", "net/w"]
    assert list(state.filter("ne")) == []
    assert list(state.filter((Calls, br.BatchStat))) == ["bn/mean", "net/n"]
    assert list(state.filter(br.Not(br.Param))) == ["bn/mean", "key", "net/n"]
    assert list(state.filter(br.Not(br.Param, "key"))) == ["bn/mean", "net/n"]
    assert list(state.filter(br.PathMatches(".*/(w|n)"))) == ["net/n", "net/w"]
    assert list(state.filter(lambda path, value: value.ndim == 2)) == ["net/w"]
    assert list(state.filter(br.Param(sharding=("in", None)))) == ["net/w"]
    assert list(br.State({"a": np.ones(1), "b": "text"}).filter(br.arrays)) == ["a"]
    with pytest.raises(br.FilterError, match="is not a filter"):
        state.filter(3)


def test_a_subclass_of_a_kind_is_that_kind():
    state = br.State({"a": jnp.ones(1)}, {"a": Special})
    assert list(state.filter(br.Param)) == ["a"] and list(state.filter(br.BatchStat)) == []


def test_partition_is_exhaustive_and_merge_its_inverse():
    state = small()
    params, rest = state.partition(br.Param, ...)
    assert list(params) == ["net/w"] and "net/w" not in rest
    back = params.merge(rest)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    with pytest.raises(br.FilterError, match=r"(?s)'bn/mean' \(BatchStat\).*\.\.\. to catch the rest"):
        state.partition(br.Param)
    with pytest.raises(br.CollisionError, match=r"(?s)'net/w'.*state \| other"):
        state.merge(params)
    assert state.merge({"extra": 1})["extra"] == 1


def test_pop_by_kind_removes_and_returns():
    state = small()
    stats = state.pop(br.BatchStat)
    assert list(stats) == ["bn/mean"] and "bn/mean" not in state
    one, two = state.pop(br.Param, Calls)
    assert list(one) == ["net/w"] and list(two) == ["net/n"] and list(state) == ["key"]


def test_a_path_must_be_text():
    with pytest.raises(br.StructureError, match="path"):
        br.State({1: jnp.ones(1)})


names = st.text(alphabet="abc/", min_size=1, max_size=5)
kinds = st.sampled_from([br.Param, br.BatchStat, Calls, Special(a=1), br.Cache])


@given(st.dictionaries(names, st.tuples(st.integers(), kinds), max_size=8), st.lists(kinds, max_size=3))
def test_partition_then_merge_is_the_identity(entries, filters):
    state = br.State({p: v for p, (v, _) in entries.items()}, {p: k for p, (_, k) in entries.items()})
    parts = state.partition(*filters, ...)
    parts = parts if isinstance(parts, tuple) else (parts,)
    back = br.State().merge(*parts)
    assert dict(back) == dict(state) and back.kinds == state.kinds
    leaves, structure = jax.tree.flatten(state)
    assert dict(jax.tree.unflatten(structure, leaves)) == dict(state)
    assert pickle.loads(pickle.dumps(structure)) == structure if not entries else True


def test_a_state_with_abstract_entries_takes_no_memory():
    state = br.State({"w": jax.ShapeDtypeStruct((1 << 20, 1 << 20), jnp.float32)})
    assert state.kind("w") is br.Param and state["w"].shape == (1 << 20, 1 << 20)


def test_sharding_constraints_and_shards():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.device_put(br.State({"w": jnp.ones(4)}), sharding)
    assert isinstance(state, br.State) and state["w"].sharding == sharding
