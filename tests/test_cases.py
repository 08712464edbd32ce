"""Properties of every row of `tests.cases.CASES`, between every two frameworks that have the layer.

Every parameter is random first (never zeros or ones), so that a swapped, dropped or unused one shows.
"""

import dataclasses
import functools
import itertools

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bridges import haiku_adapter, linen_adapter, nnx_adapter
from bridges.core._errors import MappingError, UnsupportedError
from bridges.core._kind import Param
from bridges.core._state import State
from bridges.param_mapping import Mapping, Plan, conventions
from tests.cases import CASES, MASK, Dropped, SpectralLinen, some, true, unrolled

ADAPTERS = {"haiku": haiku_adapter, "linen": linen_adapter, "nnx": nnx_adapter}


@functools.cache
def spec_of(name, framework, double=False):
    case = CASES[name]
    if framework == "nnx":
        return nnx_adapter.spec(case.nnx)
    model = case.train if framework == "haiku" and case.train else getattr(case, framework)
    return ADAPTERS[framework].spec(model, case.inputs())


def randomised(spec, seed, dtype=None):
    """Every entry random; variances positive; random state as it is made."""
    rng = np.random.default_rng(seed)

    def value(path, x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return np.full(x.shape, 3, x.dtype)
        signs = 1 if "var" in path else rng.choice([-1, 1], x.shape)
        return np.asarray(rng.uniform(0.2, 1.2, x.shape) * signs, x.dtype)

    entries = {p: value(p, x) for p, x in spec.entries.items() if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)}
    return State(entries, spec.entries.declared)


