"""Placement: paired where there is no doubt, reported where there is."""

import dataclasses

import flax.linen as nn
import haiku as hk
import jax
import numpy as np
import pytest
from flax import nnx

from bridges import haiku_adapter, linen_adapter, nnx_adapter
from bridges.core._errors import MappingError
from bridges.mapping._place import place
from bridges.param_mapping import Mapping, conventions


def layers(text):
    """`path:like path:like …`."""
    return dict(item.rsplit(":", 1) for item in text.split())


@pytest.mark.parametrize(
    ("src", "dst", "pairs"),
    [
        ("linear:a", "Dense_0:a", "linear>Dense_0"),
        ("net/~/linear:a net/~/linear_1:a", "Dense_0:a Dense_1:a", "net/~/linear>Dense_0 net/~/linear_1>Dense_1"),
        ("a/w:x a/b:y", "b/W:x b/B:y", "a/w>b/W a/b>b/B"),
        # numbers, not letters
        ("l_2:a l_10:a", "D_2:a D_10:a", "l_2>D_2 l_10>D_10"),
        ("l:a l_1:a l_9:a l_10:a", "D_0:a D_1:a D_2:a D_3:a", "l>D_0 l_1>D_1 l_9>D_2 l_10>D_3"),
        # a level that only one end has, beside other layers
        (
            "conv:c mlp/~/linear_0:a mlp/~/linear_1:a",
            "Conv_0:c Dense_0:a Dense_1:a",
            "conv>Conv_0 mlp/~/linear_0>Dense_0 mlp/~/linear_1>Dense_1",
        ),
        # blocks in order, each with its own order inside
        (
            "r/block_0/~/c_0:a r/block_0/~/c_1:a r/block_1/~/c_0:a r/block_1/~/c_1:a",
            "B_0/C_0:a B_0/C_1:a B_1/C_0:a B_1/C_1:a",
            "r/block_0/~/c_0>B_0/C_0 r/block_0/~/c_1>B_0/C_1 r/block_1/~/c_0>B_1/C_0 r/block_1/~/c_1>B_1/C_1",
        ),
        # shapes alone
        ("enc:a dec:b", "Dense_0:b Dense_1:a", "enc>Dense_1 dec>Dense_0"),
        # names alone
        ("query:a key:a", "key:a query:a", "query>query key>key"),
        # NNX lists
        (
            "mlp/~/linear_0:a mlp/~/linear_1:a",
            "layers/0:a layers/1:a",
            "mlp/~/linear_0>layers/0 mlp/~/linear_1>layers/1",
        ),
        # a module with parameters of its own and layers below
        ("net:p net/linear:a net/linear_1:a", ":p Dense_0:a Dense_1:a", "net> net/linear>Dense_0 net/linear_1>Dense_1"),
    ],
)
def test_pairs(src, dst, pairs):
    found, doubts = place(layers(src), layers(dst))
    assert {f"{s}>{d}" for s, d, _ in found} == set(pairs.split())
    assert not doubts


@pytest.mark.parametrize(
    ("src", "dst"),
    [
        ("left:a right:a", "Dense_0:a Dense_1:a"),
        ("l:a l_1:a l_2:b", "D_0:a D_1:b D_2:a"),  # the sequences differ, so the numbers mean nothing
        ("mlp/~/l_0:a mlp/~/l_1:a mlp_1/~/l_0:a mlp_1/~/l_1:a", "D_0:a D_1:a D_2:a D_3:a"),
        ("l:a l_1:a", "D_0:a D_1:a E_0:a E_1:a"),
    ],
)
def test_doubts_are_reported_and_not_decided(src, dst):
    found, doubts = place(layers(src), layers(dst))
    assert doubts
    assert not [p for p in found if layers(src)[p[0]] == "a"]


def test_what_has_no_counterpart_is_left_over():
    found, doubts = place(layers("a:x b:y"), layers("c:x"))
    assert [(s, d) for s, d, _ in found] == [("a", "c")] and not doubts
    assert place({}, {}) == ([], [])


def test_below_a_given_pair_of_modules():
    found, _ = place(layers("enc/l:a enc/l_1:a"), layers("E/D_0:a E/D_1:a"), "enc", "E")
    assert {(s, d) for s, d, _ in found} == {("enc/l", "E/D_0"), ("enc/l_1", "E/D_1")}


