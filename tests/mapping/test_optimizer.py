"""Optimizer state: after conversion the next ten updates are those of the source, or the refusal has a name."""

import flax
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bridges import haiku_adapter, linen_adapter
from bridges.core._errors import StructureError, UnsupportedError
from bridges.core._state import State
from bridges.param_mapping import Mapping, conventions
from tests.light import light


def net(x):
    x = hk.Conv2D(4, 3, with_bias=False)(x)
    x = hk.BatchNorm(True, True, 0.9)(x, True)
    x = x.reshape(x.shape[0], -1, 4)
    x = hk.MultiHeadAttention(2, 3, w_init=hk.initializers.RandomNormal(), model_size=4, with_bias=False)(x, x, x)
    return hk.Linear(3)(x)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        x = nn.BatchNorm(False, momentum=0.9)(x)
        x = x.reshape(x.shape[0], -1, 4)
        x = nn.MultiHeadDotProductAttention(2, qkv_features=6, out_features=4, use_bias=False)(x, x, x)
        return nn.Dense(3)(x)


X = np.ones((2, 4, 4, 3), np.float32)
SRC, DST = haiku_adapter.spec(net, X), linen_adapter.spec(Net(), X)
PLAN = conventions("haiku", "linen").plan(SRC, DST)
BACK = conventions("linen", "haiku").plan(DST, SRC)


def group(tree):
    """Labels by what stays the same in a conversion: the number of elements."""
    return jax.tree.map(lambda x: "few" if x.size < 10 else "many", tree)


# A few over real models; `test_every_optimizer.py` has all, over made-up ones.
OPTIMIZERS = {
    "adam": optax.adam(1e-2),
    "adam, bfloat16 moments": optax.adam(1e-2, mu_dtype=jnp.bfloat16),
    "sgd with momentum": optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "chain with a norm": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
    "lamb": optax.lamb(1e-2),
    "multi_transform": optax.multi_transform({"few": optax.sgd(1e-2, momentum=0.9), "many": optax.adam(1e-2)}, group),
    "masked": optax.masked(optax.adam(1e-2), lambda t: jax.tree.map(lambda g: g == "many", group(t))),
    "MultiSteps": optax.MultiSteps(optax.adam(1e-2), 3),
}
CONTROL_FLOW = {"MultiSteps"}  # eagerly, each update would compile its branches anew
# A norm over several entries sums in the order of the tree, which differs between the frameworks.
# Compiled code may contract a multiplication and an addition in one place and not in another.
TOLERANCE = {"chain with a norm": 1e-5, "lamb": 1e-5, "MultiSteps": 1e-6}


def start(spec, seed):
    rng = np.random.default_rng(seed)
    entries = {p: rng.uniform(0.5, 1.5, x.shape).astype(x.dtype) for p, x in spec.entries.items()}
    return State(entries, spec.entries.declared)


def params_of(spec, state):
    native = haiku_adapter.unflatten(state)[0] if spec is SRC else linen_adapter.unflatten(state, DST.native)["params"]
    return jax.tree.map(jnp.asarray, native)


def gradient(i, params):
    """Any function of each element: it commutes with moving elements about."""
    return jax.tree.map(lambda p: jnp.sin(3 * p + i), params)


def train(tx, params, opt_state, steps):
    for i in steps:
        updates, opt_state = tx.update(gradient(i, params), opt_state, params)
        params = optax.apply_updates(params, updates)
    return params, opt_state


def convert_params(plan, src, dst, params, state):
    """Carries trained parameters across: the state's statistics stay as they were."""
    flat = haiku_adapter.flatten(params) if src is SRC else linen_adapter.flatten({"params": params})
    new = plan.forward(State({**state, **flat}, state.declared))
    return params_of(dst, new)


