"""Every transformation of optax under every kind of plan: the next ten updates are the source's, or it is refused."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from bridges.core._errors import StructureError, UnsupportedError
from bridges.core._flat import flatten
from bridges.mapping._proof import prove
from bridges.param_mapping import Mapping
from tests.light import light
from tests.mapping.optimizers import CAUTIOUS, KINDS, OURS, REFUSED, ROWS, UNSEEN, plan_of, slope


def loss(params, i):
    """Any function of the source's elements; gradients differ in size along each axis."""
    return sum(jnp.sum(slope(params[k].shape) * jnp.sin(3 * params[k] + i + n)) for n, k in enumerate(sorted(params)))


def evaluated(params, i):
    """Returns `loss` and its gradients, by NumPy: nothing to compile."""
    value, grads = 0.0, {}
    for n, k in enumerate(sorted(params)):
        scale, x = slope(params[k].shape), 3 * np.asarray(params[k]) + np.float32(i + n)
        value, grads[k] = value + (scale * np.sin(x)).sum(), scale * 3 * np.cos(x)
    return jnp.float32(value), grads


def moved(plan, grads):
    """Returns the target's gradients for the source's: what the ops here do to differences."""
    here, zero = plan.forward(grads), plan.forward({k: np.zeros_like(g) for k, g in grads.items()})
    return {k: here[k] - zero[k] for k in here}


def trainer(row, tx, function):
    """Returns the function that takes one step; whatever a transformation may ask for is given under optax's names."""
    parameters = inspect.signature(tx.update).parameters.values()
    names = {p.name for p in parameters}
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def update(grads, state, params, value, i):
        def value_fn(params, obj_fn=None, grad_fn=None):
            return function(params, i)

        def grad_fn(params, _):
            return jax.grad(function)(params, i)

        extra = {"value": value, "grad": grads, "value_fn": value_fn, "obj_fn": value_fn, "grad_fn": grad_fn}
        return tx.update(grads, state, params, **{k: v for k, v in extra.items() if everything or k in names})

    if row.compiled:
        update = light(update)

    def step(grads, params, state, value, i):
        updates, state = update(jax.tree.map(jnp.asarray, grads), state, params, value, jnp.float32(i))
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def planned(kinds):
    return plan_of(kinds)


def outcome(name, kinds):
    """Returns how far the updates at both ends differ, relative to their way, and the refusal if there was one."""
    row = ROWS[name]
    tx = row.make()
    plan, params = planned(tuple(kinds))
    state = tx.init(params)
    step = trainer(row, tx, loss)
    for i in range(5):
        value, grads = evaluated(params, i)
        params, state = step(grads, params, state, value, i)
    theirs = {k: jnp.asarray(v) for k, v in plan.forward(params).items()}
    try:
        converted = plan.optimizer(state, params, theirs)
    except UnsupportedError as err:
        return None, str(err)
    before, their_step = plan.forward(params), trainer(row, tx, lambda p, i: loss(plan.inverse(p), i))
    for i in range(5, 15):
        value, grads = evaluated(params, i)
        their_value, their_grads = evaluated(plan.inverse(theirs), i)
        params, state = step(grads, params, state, value, i)
        theirs, converted = their_step(moved(plan, their_grads), theirs, converted, their_value, i)
    off = 0.0
    for path, want in plan.forward(params).items():
        way, rounding = np.abs(want - before[path]).max(), 40 * np.finfo(np.float32).eps * np.abs(want).max()
        off = max(off, float((np.abs(theirs[path] - want).max() - rounding) / (way or 1)))
    return off, ""


def equal_kinds(name):
    kinds = ("move", "cut", "sign") if ROWS[name].few else KINDS
    return [kind for kind in kinds if kind not in ROWS[name].exceptions]


# Norms over several leaves are summed in another order, and compiled code contracts operations differently: a few units in
# the last place of a sum, which the loss's curvature lets grow over ten steps. A wrong state or norm gives several per cent.
CLOSE = 1e-3


@pytest.mark.parametrize("name", [name for name in ROWS if equal_kinds(name)])
def test_the_next_ten_updates_are_the_sources(name):
    off, refusal = outcome(name, equal_kinds(name))
    assert not refusal
    assert off < CLOSE


def kinds_that_are(name, *marks):
    return [kind for kind, mark in ROWS[name].exceptions.items() if mark in marks]


