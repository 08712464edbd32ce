"""Properties of every row of `tests.cases.CASES`, between every two frameworks that have the layer.

Every parameter is random first (never zeros or ones), so that a swapped, dropped or unused one shows.
"""

import dataclasses
import functools
import itertools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bridges import haiku_adapter, linen_adapter, nnx_adapter
from bridges.core._errors import MappingError
from bridges.core._kind import Param
from bridges.core._state import State
from bridges.param_mapping import Mapping, conventions
from tests.cases import CASES

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


def test_there_are_many():
    assert len(CASES) >= 50 and len(PAIRS) >= 200