@pytest.mark.parametrize(
    ("name", "direction"),
    [(name, "haiku to linen") for name in OPTIMIZERS] + [(n, "linen to haiku") for n in ("adam", "masked")],
)
def test_ten_more_updates_equal_the_sources(name, direction):
    tx = OPTIMIZERS[name]
    if name in CONTROL_FLOW:
        tx = optax.GradientTransformation(tx.init, light(tx.update))
    plan, src, dst = (PLAN, SRC, DST) if direction == "haiku to linen" else (BACK, DST, SRC)
    state = start(src, 0)
    params = params_of(src, state)
    params, opt = train(tx, params, tx.init(params), range(4))
    theirs = convert_params(plan, src, dst, params, state)
    converted = plan.optimizer(opt, params, theirs)
    assert jax.tree.structure(converted) == jax.tree.structure(tx.init(theirs))
    assert [x.dtype for x in jax.tree.leaves(converted)] == [x.dtype for x in jax.tree.leaves(tx.init(theirs))]
    params, _ = train(tx, params, opt, range(4, 14))
    theirs, _ = train(tx, theirs, converted, range(4, 14))
    wanted = convert_params(plan, src, dst, params, state)
    for got, want in zip(jax.tree.leaves(theirs), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, rtol=TOLERANCE.get(name, 0), atol=0)


def test_a_fresh_state_would_show():
    """The check above can fail: an optimizer that starts anew is not the source's."""
    tx, state = OPTIMIZERS["adam"], start(SRC, 0)
    params = params_of(SRC, state)
    params, opt = train(tx, params, tx.init(params), range(4))
    theirs = convert_params(PLAN, SRC, DST, params, state)
    a, _ = train(tx, theirs, PLAN.optimizer(opt, params, theirs), range(4, 14))
    b, _ = train(tx, theirs, tx.init(theirs), range(4, 14))
    assert max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)) > 1e-3


def small(ops, src_shape, dst_shape, leaf="w"):
    rng = np.random.default_rng(0)
    src = {leaf: jnp.asarray(rng.normal(size=src_shape), jnp.float32)}
    dst = {"k": jax.ShapeDtypeStruct(dst_shape, np.float32)}
    plan = Mapping.of(rules=[{"src": leaf, "dst": "k", "ops": ops}]).plan(src, dst)
    return plan, src, {"k": jnp.asarray(plan.forward(src)["k"])}


def test_adafactor_unreshaped():
    plan, src, _ = small([], (130, 140), (130, 140))
    tx = optax.adafactor(1e-2)
    params, opt = train(tx, src, tx.init(src), range(3))
    theirs = {"k": params["w"]}
    a, _ = train(tx, params, opt, range(3, 13))
    b, _ = train(tx, theirs, plan.optimizer(opt, params, theirs), range(3, 13))
    assert np.array_equal(a["w"], b["k"])


@pytest.mark.parametrize(
    ("ops", "shape", "reason"),
    [(["transpose"], (140, 130), "only a renaming"), (["reshape"], (130, 10, 14), "no exact")],
)
def test_factored_adafactor_under_a_change_of_shape_is_refused_by_name(ops, shape, reason):
    plan, src, dst = small(ops, (130, 140), shape)
    with pytest.raises(UnsupportedError, match=rf"v_row.* of w is factored.*{reason}"):
        plan.optimizer(optax.adafactor(1e-2).init(src), src, dst)


def test_adafactor_that_might_factor_only_the_target_is_refused():
    plan, src, dst = small(["reshape"], (2**15,), (2**7, 2**8))
    with pytest.raises(UnsupportedError, match="is not factored, but for"):
        plan.optimizer(optax.adafactor(1e-2).init(src), src, dst)


def test_unfactored_adafactor_under_a_squeeze():
    plan, src, _ = small(["reshape"], (1, 1, 1, 5), (5,))
    tx = optax.adafactor(1e-2)
    params, opt = train(tx, src, tx.init(src), range(3))
    theirs = {"k": params["w"].reshape(5)}
    a, _ = train(tx, params, opt, range(3, 13))
    b, _ = train(tx, theirs, plan.optimizer(opt, params, theirs), range(3, 13))
    np.testing.assert_allclose(a["w"].reshape(5), b["k"], rtol=1e-6)  # adafactor takes a root mean square


@pytest.mark.parametrize("tx", [optax.adam(1e-2), optax.sgd(1e-2, momentum=0.9)], ids=["adam", "momentum"])
def test_signs_and_offsets(tx):
    """With theirs = 1 - ours, equal training means gradients of the opposite sign: mu flips, nu does not, 1 vanishes."""
    plan, params, theirs = small([{"op": "scale", "value": -1}, {"op": "add", "value": 1}], (3,), (3,))
    opt = tx.init(params)
    for i in range(3):
        updates, opt = tx.update(gradient(i, params), opt, params)
        params = optax.apply_updates(params, updates)
    theirs = {"k": 1 - params["w"]}
    converted = plan.optimizer(opt, params, theirs)
    for i in range(3, 13):
        g = gradient(i, params)
        updates, opt = tx.update(g, opt, params)
        params = optax.apply_updates(params, updates)
        updates, converted = tx.update({"k": -g["w"]}, converted, theirs)
        theirs = optax.apply_updates(theirs, updates)
    np.testing.assert_allclose(theirs["k"], 1 - params["w"], atol=1e-6)  # 1 - w rounds