def wide(spec):
    """The spec in float64."""
    entries = {
        p: jax.ShapeDtypeStruct(x.shape, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x
        for p, x in spec.entries.items()
    }
    return dataclasses.replace(spec, entries=State(entries, spec.entries.declared))


def plan_of(name, src, dst, double=False):
    ends = [spec_of(name, end, double) for end in (src, dst)]
    mapping = Mapping.of(modules=CASES[name].modules.get((src, dst), {})) | conventions(src, dst)
    return mapping.plan(*(wide(end) if double else end for end in ends))


def run(name, framework, state, x):
    """The output of the framework's own apply, for its own variables."""
    case = CASES[name]
    if framework == "haiku":
        params, rest = haiku_adapter.unflatten(state)
        return hk.transform_with_state(case.haiku).apply(params, rest, None, x)[0]
    if framework == "linen":
        variables = linen_adapter.unflatten(state)
        return case.linen.apply(variables, x, mutable=["batch_stats"])[0]
    model = case.nnx(nnx.Rngs(0))
    whole = nnx_adapter.flatten(model)
    nnx.update(model, nnx_adapter.unflatten(State({**whole, **state}, whole.declared), model))
    return model(x)


def close(got, wanted, tolerance):
    scale = max(float(np.max(np.abs(wanted))), 1e-3)
    np.testing.assert_allclose(np.asarray(got) / scale, np.asarray(wanted) / scale, rtol=0, atol=tolerance)


PAIRS = [(name, src, dst) for name, case in CASES.items() for src, dst in itertools.permutations(case.frameworks, 2)]


def each(pairs):
    return pytest.mark.parametrize("name,src,dst", pairs, ids=[f"{name}: {src} to {dst}" for name, src, dst in pairs])


PLANNED = [pair for pair in PAIRS if pair[1:] not in CASES[pair[0]].refused]
REFUSED = [pair for pair in PAIRS if pair[1:] in CASES[pair[0]].refused]


@each(PLANNED)
def test_outputs_and_gradients_are_equal(name, src, dst):
    """In float64 to 1e-9 where all layers keep it: the same function, not a near miss; else in float32."""
    double = CASES[name].x64
    with jax.enable_x64(double):
        plan = plan_of(name, src, dst, double)
        old = randomised(plan_source(plan), 0)
        x = CASES[name].inputs()
        x = x.astype(np.float64) if double and x.dtype == np.float32 else x
        tolerance = 1e-9 if double else 2e-5
        params, rest = jax.tree.map(jnp.asarray, old).partition(Param, ...)

        @jax.jit
        def before(params):
            return run(name, src, params.merge(rest), x)

        @jax.jit
        def after(params):
            return run(name, dst, plan.forward(params.merge(rest)), x)

        (wanted, pull), (got, pull_back) = jax.vjp(before, params), jax.vjp(after, params)
        close(got, wanted, tolerance)
        assert np.ptp(wanted) > 1e-3
        cotangent = np.random.default_rng(1).normal(size=wanted.shape).astype(wanted.dtype)
        (expected,), (gradients,) = pull(cotangent), pull_back(cotangent)
        top = max((float(np.max(np.abs(g))) for g in expected.values()), default=0)
        for path, gradient in expected.items():
            np.testing.assert_allclose(gradients[path] / top, gradient / top, rtol=0, atol=10 * tolerance, err_msg=path)


def plan_source(plan):
    @dataclasses.dataclass
    class Source:
        entries: State

    return Source(plan.src)


@each(PLANNED)
def test_verdict_and_round_trip(name, src, dst):
    plan = plan_of(name, src, dst)
    assert plan.verdict == CASES[name].verdicts.get((src, dst), "exact"), plan.reasons
    old = randomised(plan_source(plan), 0)
    new = plan.forward(old)
    assert all(isinstance(v, np.ndarray) for v in new.values())
    back = plan.inverse(new)
    if plan.verdict == "exact":
        assert all(np.array_equal(back[p], v) for p, v in old.items())
    elif plan.verdict == "exact to rounding":
        assert all(np.allclose(back[p], v, rtol=0, atol=2e-7) for p, v in old.items())
    assert all(np.allclose(plan.forward(back)[p], v, rtol=0, atol=2e-7) for p, v in new.items())


@each(REFUSED)
def test_refused_by_name(name, src, dst):
    with pytest.raises(MappingError, match=CASES[name].refused[src, dst]):
        plan_of(name, src, dst)


CYCLES = [
    name
    for name, case in CASES.items()
    if len(case.frameworks) == 3 and not case.refused and "exact for" not in str(case.verdicts.values())
]


@pytest.mark.parametrize("name", CYCLES)
def test_a_cycle_through_all_three_ends_where_it_began(name):
    state = start = randomised(spec_of(name, "haiku"), 0)
    for src, dst in (("haiku", "linen"), ("linen", "nnx"), ("nnx", "haiku")):
        state = plan_of(name, src, dst).forward(state)
    exact = not CASES[name].verdicts
    assert all(np.array_equal(v, start[p]) if exact else np.allclose(v, start[p], atol=2e-7) for p, v in state.items())


TRAINED = ["linear, several axes", "conv 2-D transposed, VALID, stride 2, kernel transposed", "layer norm, two axes"]
TRAINED += ["attention", "LSTM", "LSTM, optimized", "vanilla RNN, one bias", "conv LSTM", "group norm"]


@each([pair for pair in PLANNED if pair[0] in TRAINED and pair[1:] in (("haiku", "linen"), ("nnx", "haiku"))])
def test_ten_more_steps_of_training_are_equal(name, src, dst):
    """Five steps of Adam, then the state is carried across, then ten more at both ends."""
    plan, tx, x = plan_of(name, src, dst), optax.adam(1e-2), CASES[name].inputs()

    def train(framework, params, state, steps):
        @jax.jit
        def step(params, state):
            gradient = jax.grad(lambda p: jnp.sum(jnp.sin(run(name, framework, p, x))))(params)
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        for _ in range(steps):
            params, state = step(params, state)
        return params, state

    params = jax.tree.map(jnp.asarray, randomised(plan_source(plan), 0))
    params, state = train(src, params, tx.init(params), 5)
    there = plan.forward(params)
    carried = plan.optimizer(state, params, there)
    wanted = plan.forward(train(src, params, state, 10)[0])
    got = train(dst, there, carried, 10)[0]
    for path, value in wanted.items():
        # Where a gradient is zero but for rounding, as the attention's key bias's, Adam makes steps of the noise.
        if "key/b" not in path:
            np.testing.assert_allclose(got[path], value, rtol=0, atol=2e-4, err_msg=path)


def test_merged_biases_have_no_optimizer_state():
    plan = plan_of("vanilla RNN", "haiku", "linen")
    params = randomised(plan_source(plan), 0)
    with pytest.raises(UnsupportedError, match="train on their own at one end"):
        plan.optimizer(optax.adam(1e-2).init(params), params, plan.forward(params))


WRONG = {
    "group norm, groups": (lambda x: hk.GroupNorm(2)(x), nn.GroupNorm(4, **true), "pass num_groups=2"),
    "group norm, variance": (lambda x: hk.GroupNorm(2)(x), nn.GroupNorm(2, epsilon=1e-5), "use_fast_variance=False"),
    "group norm, axes": (lambda x: hk.GroupNorm(2, axis=(1, 2))(x), nn.GroupNorm(2, **true), "has all_but_batch True"),
    "instance norm, epsilon": (
        lambda x: hk.InstanceNorm(True, True)(x), nn.InstanceNorm(use_fast_variance=False), "pass epsilon=1e-05",
    ),
    "RMS norm, epsilon": (lambda x: hk.RMSNorm(-1)(x), nn.RMSNorm(), "pass epsilon=1e-05"),
    "batch norm, axis": (
        lambda x: hk.BatchNorm(True, True, 0.9, data_format="NC...")(x, True),
        nn.BatchNorm(use_running_average=True, momentum=0.9),
        "has channels_last",
    ),
    "batch norm, devices": (
        lambda x: hk.BatchNorm(True, True, 0.9)(x, True),
        nn.BatchNorm(use_running_average=True, momentum=0.9, axis_name="devices"),
        "one device instead of all",
    ),
    "conv, mask": (lambda x: hk.Conv2D(5, 3, mask=MASK)(x), nn.Conv(5, (3, 3)), "has mask False"),
    "conv transposed, stride": (
        lambda x: hk.Conv2DTranspose(4, 3, 2)(x), nn.ConvTranspose(4, (3, 3)), "pass strides=2",
    ),
    "conv transposed, output shape": (
        lambda x: hk.Conv2DTranspose(4, 3, 2, output_shape=(7, 7))(x),
        nn.ConvTranspose(4, (3, 3), (2, 2)),
        "write it out, as pairs",
    ),
    "conv transposed, dilation": (
        lambda x: hk.Conv2DTranspose(4, 3)(x), nn.ConvTranspose(4, (3, 3), kernel_dilation=(2, 2)), "kernel_dilation=1",
    ),
    "attention, normalised": (
        lambda x: hk.MultiHeadAttention(3, 2, w_init=some)(x, x, x),
        nn.MultiHeadDotProductAttention(3, qkv_features=6, out_features=6, normalize_qk=True),
        "normalize_qk=False",
    ),
    "vanilla RNN, activation": (
        unrolled(lambda: hk.VanillaRNN(4)), nn.RNN(nn.SimpleCell(4)), "pass activation_fn='relu'",
    ),
    "LSTM, activation": (
        unrolled(lambda: hk.LSTM(4)), nn.RNN(nn.LSTMCell(4, activation_fn=jax.nn.relu)), "pass activation_fn='tanh'",
    ),
    "spectral norm": (
        lambda x: hk.Linear(4)(x), SpectralLinen(), "which cannot be converted: Haiku normalises a weight",
    ),
    "bias": (lambda x: hk.Bias()(x), nn.Dense(4), "haiku.Bias, which cannot be converted: No Flax layer"),
    "MGU": (lambda x: hk.Linear(4)(x), nn.RNN(nn.MGUCell(4)), "linen.MGUCell, which cannot be converted"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_differs_is_refused_with_the_reason(name):
    f, module, reason = WRONG[name]
    image = any(word in name for word in ("group", "instance", "batch norm", "conv", "spectral"))
    x = np.ones((2, 4, 4, 4) if image else (2, 5, 6), np.float32)
    src, dst = haiku_adapter.spec(f, x), linen_adapter.spec(module, x)
    with pytest.raises(MappingError, match=reason):
        conventions("haiku", "linen").plan(src, dst)


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].shape is not int and len(CASES[n].frameworks) == 3])
def test_a_wrong_plan_shows_in_the_outputs(name):
    """The properties above can fail: an entry that is changed on its way changes the outputs."""
    case = CASES[name]
    pair = next(p for p in (("haiku", "linen"), ("linen", "nnx"), ("nnx", "linen")) if p not in case.refused)
    plan, x = plan_of(name, *pair), case.inputs()
    new = jax.tree.map(jnp.asarray, plan.forward(randomised(plan_source(plan), 0)))
    wanted = run(name, pair[1], new, x)
    shifted = {p for p in new if p.endswith("key/bias")}  # shifts all logits of a query alike: never reaches the output
    if "in training" in name:
        shifted |= {p for p in new if p.startswith("batch_stats/")}
    for path in new.keys() - shifted:
        with pytest.raises(AssertionError):
            close(run(name, pair[1], new | {path: new[path] + 0.5}, x), wanted, 2e-5)


def test_random_state_is_left_to_the_target():
    plan = plan_of("dropout's random state", "haiku", "nnx")
    assert plan.dst_random == ("RngCount/drop/rngs/count", "RngKey/drop/rngs/key")
    assert "random state of the target, left alone: RngCount" in str(plan)
    assert Plan.from_json(plan.to_json()) == plan
    old = randomised(spec_of("dropout's random state", "haiku"), 0)
    model = Dropped(nnx.Rngs(3))
    whole = nnx_adapter.flatten(model)
    nnx.update(model, nnx_adapter.unflatten(whole | plan.forward(old), model))
    assert np.array_equal(model.first.kernel[...], old["params/linear/w"])
    # with the random state and without it
    for state in (plan.forward(old), whole | plan.forward(old)):
        assert all(np.array_equal(plan.inverse(state)[p], v) for p, v in old.items())
    same = conventions("nnx", "nnx").plan(nnx_adapter.spec(Dropped), nnx_adapter.spec(Dropped))
    assert same.dst_random == () and "RngKey/drop/rngs/key" in same.forward(whole)


def test_there_are_many():
    assert len(CASES) >= 50 and len(PAIRS) >= 200
