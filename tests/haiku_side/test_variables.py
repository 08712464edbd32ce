"""Haiku's dictionaries <-> State: every name that Haiku accepts goes there and back (layers.md, section 7)."""

from __future__ import annotations

import haiku as hk
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridges import haiku_adapter as ha
from bridges.core import BatchStat, CollisionError, EntryShapeError, Param, RngState, Spec, StructureError

_segment = st.text("abc_~/%. 0", min_size=1, max_size=6)
_module = st.lists(st.sampled_from(["net", "~", "linear_1", "~enc", "b", "c"]), min_size=1, max_size=4).map("/".join)
_bundle = st.dictionaries(_module, st.dictionaries(_segment, st.integers(0, 9).map(np.float32), min_size=1), max_size=5)


@hypothesis.given(_bundle, _bundle)
def test_flatten_then_unflatten_is_the_identity(params, state):
    flat = ha.flatten(params, state)
    assert len(flat) == sum(map(len, params.values())) + sum(map(len, state.values()))
    assert ha.unflatten(flat) == (params, state)
    assert ha.unflatten(flat, (params, state)) == (params, state)


def test_module_b_with_leaf_c_w_and_module_b_c_with_leaf_w_stay_apart():
    class B(hk.Module):
        def __call__(self):
            with hk.name_scope("c"):
                hk.get_parameter("w", [], init=jnp.zeros)
            return hk.get_parameter("c/w", [], init=jnp.ones)

    params = hk.transform(lambda: B(name="b")()).init(None)
    flat = ha.flatten(params)
    assert list(flat) == ["params/b/c%2Fw", "params/b/c/w"]
    assert ha.unflatten(flat) == (params, {})


def test_parameter_and_child_module_of_one_name_stay_apart():
    params = {"m": {"w": 1.0}, "m/w": {"k": 2.0}}
    assert list(ha.flatten(params)) == ["params/m/w", "params/m/w/k"]
    assert ha.unflatten(ha.flatten(params))[0] == params


@pytest.mark.parametrize("leaf", ["a/b", "c.d", "e//f", "100%", "%2F", "~", " "])
def test_parameter_names_are_unchecked_in_haiku(leaf):
    params = {"m": {leaf: 1.0}, "~": {leaf: 2.0}}
    assert ha.unflatten(ha.flatten(params)) == (params, {})


def test_every_way_of_naming_modules_round_trips():
    class Net(hk.Module):
        def __init__(self):
            super().__init__()
            self.made_in_init = hk.Linear(2)

        def encode(self, x):
            return hk.Linear(2)(x)  # net/~encode/linear

        @hk.transparent
        def seen_through(self, x):
            return hk.Linear(2)(x)  # linear, at the top

        def __call__(self, x):
            x = hk.Linear(2)(self.made_in_init(self.encode(x)))  # net/linear
            with hk.name_scope("a/b"):
                x = hk.Linear(2)(x)
            with hk.name_scope("foo", method_name="bar"):
                x = hk.Linear(2, name=hk.force_name("far/~/away"))(hk.Linear(2)(x))
            return x + hk.get_parameter("enc_w", [], init=jnp.ones)

    def f(x):
        net = Net()
        x = net(net.seen_through(x))
        x = hk.Linear(2, name="linear_3")(x)
        return x + hk.get_parameter("free", [], init=jnp.ones)

    params, state = hk.transform_with_state(f).init(0, jnp.ones((1, 2)))
    flat = ha.flatten(params, state)
    assert {"params/net/~/linear/w", "params/net/~encode/linear/w", "params/linear/w", "params/net/linear/w"} <= {*flat}
    assert {"params/net/a/b/linear/w", "params/net/foo/~bar/linear/w", "params/far/~/away/w"} <= {*flat}
    assert {"params/net/enc_w", "params/~/free", "params/linear_3/w"} <= {*flat}
    assert jax.tree.structure(ha.unflatten(flat)) == jax.tree.structure((params, state))
    assert list(ha.spec(f, jnp.ones((1, 2))).entries) == list(flat)


