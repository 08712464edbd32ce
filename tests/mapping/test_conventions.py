"""Conventions against the real frameworks: every parameter random, outputs equal, both directions, differences refused."""

import dataclasses

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridges import haiku_adapter, linen_adapter
from bridges.core._errors import MappingError
from bridges.core._kind import Param
from bridges.core._spec import Spec
from bridges.core._state import State
from bridges.param_mapping import Mapping, Part, conventions, frameworks

IMAGE, TEXT = (2, 7, 6, 3), (2, 5, 6)
norm = {"create_scale": True, "create_offset": True}
init = hk.initializers.RandomNormal()
true_layer_norm = {"epsilon": 1e-5, "use_fast_variance": False}


def stack_hk(x):
    return hk.Sequential([layer for _ in range(12) for layer in (hk.Linear(6), jnp.tanh)])(x)


class StackLinen(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(12):
            x = jnp.tanh(nn.Dense(6)(x))
        return x


class Tower(nn.Module):
    """Two branches of one shape, told apart by their names alone."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(6, name="left")(x) - nn.Dense(6, name="right")(x)


def tower_hk(x):
    return hk.Linear(6, name="left")(x) - hk.Linear(6, name="right")(x)


# name: Haiku function, Linen module, shape or dtype of the input
CASES = {
    "linear": (lambda x: hk.Linear(4)(x), nn.Dense(4), TEXT),
    "linear without bias": (lambda x: hk.Linear(4, with_bias=False)(x), nn.Dense(4, use_bias=False), TEXT),
    "conv 1-D": (lambda x: hk.Conv1D(4, 3)(x), nn.Conv(4, (3,)), TEXT),
    "conv 2-D": (lambda x: hk.Conv2D(4, (3, 2), 2, padding="VALID")(x), nn.Conv(4, (3, 2), 2, "VALID"), IMAGE),
    "conv 2-D, pairs": (
        lambda x: hk.Conv2D(4, 3, rate=2, padding=(1, 2))(x),
        nn.Conv(4, (3, 3), padding=[(1, 2), (1, 2)], kernel_dilation=2),
        IMAGE,
    ),
    "conv 2-D, groups": (
        lambda x: hk.Conv2D(6, 3, with_bias=False, feature_group_count=3)(x),
        nn.Conv(6, (3, 3), use_bias=False, feature_group_count=3),
        IMAGE,
    ),
    "conv 3-D": (lambda x: hk.Conv3D(2, 3)(x), nn.Conv(2, (3, 3, 3)), (1, 4, 3, 5, 2)),
    "layer norm": (lambda x: hk.LayerNorm(-1, True, True)(x), nn.LayerNorm(**true_layer_norm), TEXT),
    "layer norm, scale only": (
        lambda x: hk.LayerNorm(-1, True, False)(x),
        nn.LayerNorm(use_bias=False, **true_layer_norm),
        TEXT,
    ),
    "layer norm, two axes": (
        lambda x: hk.LayerNorm((-2, -1), True, True, param_axis=(-2, -1))(x),
        nn.LayerNorm(reduction_axes=(-2, -1), feature_axes=(-2, -1), **true_layer_norm),
        TEXT,
    ),
    "batch norm": (
        lambda x: hk.BatchNorm(decay_rate=0.9, **norm)(x, False),
        nn.BatchNorm(use_running_average=True, momentum=0.9),
        IMAGE,
    ),
    "batch norm, no scale": (
        lambda x: hk.BatchNorm(False, True, 0.9)(x, False),
        nn.BatchNorm(use_running_average=True, momentum=0.9, use_scale=False),
        IMAGE,
    ),
    "embed": (lambda x: hk.Embed(7, 5)(x), nn.Embed(7, 5), np.int32),
    "attention": (
        lambda x: hk.MultiHeadAttention(3, 2, w_init=init)(x, x, x),
        nn.MultiHeadDotProductAttention(3, qkv_features=6, out_features=6),
        TEXT,
    ),
    "attention, other width": (
        lambda x: hk.MultiHeadAttention(2, 4, w_init=init, model_size=5, with_bias=False)(x, x, x),
        nn.MultiHeadDotProductAttention(2, qkv_features=8, out_features=5, use_bias=False),
        TEXT,
    ),
    "twelve alike": (stack_hk, StackLinen(), TEXT),
    "alike but for the name": (tower_hk, Tower(), TEXT),
}


def inputs(kind, seed=3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 7, (2, 3)).astype(np.int32) if kind is np.int32 else rng.normal(size=kind).astype(np.float32)


def randomised(spec, seed):
    """Every entry random and positive (variances among them)."""
    rng = np.random.default_rng(seed)
    entries = {
        p: (rng.uniform(0.2, 1.5, x.shape) * (1 if "var" in p else rng.choice([-1, 1], x.shape))).astype(x.dtype)
        if jnp.issubdtype(x.dtype, jnp.inexact)
        else np.full(x.shape, 3, x.dtype)
        for p, x in spec.entries.items()
    }
    return State(entries, spec.entries.declared)


def run_hk(f, state, x):
    params, variables = haiku_adapter.unflatten(state)
    return hk.transform_with_state(f).apply(params, variables, None, x)[0]


def specs(name):
    f, module, kind = CASES[name]
    x = inputs(kind)
    train = f if "batch" not in name else None
    if train is None:  # hk.BatchNorm has no state until it is initialised in training
        create = "no scale" not in name
        src = haiku_adapter.spec(lambda x: hk.BatchNorm(create, True, 0.9)(x, True), x)
    else:
        src = haiku_adapter.spec(f, x)
    return f, module, x, src, linen_adapter.spec(module, x)


def assert_close(got, wanted):
    # Both run the same primitives on the same arrays; the attention's reshaped contractions may sum in another order.
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)
    assert np.ptp(wanted) > 1e-3


@pytest.mark.parametrize("typed", [True, False], ids=["models at hand", "arrays only"])
@pytest.mark.parametrize("name", CASES)
def test_haiku_to_linen_and_back(name, typed):
    f, module, x, src, dst = specs(name)
    ends = (src, dst) if typed else (Spec.of(src.entries), Spec.of(dst.entries))
    plan = conventions("haiku", "linen").plan(*ends)
    old = randomised(src, 0)
    new = plan.forward(old)
    assert_close(module.apply(linen_adapter.unflatten(new, dst.native), x), run_hk(f, old, x))
    # the other way, from random Linen variables
    back = conventions("linen", "haiku").plan(*ends[::-1])
    variables = randomised(dst, 1)
    theirs = back.forward(variables)
    assert_close(run_hk(f, theirs, x), module.apply(linen_adapter.unflatten(variables, dst.native), x))
    assert back.verdict == "exact"
    assert all(np.array_equal(back.inverse(theirs)[p], v) for p, v in variables.items())
    assert all(np.array_equal(plan.forward(theirs)[p], v) for p, v in variables.items())
    if "batch" not in name:
        assert plan.verdict == "exact"
        assert all(np.array_equal(plan.inverse(new)[p], v) for p, v in old.items())


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("batch norm", "batch norm, no scale", "embed")])
def test_a_wrong_plan_shows_in_the_outputs(name):
    """The check above can fail: each leaf changed by itself changes the outputs."""
    f, module, x, src, dst = specs(name)
    plan = conventions("haiku", "linen").plan(src, dst)
    old = randomised(src, 0)
    wanted = run_hk(f, old, x)
    for path in old:
        if path.endswith("key/b"):  # shifts all logits of a query alike: never reaches the output (peers.md)
            continue
        wrong = old | {path: old[path] + 0.5}
        with pytest.raises(AssertionError):
            assert_close(module.apply(linen_adapter.unflatten(plan.forward(wrong), dst.native), x), wanted)


def test_twelve_alike_go_by_number():
    *_, src, dst = specs("twelve alike")
    plan = conventions("haiku", "linen").plan(src, dst)
    assert ("linear_10", "Dense_10", "by order and shape") in plan.placements
    assert ("linear", "Dense_0", "by order and shape") in plan.placements


def test_batch_norm_statistics_and_verdict():
    *_, src, dst = specs("batch norm")
    plan = conventions("haiku", "linen").plan(src, dst)
    assert plan.verdict == "exact for evaluation only"
    assert "bias correction" in plan.reasons[0] and len(plan.reasons) == 1
    new = plan.inverse(randomised(dst, 1))
    ema = "state/batch_norm/~/mean_ema/"
    assert new[ema + "counter"] == 2**30 and new[ema + "counter"].dtype == np.int32
    assert np.array_equal(new[ema + "hidden"], new[ema + "average"])


def test_batch_norm_trains_on_alike_after_linen_to_haiku():
    """hidden = average with the count 2**30: further statistics agree (a smaller count is 12-99 % wrong, layers.md 3.1)."""
    _, _, x, src, dst = specs("batch norm")
    variables = randomised(dst, 1)
    state = conventions("linen", "haiku").plan(dst, src).forward(variables)
    params, stats = haiku_adapter.unflatten(state)
    step = hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.9)(x, True))
    module = nn.BatchNorm(use_running_average=False, momentum=0.9)
    native = linen_adapter.unflatten(variables, dst.native)
    for i in range(5):
        batch = x * (i + 1)
        _, stats = step.apply(params, stats, None, batch)
        _, new = module.apply(native, batch, mutable=["batch_stats"])
        native = {**native, **new}
    mean = stats["batch_norm/~/mean_ema"]["average"].reshape(-1)
    # float32 decay constants differ between the frameworks by 2e-7 a step
    np.testing.assert_allclose(mean, native["batch_stats"]["mean"], rtol=5e-6, atol=5e-6)


WRONG = {
    "epsilon": (lambda x: hk.LayerNorm(-1, True, True)(x), nn.LayerNorm(use_fast_variance=False), "epsilon=1e-05"),
    "fast_variance": (lambda x: hk.LayerNorm(-1, True, True)(x), nn.LayerNorm(epsilon=1e-5), "use_fast_variance=False"),
    "reduction_axes": (
        lambda x: hk.LayerNorm((1, 2), True, True, param_axis=-1)(x),
        nn.LayerNorm(**true_layer_norm),
        r"reduction_axes=\(1, 2\)",
    ),
    "momentum": (
        lambda x: hk.BatchNorm(True, True, 0.9)(x, True),
        nn.BatchNorm(use_running_average=False),
        "momentum=0.9",
    ),
    "num_heads": (
        lambda x: hk.MultiHeadAttention(2, 3, w_init=init)(x, x, x),
        nn.MultiHeadDotProductAttention(3, qkv_features=6, out_features=6),
        "num_heads=2",
    ),
    "padding": (lambda x: hk.Conv1D(4, 3, padding=(1, 0))(x), nn.Conv(4, (3,)), r"padding=\(\(1, 0\),\)"),
    "stride": (lambda x: hk.Conv1D(4, 3, 2)(x), nn.Conv(4, (3,)), "strides=2"),
    "dilation": (lambda x: hk.Conv1D(4, 3, rate=2)(x), nn.Conv(4, (3,)), "kernel_dilation=2"),
    "input_dilation": (
        lambda x: hk.Conv1D(4, 3)(x),
        nn.Conv(4, (3,), input_dilation=2, padding=[(1, 1)]),
        "input_dilation=1",
    ),
    "channels_last": (
        lambda x: hk.Conv1D(6, 3, data_format="NCW")(x),
        nn.Conv(6, (3,)),
        "no such setting: change the source's data_format",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_layers_that_differ_are_refused_with_the_remedy(name):
    f, module, remedy = WRONG[name]
    x = inputs((2, 6, 6))
    src, dst = haiku_adapter.spec(f, x), linen_adapter.spec(module, x)
    with pytest.raises(MappingError, match=f"has {name} .*{remedy}"):
        conventions("haiku", "linen").plan(src, dst)


def test_a_difference_can_be_accepted():
    f, module, _ = WRONG["epsilon"]
    src, dst = haiku_adapter.spec(f, inputs(TEXT)), linen_adapter.spec(module, inputs(TEXT))
    plan = (Mapping.of(accept={"{m:module}": ["epsilon"]}) | conventions("haiku", "linen")).plan(src, dst)
    assert plan.verdict == "not exact" and "accepted" in plan.reasons[0]


def test_what_no_convention_joins_is_refused():
    src = haiku_adapter.spec(lambda x: hk.Linear(4)(x), inputs(TEXT))
    dst = linen_adapter.spec(nn.Conv(4, (1,)), inputs(TEXT))
    with pytest.raises(MappingError, match="Linear"):
        (Mapping.of(modules={"linear": ""}) | conventions("haiku", "linen")).plan(src, dst)


class Mine(hk.Module):
    """Has the leaf names of a Linear and is none."""

    def __call__(self, x):
        return x @ hk.get_parameter("w", [6, 4], init=jnp.ones) ** 2 + hk.get_parameter("b", [4], init=jnp.ones)


def test_a_layer_with_borrowed_leaf_names_is_not_taken_for_another():
    src = haiku_adapter.spec(lambda x: Mine()(x), inputs(TEXT))
    dst = linen_adapter.spec(nn.Dense(4), inputs(TEXT))
    with pytest.raises(MappingError, match=r"Mine has no convention"):
        conventions("haiku", "linen").plan(src, dst)


def test_layers_without_a_convention_are_not_joined_by_their_names():
    """RMSNorm has the leaf `scale` and another default epsilon in each framework."""
    src = haiku_adapter.spec(lambda x: hk.RMSNorm(-1)(x), inputs(TEXT))
    dst = linen_adapter.spec(nn.RMSNorm(), inputs(TEXT))
    rows = [row for part in conventions("haiku", "linen").parts for row in part.layers if row.type != "RMSNorm"]
    mapping = Mapping((Part(layers=tuple(rows)),))
    with pytest.raises(MappingError, match=r"no convention says that haiku\.RMSNorm and linen\.RMSNorm"):
        mapping.plan(src, dst)
    assert (Mapping.of(modules={"rms_norm": ""}) | mapping).plan(src, dst).placements


def test_lines_for_modules_that_hold_others():
    def net(x):
        outs = []
        for name in ("left", "right"):
            with hk.name_scope(name):
                outs.append(jnp.tanh(hk.Linear(6)(jnp.tanh(hk.Linear(6)(x)))))
        return outs[0] - outs[1]

    class Branch(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.tanh(nn.Dense(6)(jnp.tanh(nn.Dense(6)(x))))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Branch(name="first")(x) - Branch(name="second")(x)

    x = inputs(TEXT)
    src, dst = haiku_adapter.spec(net, x), linen_adapter.spec(Net(), x)
    with pytest.raises(MappingError, match=r"fit each other in several ways.*\[modules\]"):
        conventions("haiku", "linen").plan(src, dst)
    mapping = Mapping.of(modules={"left": "first", "right": "second"}) | conventions("haiku", "linen")
    plan = mapping.plan(src, dst)
    assert any(found[:2] == ("right/linear_1", "second/Dense_1") for found in plan.placements)
    old = randomised(src, 0)
    assert_close(Net().apply(linen_adapter.unflatten(plan.forward(old), dst.native), x), run_hk(net, old, x))


@pytest.mark.parametrize("name", CASES)
def test_each_framework_to_itself_is_the_identity(name):
    *_, src, dst = specs(name)
    for end in (src, dst):
        state = randomised(end, 0)
        plan = conventions(end.framework, end.framework).plan(end, end)
        assert plan.verdict == "exact"
        assert all(plan.forward(state)[p] is v for p, v in state.items())


@pytest.mark.parametrize("src", frameworks())
@pytest.mark.parametrize("dst", frameworks())
def test_conventions_are_data(src, dst):
    mapping = conventions(src, dst)
    assert Mapping.loads(mapping.dumps()) == mapping
    types = {row.type for part in mapping.parts for row in part.layers}
    everywhere = {
        "Linear",
        "LinearGeneral",
        "Conv",
        "DepthwiseConv",
        "ConvTranspose",
        "Embed",
        "MultiHeadAttention",
        "LSTM",
    }
    norms = {"BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"}
    joined = {row.type for part in mapping.parts for row in part.layers if not row.refuse}
    assert joined >= everywhere | norms | {"SimpleCell"}
    assert all(row.rules for part in mapping.parts for row in part.layers if not row.refuse)
    assert types - joined or src == dst


def test_an_unknown_framework():
    with pytest.raises(MappingError, match="Did you mean 'haiku'"):
        conventions("hiaku", "linen")


def test_only_parameters_are_parameters():
    *_, src, dst = specs("batch norm")
    new = conventions("haiku", "linen").plan(src, dst).forward(randomised(src, 0))
    assert sorted(new.filter(Param)) == ["params/bias", "params/scale"]


def test_a_user_adds_a_layer_as_data():
    row = {
        "type": "Mine",
        "src": [f"{Mine.__module__}.Mine"],
        "dst": ["linen.Dense"],
        "rules": [
            {"src": "params/{m:module}/w", "dst": "params/{m:module}/kernel"},
            {"src": "params/{m:module}/b", "dst": "params/{m:module}/bias"},
        ],
    }
    src = haiku_adapter.spec(lambda x: Mine()(x), inputs(TEXT))
    dst = linen_adapter.spec(nn.Dense(4), inputs(TEXT))
    dst = dataclasses.replace(dst, layers={})
    assert len((Mapping.of(layers=[row]) | conventions("haiku", "linen")).plan(src, dst)) == 2


def test_plans_of_whole_models_place_the_conv_net_of_the_demo():
    def net(x, train):
        for width in (4, 4, 8):
            x = hk.Conv2D(width, 3, with_bias=False)(x)
            x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, train))
        return hk.nets.MLP([8, 8, 3])(x.mean((1, 2)))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            for width in (4, 4, 8):
                x = nn.Conv(width, (3, 3), use_bias=False)(x)
                x = jax.nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
            x = x.mean((1, 2))
            for width in (8, 8):
                x = jax.nn.relu(nn.Dense(width)(x))
            return nn.Dense(3)(x)

    x = inputs(IMAGE)
    src, dst = haiku_adapter.spec(net, x, True), linen_adapter.spec(Net(), x, False)
    old = randomised(src, 5)
    new = conventions("haiku", "linen").plan(src, dst).forward(old)
    params, state = haiku_adapter.unflatten(old)
    wanted, _ = hk.transform_with_state(net).apply(params, state, None, x, False)
    assert_close(Net().apply(linen_adapter.unflatten(new, dst.native), x, False), wanted)