EXCEPTIONS = [(name, kind) for name in ROWS for kind in kinds_that_are(name, REFUSED, CAUTIOUS, OURS)]


@pytest.mark.parametrize("name", dict(EXCEPTIONS))
def test_what_the_state_tells_is_refused_before_an_array_is_read(name):
    for kind in kinds_that_are(name, REFUSED, CAUTIOUS, OURS):
        plan, params = planned((kind,))
        state = jax.eval_shape(ROWS[name].make().init, params)
        named = rf"{kind}/|draws noise|not in the structure"
        with pytest.raises(UnsupportedError, match=named):
            plan.optimizer_plan(state, params, plan.dst)


# Hutchinson's signs do not matter to a loss whose Hessian is diagonal, which this one's is: Sophia's noise would not show.
@pytest.mark.parametrize("name", [name for name in ROWS if kinds_that_are(name, REFUSED) and name != "sophia"])
def test_a_refusal_is_true(name):
    """No state could be right: even from fresh states at both ends the transformation goes elsewhere."""
    kinds = kinds_that_are(name, REFUSED)
    kinds = kinds if len(kinds) < len(KINDS) else ["rename"]  # noise, which needs no more to change
    plan, params = planned(tuple(kinds))
    tx, theirs = ROWS[name].make(), {k: jnp.asarray(v) for k, v in plan.forward(params).items()}
    with pytest.raises(UnsupportedError, match="differ") as err:
        prove(plan, (tx, tx), (tx.init(params), tx.init(theirs)), (params, theirs))
    assert all(f"'{kind}/" in str(err.value) for kind in kinds)


@pytest.mark.parametrize("name", [n for n in ROWS if kinds_that_are(n, UNSEEN)])
def test_what_no_state_tells_is_found_by_trying(name):
    kinds = kinds_that_are(name, UNSEEN)
    plan, params = planned(tuple(kinds))
    tx = ROWS[name].make()
    state = tx.init(params)
    assert plan.optimizer_plan(state, params, plan.dst).assumes
    with pytest.raises(UnsupportedError, match="differ") as err:
        plan.optimizer(state, params, plan.dst, tx)
    assert all(f"'{kind}/" in str(err.value) for kind in kinds)


@pytest.mark.parametrize("name", [n for n in ROWS if kinds_that_are(n, CAUTIOUS)])
def test_what_is_refused_for_caution_is_carried_when_tried(name):
    plan, params = planned(tuple(kinds_that_are(name, CAUTIOUS)))
    tx = ROWS[name].make()
    plan.optimizer(tx.init(params), params, plan.dst, tx)


# Public names that are contained in a row, or make no transformation of parameters.
ELSEWHERE = {
    **{f"scale_by_{n}": n for n in (
        "acprop", "adadelta", "adam", "adamax", "adan", "ademamix", "adopt", "amsgrad", "cocob", "galore", "lbfgs", "lion",
        "madgrad", "muon", "novograd", "radam", "rprop", "simplified_ademamix", "sm3", "yogi",
    )},
    "scale_by_belief": "adabelief", "scale_by_learning_rate": "sgd",
    "scale_by_optimistic_gradient": "optimistic_gradient_descent",
    "scale_by_polyak": "polyak_sgd", "scale_by_rms": "scale_by_rms, counted", "scale_by_rss": "adagrad",
    "scale_by_sign": "sign_sgd", "scale_by_stddev": "rmsprop, centered", "scale_by_trust_ratio": "lamb",
    "scale": "ema", "clip": "chain", "identity": "chain", "set_to_zero": "freeze",
    "stateless": "clip_by_block_rms", "stateless_with_tree_map": "sign_sgd", "with_extra_args_support": "chain",
    "lookahead": "test_lookahead", "GradientTransformation": "",
    "GradientTransformationExtraArgs": "", "WrappedSchedule": "inject_hyperparams, stateful",
    "inject_stateful_hyperparams": "inject_hyperparams, stateful", "optimistic_adam": "optimistic_adam_v2",
    "dpsgd": "differentially_private_aggregate",
}  # fmt: skip