def test_a_scale_of_an_unknown_field_is_refused():
    plan, src, dst = small([{"op": "scale", "value": -1}], (3,), (3,))
    with pytest.raises(UnsupportedError, match=r"not known whether 'this'|not known whether"):
        plan.optimizer((src,), src, dst)


def test_what_is_merged_needs_all_or_none_masked():
    src = {"q": jnp.ones((2, 3)), "k": jnp.ones((2, 1))}
    dst = {"qk": jnp.ones((2, 4))}
    plan = Mapping.of(rules=[{"src": ["q", "k"], "dst": "qk", "ops": ["concat"]}]).plan(src, dst)
    new = plan.optimizer(optax.adam(1.0).init(src), src, dst)
    assert new[0].mu["qk"].shape == (2, 4)
    tx = optax.masked(optax.adam(1.0), {"q": True, "k": False})
    with pytest.raises(UnsupportedError, match="some of these entries are masked"):
        plan.optimizer(tx.init(src), src, dst)


def test_state_over_other_parameters_is_refused():
    plan, src, dst = small([], (3,), (3,))
    with pytest.raises(UnsupportedError, match="not in the structure of src_params"):
        plan.optimizer(optax.adam(1.0).init({"other": jnp.ones(3)}), src, dst)


def test_parameters_are_aligned_strictly():
    state = start(SRC, 0)
    params, theirs = params_of(SRC, state), params_of(DST, PLAN.forward(state))
    opt = optax.adam(1.0).init(params)
    with pytest.raises(StructureError, match="'params/extra'"):
        PLAN.optimizer(opt, {**params, "extra": jnp.ones(1)}, theirs)
    with pytest.raises(StructureError, match=r"comes from nothing|is not in dst_params"):
        PLAN.optimizer(opt, params, {k: v for k, v in theirs.items() if k != "Dense_0"})
    wrong = jax.tree.map(lambda x: x, theirs)
    wrong["Dense_0"]["bias"] = jnp.ones(7)
    with pytest.raises(StructureError, match=r"got float32\[7\]"):
        PLAN.optimizer(opt, params, wrong)


def test_a_filled_parameter_has_no_optimizer_state():
    src, dst = {"a": jnp.ones(2)}, {"a": jnp.ones(2), "b": jnp.ones(2)}
    plan = Mapping.of(rules=[{"src": "a", "dst": "a"}], fill={"b": 0}).plan(src, dst)
    with pytest.raises(UnsupportedError, match="b is filled"):
        plan.optimizer(optax.adam(1.0).init(src), src, dst)


def test_trees_may_be_states_frozen_or_with_the_params_level():
    state = start(SRC, 0)
    ours, theirs = params_of(SRC, state), params_of(DST, PLAN.forward(state))
    tx = optax.adam(1e-2)
    new = PLAN.optimizer(tx.init(ours), ours, {"params": theirs})
    assert jax.tree.structure(new) == jax.tree.structure(tx.init({"params": theirs}))
    new = PLAN.optimizer(tx.init(ours), ours, flax.core.freeze(theirs))
    assert jax.tree.structure(new) == jax.tree.structure(tx.init(flax.core.freeze(theirs)))
    flat = State({f"params/{m}/{k}": v for m, leaves in ours.items() for k, v in leaves.items()})
    new = PLAN.optimizer(tx.init(flat), flat, theirs)
    assert jax.tree.structure(new) == jax.tree.structure(tx.init(theirs))


def test_a_trainable_part_of_the_parameters():
    state = start(SRC, 0)
    ours, theirs = params_of(SRC, state), params_of(DST, PLAN.forward(state))
    ours, theirs = {"conv2_d": ours["conv2_d"]}, {"Conv_0": theirs["Conv_0"]}
    new = PLAN.optimizer(optax.adam(1.0).init(ours), ours, theirs)
    assert new[0].mu["Conv_0"]["kernel"].shape == (3, 3, 3, 4)