def test_numbers_and_calls_in_another_order_are_a_doubt():
    """`Dense(16)(relu(Dense(16)(x)))` makes the outer layer first, and calls it last."""
    src, dst = {"linear": "a", "linear_1": "a"}, {"Dense_0": "a", "Dense_1": "a"}
    inner_first = {"Dense_1": 0, "Dense_0": 1}
    for calls in (({"linear": 0, "linear_1": 1}, inner_first), ({}, inner_first)):
        pairs, doubts = place(src, dst, calls=calls)
        assert pairs == [] and (doubts[0].src, doubts[0].dst) == (["linear", "linear_1"], ["Dense_0", "Dense_1"])
        assert "by number 'linear' is 'Dense_0', by the order of calls 'Dense_1'" in doubts[0].why
    assert len(place(src, dst, calls=({"linear_1": 0, "linear": 1}, inner_first))[0]) == 2
    assert len(place(src, dst, calls=({"linear": 0, "linear_1": 1}, {}))[0]) == 2
    # what is not alike is told apart by its shape, whatever the order
    assert len(place(src | {"linear": "b"}, dst | {"Dense_0": "b"}, calls=({}, inner_first))[0]) == 2


def test_a_model_that_nests_its_calls_is_not_taken_for_one_that_does_not():
    class Nested(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(16)(nn.relu(nn.Dense(16)(x)))

    def nested(x):
        return hk.Linear(16)(jax.nn.relu(hk.Linear(16)(x)))

    def in_turn(x):
        first, second = hk.Linear(16), hk.Linear(16)
        return second(jax.nn.relu(first(x)))

    x = np.ones((1, 16), np.float32)
    there = linen_adapter.spec(Nested(), x)
    shipped = conventions("haiku", "linen")
    assert shipped.plan(haiku_adapter.spec(nested, x), there).placements[0][:2] == ("linear", "Dense_0")
    plan = shipped.plan(haiku_adapter.spec(in_turn, x), there)
    assert plan.placements[0] == ("linear", "Dense_1", "by the flow of data and shape")
    there = dataclasses.replace(there, uses={})  # only the order of calls is known
    with pytest.raises(MappingError, match="numbered in one order and called in another"):
        shipped.plan(haiku_adapter.spec(in_turn, x), there)
    said = Mapping.of(modules={"linear": "Dense_1", "linear_1": "Dense_0"}) | shipped
    assert said.plan(haiku_adapter.spec(in_turn, x), there).verdict == "exact"


def test_the_flow_of_data_is_known_whatever_the_order_of_entries():
    """Statistics come before parameters in the entries of an NNX model, and not where it is traced."""

    def old(x):
        x = hk.Linear(6, name="stem")(x)
        skip = hk.Linear(6, False, name="skip")(x)
        for n in ("z", "y"):
            x = hk.Linear(6, name=f"dense_{n}")(x)
            x = hk.BatchNorm(True, True, 0.99, name=f"norm_{n}")(x, False)
        return hk.Linear(3, name="head")(x + skip)

    class New(nnx.Module):
        def __init__(self, rngs):
            self.norms = nnx.List([nnx.BatchNorm(6, use_running_average=True, rngs=rngs) for _ in range(2)])
            self.b, self.d = (nnx.Linear(6, 6, rngs=rngs) for _ in range(2))
            self.short = nnx.Linear(6, 6, use_bias=False, rngs=rngs)
            self.first, self.last = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            x = self.first(x)
            return self.last(self.norms[0](self.b(self.norms[1](self.d(x)))) + self.short(x))

    x = np.ones((2, 4), np.float32)
    plan = conventions("haiku", "nnx").plan(haiku_adapter.spec(old, x), nnx_adapter.spec(New, x))
    by_flow = {placement[:2] for placement in plan.placements if "flow" in placement[2]}
    assert by_flow == {("dense_z", "d"), ("norm_z", "norms/1"), ("dense_y", "b"), ("norm_y", "norms/0")}


def test_an_nnx_model_that_does_not_take_the_inputs_is_said():
    """It is made without inputs, so that a plan may come about all the same; where it does not, this is why."""

    def old(x, is_training):
        return hk.Linear(4, name="z")(hk.Linear(4, name="y")(x))

    class New(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = (nnx.Linear(4, 4, rngs=rngs) for _ in range(2))

        def __call__(self, x):
            return self.a(self.b(x))

    x, shipped = np.ones((2, 4), np.float32), conventions("haiku", "nnx")
    with pytest.raises(
        MappingError, match=r"does not take these inputs: TypeError: .*New.__call__\(\) takes 2 positional"
    ):
        shipped.plan(haiku_adapter.spec(old, x, False), nnx_adapter.spec(New, x, False))
    plan = shipped.plan(haiku_adapter.spec(lambda x: old(x, False), x), nnx_adapter.spec(New, x))
    assert {placement[:2] for placement in plan.placements} == {("y", "b"), ("z", "a")}