def test_the_rows_are_all_of_optax():
    """A new release's transformations show here: give each a row."""
    found = set()
    for module in (optax, contrib):
        for name in dir(module):
            function = getattr(module, name)
            if inspect.isclass(function):
                if hasattr(function, "init") and hasattr(function, "update"):
                    found.add(name)
            elif (
                inspect.isfunction(function)
                and not name.startswith("_")
                and "GradientTransformation" in str(inspect.signature(function).return_annotation)
            ):
                found.add(name)
    rows = {name.partition(",")[0] for name in ROWS}
    assert found - rows - ELSEWHERE.keys() == set()
    assert {row for row in ELSEWHERE.values() if row and not row.startswith("test_")} <= ROWS.keys()


def test_lookahead():
    """It trains pairs of parameters: the state is converted over the fast ones, and each of the pair by the plan."""
    tx = optax.lookahead(optax.adam(1e-1), 3, 0.5)
    plan, params = planned(("move", "cut"))
    pair = optax.LookaheadParams.init_synced(params)
    state = tx.init(pair)

    def run(pair, state, there, steps):
        for i in steps:
            grads = evaluated(plan.inverse(pair.fast) if there else pair.fast, i)[1]
            grads = jax.tree.map(jnp.asarray, moved(plan, grads) if there else grads)
            updates, state = tx.update(grads, state, pair)
            pair = optax.apply_updates(pair, updates)
        return pair, state

    pair, state = run(pair, state, False, range(5))
    theirs = optax.LookaheadParams(*({k: jnp.asarray(v) for k, v in plan.forward(p).items()} for p in pair))
    converted = plan.optimizer(state, pair.fast, theirs.fast)
    assert jax.tree.structure(converted) == jax.tree.structure(tx.init(theirs))
    pair, _ = run(pair, state, False, range(5, 15))
    theirs, _ = run(theirs, converted, True, range(5, 15))
    for got, native in zip(theirs, pair, strict=True):
        want = plan.forward(native)
        assert all(np.array_equal(got[k], want[k]) for k in want)


def test_real_and_imaginary_parts():
    tx = contrib.split_real_and_imaginary(optax.adam(1e-2))
    src = {"a": jnp.asarray([[1 + 2j, 3 - 1j, 2j]]), "b": jnp.ones((2, 3))}
    dst = {"x": jax.ShapeDtypeStruct((3, 1), np.complex64), "y": jax.ShapeDtypeStruct((6,), np.float32)}
    rules = [{"src": "a", "dst": "x", "ops": ["transpose"]}, {"src": "b", "dst": "y", "ops": ["reshape"]}]
    plan = Mapping.of(rules=rules).plan(src, dst)
    _, state = tx.update(src, tx.init(src), src)
    theirs = {k: jnp.asarray(v) for k, v in plan.forward(src).items()}
    converted = plan.optimizer(state, src, theirs)
    _, wanted = tx.update(theirs, tx.init(theirs), theirs)
    assert jax.tree.structure(converted) == jax.tree.structure(wanted)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(converted), jax.tree.leaves(wanted), strict=True))


def test_a_flattened_lbfgs():
    """A history of vectors of all parameters."""
    tx = optax.flatten(optax.scale_by_lbfgs(2))
    plan, params = planned(("rename", "move", "cut"))
    state = tx.init(params)
    for i in range(3):
        updates, state = tx.update(jax.tree.map(jnp.asarray, evaluated(params, i)[1]), state, params)
        params = optax.apply_updates(params, optax.tree.scale(-0.01, updates))
    theirs = {k: jnp.asarray(v) for k, v in plan.forward(params).items()}
    grads = evaluated(params, 9)[1]
    want, _ = tx.update(jax.tree.map(jnp.asarray, grads), state, params)
    got, _ = tx.update(jax.tree.map(jnp.asarray, moved(plan, grads)), plan.optimizer(state, params, theirs), theirs)
    for path, wanted in plan.forward(want).items():  # sums over all elements, in another order
        np.testing.assert_allclose(got[path], wanted, rtol=1e-4, atol=1e-6)


def test_tx_must_be_that_of_the_state():
    plan, params = planned(("move",))
    with pytest.raises(StructureError, match="tx makes another state at the source"):
        plan.optimizer(optax.adam(1e-2).init(params), params, plan.dst, optax.sgd(1e-2, 0.9))
    with pytest.raises(UnsupportedError, match=r"tx could not be run at the source.*TypeError"):
        plan.optimizer((), params, plan.dst, optax.GradientTransformation(lambda p: (), lambda: None))