def test_flat_mapping_of_old_checkpoints():
    params = hk.data_structures.to_immutable_dict({"mlp/~/linear_0": {"w": np.ones(2)}})
    flat = ha.flatten(params, hk.data_structures.to_immutable_dict({}))
    assert list(flat) == ["params/mlp/~/linear_0/w"]
    assert type(ha.unflatten(flat, (params, {}))[0]) is dict


def test_kinds():
    flat = ha.flatten({"m": {"w": 1.0}}, {"m": {"n": np.int32(0), "key": jax.random.key(0)}})
    assert (flat.kind("params/m/w"), flat.kind("state/m/n"), flat.kind("state/m/key")) == (Param, BatchStat, RngState)


def test_empty_modules_and_trees_need_a_like():
    params, state = {"m": {}, "n": {"w": np.ones(2)}}, {"core": {"carry": (np.zeros(1), [np.ones(1)]), "none": ()}}
    flat = ha.flatten(params, state)
    assert list(flat) == ["params/n/w", "state/core/carry/0", "state/core/carry/1/0"]
    back = ha.unflatten(flat, (params, state))
    assert jax.tree.structure(back) == jax.tree.structure((params, state))


def test_a_tree_that_falls_on_another_modules_leaf_is_a_collision():
    with pytest.raises(CollisionError, match="'state/core/carry/0'"):
        ha.flatten({}, {"core": {"carry": (1.0,)}, "core/carry": {"0": 2.0}})


def test_like_is_strict_and_lists_everything():
    like = ({"linear": {"w": np.ones((2, 3)), "b": np.ones(3)}}, {})
    with pytest.raises(StructureError, match=r"missing 'params/linear/b'(.|\n)*unexpected 'params/linear/bias'"):
        ha.unflatten({"params/linear/w": np.ones((2, 3)), "params/linear/bias": np.ones(3)}, like)
    with pytest.raises(EntryShapeError, match=r"params/linear/b.*\[4\].*\[3\]"):
        ha.unflatten({"params/linear/w": np.ones((2, 3)), "params/linear/b": np.ones(4)}, like)


@pytest.mark.parametrize("path", ["w", "params/w", "batch_stats/bn/mean", "params/a%2Fb/w"])
def test_paths_that_haiku_cannot_have(path):
    with pytest.raises(StructureError, match=path):
        ha.unflatten({path: 1.0})


def test_like_params_alone():
    f, x = hk.transform(lambda x: hk.Linear(2)(x)), jnp.ones((1, 3))
    flat = ha.init(f, 0, x)
    params, state = ha.unflatten(dict(flat), jax.eval_shape(f.init, jax.random.key(0), x))
    assert params["linear"]["w"] is flat["params/linear/w"] and state == {}
    with pytest.raises(StructureError, match="unexpected 'state/bn/mean'"):
        ha.unflatten({**flat, "state/bn/mean": x}, params)


def test_wrong_arguments():
    with pytest.raises(StructureError, match=r"flatten\(\*pair\)"):
        ha.flatten(({}, {}))  # type: ignore[arg-type]
    with pytest.raises(StructureError, match="float32"):
        ha.flatten({"w": jnp.ones(())})  # type: ignore[dict-item]
    with pytest.raises(StructureError, match=r"pair \(params, state\), its params or a Spec"):
        ha.unflatten({}, [{"linear": {}}, {}])  # type: ignore[arg-type]


def test_unflatten_like_a_spec():
    x = jnp.ones((4, 3))
    f = hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.9)(x, is_training=True))
    native = f.init(None, x)
    spec = ha.spec(f, x)
    assert jax.tree.structure(ha.unflatten(ha.flatten(*native), spec)) == jax.tree.structure(native)
    assert ha.unflatten(ha.flatten(*native), Spec.of(ha.flatten(*native)))[0] == native[0]
