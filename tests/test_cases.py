"""Properties of every row of `tests.cases.CASES`, between every two frameworks that have the layer.

Every parameter is random first (never zeros or ones), so that a swapped, dropped or unused one shows. What is compiled
is compiled once a row: one test does all that needs a row's models to run.
"""

import contextlib
import dataclasses
import functools
import itertools

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
from bridges.param_mapping import Plan, conventions
from tests.case import EVALUATION, NOT_EXACT, ROUNDING
from tests.cases import CASES
from tests.layers.wrappers import Dropped
from tests.light import light

ADAPTERS = {"haiku": haiku_adapter, "linen": linen_adapter, "nnx": nnx_adapter}
# Adam's step is the gradient's sign where eps is far below it: of a gradient that is zero but for rounding, noise.
TX = optax.adam(1e-2, eps=1e-3)


@functools.cache
def spec_of(name, framework):
    case = CASES[name]
    model = case.train if framework == "haiku" and case.train else getattr(case, framework)
    with jax.enable_x64(False):
        return ADAPTERS[framework].spec(model, *([] if framework == "nnx" else [case.inputs()]))


def randomised(entries, seed, constants=()):
    """Every entry random; what is no parameter positive (variances, counts); random state as it is made."""
    rng = np.random.default_rng(seed)

    def value(path, x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return np.full(x.shape, 3, x.dtype)
        signs = rng.choice([-1, 1], x.shape) if path.startswith("params/") else 1
        return np.asarray(rng.uniform(0.2, 1.2, x.shape) * signs, x.dtype)

    made = {p: value(p, x) for p, x in entries.items() if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)}
    made.update(constants)
    return State(made, entries.declared)