def test_labels_by_name_need_a_transformation_an_end():
    plan, params = planned(("rename",))

    def make(name):
        labels = {"a": optax.adam(1e-2), "b": optax.sgd(1e-2, 0.9)}
        return optax.multi_transform(labels, lambda tree: {k: "a" if k.endswith(name) else "b" for k in tree})

    state, theirs = make("/a").init(params), dict(plan.dst)
    new = plan.optimizer(state, params, theirs, make("/a"), dst_tx=make("/c1"))
    assert jax.tree.structure(new) == jax.tree.structure(jax.eval_shape(make("/c1").init, theirs))
    with pytest.raises(StructureError, match="tx makes another state at the target"):
        plan.optimizer(state, params, theirs, make("/a"))


class Lazy:
    """A leaf of a checkpoint, as `converters` has them; reading is counted."""

    def __init__(self, x):
        self.x, self.shape, self.dtype, self.read = np.asarray(x), x.shape, x.dtype, 0

    def __array__(self, dtype=None, copy=None):
        self.read += 1
        return self.x


def test_leaves_are_read_one_at_a_time_and_only_where_an_op_needs_them():
    plan, params = planned(("rename", "move"))
    tx = optax.adam(1e-2)
    state = jax.tree.map(lambda x: Lazy(x + 1), tx.init(params))
    made = plan.optimizer_plan(state, params, plan.dst)
    flat, written = flatten(state), {}
    assert not any(leaf.read for leaf in flat.values())
    for item in made:
        written.update(zip(item.targets, item.forward([flat[path] for path in item.sources]), strict=True))
    assert {path.rpartition("%2F")[2] for path, leaf in flat.items() if leaf.read} == {"dense", "deconv"}
    assert all(leaf.read <= 1 for leaf in flat.values())
    whole, streamed = plan.optimizer(state, params, plan.dst), made.unflatten(written)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(streamed), strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))
    assert "[0]" not in str(made) and "transpose" in str(made)
    with pytest.raises(StructureError, match="planned optimizer state"):
        made.forward(())


def test_a_state_stored_without_its_classes():
    """What msgpack and Orbax give back without a target: dictionaries of field names."""
    plan, params = planned(("heads", "cut"))
    state = {"0": {"count": jnp.int32(3), "mu": params, "nu": params}, "1": {}}
    new = plan.optimizer(state, params, plan.dst)
    assert new["0"]["mu"]["heads/query"].shape == (4, 2, 2) and new["1"] == {}
    plan, params = planned(("sign",))
    with pytest.raises(UnsupportedError, match="known by their classes"):
        plan.optimizer({"0": {"mu": params}}, params, plan.dst)
    plan, params = planned(("heads",))
    with pytest.raises(UnsupportedError, match="Muon"):
        plan.optimizer({"count": 1, "mu": params, "ns_coeffs": jnp.ones((5, 3))}, params, plan.dst)


def test_every_problem_is_told_at_once():
    plan, params = planned(("cut", "stack", "shift"))
    state = jax.eval_shape(optax.adafactor(1e-2, momentum=0.9).init, params)
    with pytest.raises(UnsupportedError, match="cannot be carried") as err:
        plan.optimizer(state, params, plan.dst)
    assert all(f"{kind}/" in str(err.value) for kind in ("cut", "stack", "shift"))


def test_a_scale_needs_an_optimizer_that_scales_along():
    src, dst = {"w": jnp.asarray([[0.5, 2.0], [1.0, 3.0]])}, {"w": jax.ShapeDtypeStruct((2, 2), np.float32)}
    plan = Mapping.of(rules=[{"src": "w", "dst": "w", "ops": [{"op": "scale", "value": 4}]}]).plan(src, dst)
    for tx in (optax.adam(1e-2), optax.sgd(1e-2)):
        with pytest.raises(UnsupportedError, match="do not scale along"):
            plan.optimizer(tx.init(src), src, dst)
        with pytest.raises(UnsupportedError, match="differ"):
            plan.optimizer(tx.init(src), src, dst, tx)
    tx = optax.lamb(1e-2, eps=0.0)  # as large as the parameter, whatever the unit
    _, state = tx.update(src, tx.init(src), src)
    new = plan.optimizer(state, src, dst, tx)
    assert np.array_equal(new[0].mu["w"], state[0].mu["w"] / 4) and np.array_equal(
        new[0].nu["w"], state[0].nu["w"] / 16
    )