def wide(spec):
    """The spec in float64."""
    entries = {
        p: jax.ShapeDtypeStruct(x.shape, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x
        for p, x in spec.entries.items()
    }
    return dataclasses.replace(spec, entries=State(entries, spec.entries.declared))


def start(name, plan):
    """A state of the plan's source to begin with."""
    constants = {p: v.astype(plan.src[p].dtype) for p, v in CASES[name].constants.items() if p in plan.src}
    return randomised(plan.src, 0, constants)


def plan_of(name, src, dst, double=False):
    ends = [spec_of(name, end) for end in (src, dst)]
    mapping = CASES[name].user_mapping(src, dst) | conventions(src, dst)
    return mapping.plan(*(wide(end) if double else end for end in ends))


def run(name, framework, state, x):
    """Returns output and new state of the framework's own apply, for its own variables."""
    case = CASES[name]
    if framework == "haiku":
        params, rest = haiku_adapter.unflatten(state)
        out, new = hk.transform_with_state(case.haiku).apply(params, rest, None, x)
        return out, State({**state, **haiku_adapter.flatten(params, new)}, state.declared)
    if framework == "linen":
        variables = linen_adapter.unflatten(state)
        out, new = case.linen.apply(variables, x, mutable=[c for c in variables if c != "params"])
        return out, State({**state, **linen_adapter.flatten(new)}, state.declared)
    model = case.nnx(nnx.Rngs(0))
    whole = nnx_adapter.flatten(model)
    nnx.update(model, nnx_adapter.unflatten(State({**whole, **state}, whole.declared), model))
    out = model(x)
    return out, State({p: v for p, v in nnx_adapter.flatten(model).items() if p in state}, state.declared)


class Model:
    """A row in one framework: its entries and one compiled training step."""

    def __init__(self, name, framework, double):
        self.name, self.framework = name, framework
        self.step = light(self._step)
        self.shape = None

    def weights(self, state, x):
        """Returns random weights for the outputs."""
        if self.shape is None:
            self.shape = jax.eval_shape(lambda state: run(self.name, self.framework, state, x)[0], state)
        return np.random.default_rng(1).normal(size=self.shape.shape).astype(self.shape.dtype)

    def _step(self, params, rest, opt, x, weights):
        def loss(params, x):
            out, new = run(self.name, self.framework, params.merge(rest), x)
            return jnp.sum(weights * out) + jnp.sum(jnp.sin(out)), (out, new)

        real = jnp.issubdtype(x.dtype, jnp.inexact)
        grad = jax.value_and_grad(loss, (0, 1) if real else (0,), has_aux=True)
        (_, (out, new)), gradients = grad(params, x)
        updates, opt = TX.update(gradients[0], opt, params)
        new = State({p: new[p] for p in rest}, rest.declared)
        return out, gradients, optax.apply_updates(params, updates), new, opt


def close(got, wanted, tolerance, what="output"):
    scale = max(float(np.max(np.abs(wanted), initial=0)), 1e-3)
    np.testing.assert_allclose(
        np.asarray(got) / scale, np.asarray(wanted) / scale, rtol=0, atol=tolerance, err_msg=what
    )


PAIRS = [(name, src, dst) for name, case in CASES.items() for src, dst in itertools.permutations(case.frameworks, 2)]


def each(pairs):
    return pytest.mark.parametrize("name,src,dst", pairs, ids=[f"{name}: {src} to {dst}" for name, src, dst in pairs])


PLANNED = [pair for pair in PAIRS if pair[1:] not in CASES[pair[0]].refused]
REFUSED = [pair for pair in PAIRS if pair[1:] in CASES[pair[0]].refused]


@contextlib.contextmanager
def about(text):
    try:
        yield
    except Exception as err:
        err.add_note(text)
        raise


@pytest.mark.parametrize("name", dict.fromkeys(name for name, *_ in PLANNED))
def test_the_same_function_and_the_same_training(name):
    """Outputs, gradients and ten steps of training: in float64 to 1e-9 where all layers keep it, so that it is the same
    function and not a near miss; else in float32."""
    case = CASES[name]
    with jax.enable_x64(case.x64):
        models = {framework: Model(name, framework, case.x64) for framework in case.frameworks}
        for _, src, dst in (pair for pair in PLANNED if pair[0] == name):
            with about(f"{name}: {src} to {dst}"):
                compare(case, plan_of(name, src, dst, case.x64), models[src], models[dst])


def compare(case, plan, src, dst):
    tolerance = 1e-9 if case.x64 else 2e-5
    x = case.inputs()
    x = x.astype(np.float64) if case.x64 and x.dtype == np.float32 else x
    params, rest = jax.tree.map(jnp.asarray, start(src.name, plan)).partition(Param, ...)
    there, theirs = jax.tree.map(jnp.asarray, plan.forward(params.merge(rest))).partition(Param, ...)
    weights = src.weights(params.merge(rest), x)
    opt, opt_there = TX.init(params), TX.init(there)
    wanted, expected, *moved = src.step(params, rest, opt, x, weights)
    got, gradients, *_ = dst.step(there, theirs, opt_there, x, weights)
    close(got, wanted, tolerance)
    assert np.ptp(wanted) > 1e-3
    if len(gradients) == 2:
        close(gradients[1], expected[1], 10 * tolerance, "gradient of the input")
    _, pull = jax.vjp(lambda p: plan.forward(p.merge(rest)).partition(Param, ...)[0], params)
    (back,) = pull(gradients[0])
    top = max((float(np.max(np.abs(g))) for g in expected[0].values()), default=1)
    for path, gradient in expected[0].items():
        np.testing.assert_allclose(back[path] / top, gradient / top, rtol=0, atol=10 * tolerance, err_msg=path)
    wrong_plans_show(dst, there, theirs, opt_there, x, weights, got)
    if plan.verdict in (EVALUATION, NOT_EXACT):
        assert plan.reasons
        return
    params, rest, opt = moved
    there, theirs = jax.tree.map(jnp.asarray, plan.forward(params.merge(rest))).partition(Param, ...)
    opt_there = plan.optimizer(opt, params, there) if params else opt_there
    for _ in range(10):
        *_, params, rest, opt = src.step(params, rest, opt, x, weights)
        *_, there, theirs, opt_there = dst.step(there, theirs, opt_there, x, weights)
    ended = there.merge(theirs)
    for path, value in plan.forward(params.merge(rest)).items():
        if jnp.issubdtype(value.dtype, jnp.inexact):
            close(ended[path], value, 100 * tolerance, f"{path} after ten steps")


def wrong_plans_show(model, params, rest, opt, x, weights, wanted):
    """The comparison can fail: an entry that is changed on its way changes the outputs."""
    for path in params:
        if not path.endswith(("key/bias", "key/b")):  # shifts all logits of a query alike: never reaches the output
            shift = np.random.default_rng(2).uniform(0.2, 0.8, params[path].shape).astype(params[path].dtype)
            moved = State({**params, path: params[path] + shift}, params.declared)
            got = model.step(moved, rest, opt, x, weights)[0]
            assert np.max(np.abs(got - wanted)) > 1e-4 * np.max(np.abs(wanted)), f"{path} does not reach the output"


@each(PLANNED)
def test_verdict_and_round_trip(name, src, dst):
    plan = plan_of(name, src, dst)
    assert plan.verdict == CASES[name].verdicts.get((src, dst), "exact"), plan.reasons
    old = start(name, plan)
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
    if len(case.frameworks) == 3 and not case.refused and not {EVALUATION, NOT_EXACT} & {*case.verdicts.values()}
]


@pytest.mark.parametrize("name", CYCLES)
def test_a_cycle_through_all_three_ends_where_it_began(name):
    state = start = randomised(spec_of(name, "haiku").entries, 0)
    for src, dst in (("haiku", "linen"), ("linen", "nnx"), ("nnx", "haiku")):
        state = plan_of(name, src, dst).forward(state)
    exact = ROUNDING not in CASES[name].verdicts.values()
    assert all(np.array_equal(v, start[p]) if exact else np.allclose(v, start[p], atol=2e-7) for p, v in state.items())


def test_merged_biases_have_no_optimizer_state():
    plan = plan_of("vanilla RNN", "haiku", "linen")
    params = start("vanilla RNN", plan)
    with pytest.raises(UnsupportedError, match="train on their own at one end"):
        plan.optimizer(optax.adam(1e-2).init(params), params, plan.forward(params))


def test_random_state_is_left_to_the_target():
    plan = plan_of("dropout's random state", "haiku", "nnx")
    assert plan.dst_random == ("RngCount/drop/rngs/count", "RngKey/drop/rngs/key")
    assert "random state of the target, left alone: RngCount" in str(plan)
    assert Plan.from_json(plan.to_json()) == plan
    old = randomised(spec_of("dropout's random state", "haiku").entries, 0)
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
    assert len(CASES) >= 100 and len(PLANNED) >= 400
