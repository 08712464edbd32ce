"""Every public transformation of optax 0.2.8, and what becomes of its state under each kind of plan.

A row: how it is made, and the kinds of plan under which its state is not simply carried:

refused   the state tells, and the transformation itself treats the target otherwise: no state could be right
cautious  the state alone is refused; with `tx=` it is carried and proven
ours      refused, though a counterpart could be made
unseen    the state cannot tell: it is carried, the updates differ, and `tx=` refuses

Under all other kinds the next ten updates are the source's.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax as ox
from optax import contrib as cb

from bridges.param_mapping import Mapping

REFUSED, CAUTIOUS, OURS, UNSEEN = "refused", "cautious", "ours", "unseen"

# kind -> source shapes, target shapes, rules. Few shapes, so that eager operations compile once for all rows.
KINDS: dict[str, tuple[dict[str, tuple], dict[str, tuple], list[dict]]] = {
    "rename": (
        {"a": (4, 4), "b": (4,), "c": (2, 2, 4)},
        {"c1": (4, 4), "b1": (4,), "a1": (2, 2, 4)},
        [{"src": "a", "dst": "c1"}, {"src": "b", "dst": "b1"}, {"src": "c", "dst": "a1"}],
    ),
    "flatten": (  # what BatchNorm and LayerNorm need
        {"norm": (1, 1, 4)},
        {"norm": (4,)},
        [{"src": "norm", "dst": "norm", "ops": ["reshape"]}],
    ),
    "heads": (
        {"query": (4, 4)},
        {"query": (4, 2, 2)},
        [{"src": "query", "dst": "query", "ops": ["reshape"]}],
    ),
    "move": (
        {"dense": (2, 4), "deconv": (2, 2, 2, 4)},
        {"dense": (4, 2), "deconv": (2, 2, 4, 2)},
        [
            {"src": "dense", "dst": "dense", "ops": ["transpose"]},
            {"src": "deconv", "dst": "deconv", "ops": ["swap", {"op": "flip", "but_last": 2}]},
        ],
    ),
    "cut": (
        {"gates": (4, 4), "q": (4, 2), "k": (4, 2)},
        {"i": (4, 2), "f": (4, 2), "qk": (4, 4)},
        [
            {"src": "gates", "dst": ["i", "f"], "ops": [{"op": "split", "axis": 1}]},
            {"src": ["q", "k"], "dst": "qk", "ops": ["concat"]},
        ],
    ),
    "stack": (
        {"l_0": (2, 4), "l_1": (2, 4)},
        {"l": (2, 2, 4)},
        [{"src": "l_{i:int}", "dst": "l", "ops": ["stack"]}],
    ),
    "sign": ({"w": (4, 4)}, {"w": (4, 4)}, [{"src": "w", "dst": "w", "ops": [{"op": "scale", "value": -1}]}]),
    "shift": ({"bias": (4,)}, {"bias": (4,)}, [{"src": "bias", "dst": "bias", "ops": [{"op": "add", "value": 1}]}]),
}  # fmt: skip


def plan_of(kinds):
    """Returns the plan and the source's start values for several kinds in one model."""
    rng, src, dst, rules = (
        np.random.default_rng(0),
        {"rest": (4, 4)},
        {"rest": (4, 4)},
        [{"src": "rest", "dst": "rest"}],
    )
    for kind in kinds:
        left, right, some = KINDS[kind]
        src.update({f"{kind}/{k}": v for k, v in left.items()})
        dst.update({f"{kind}/{k}": v for k, v in right.items()})

        def under(end, kind=kind):
            return [f"{kind}/{p}" for p in end] if isinstance(end, list) else f"{kind}/{end}"

        rules += [{**rule, "src": under(rule["src"]), "dst": under(rule["dst"])} for rule in some]
    values = {k: jnp.asarray(rng.uniform(0.5, 1.5, v), jnp.float32) * slope(v) for k, v in src.items()}
    wanted = {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in dst.items()}
    return Mapping.of(rules=rules).plan(values, wanted), values


def slope(shape):
    """Returns factors that grow along every axis, so that no two parts of a leaf have one norm."""
    out = np.ones(shape, np.float32)
    for axis, n in enumerate(shape):
        out = out * np.linspace(0.4, 1, n, dtype=np.float32).reshape(
            [-1 if a == axis else 1 for a in range(len(shape))]
        )
    return out


@dataclasses.dataclass
class Row:
    make: Callable[[], Any]
    exceptions: dict[str, str] = dataclasses.field(default_factory=dict)
    compiled: bool = False  # control flow, which eagerly would be compiled at each update
    few: bool = False  # it compiles for so long that a few kinds must do


def row(make, compiled=False, few=False, **exceptions):
    return Row(make, exceptions, compiled or few, few)


def ungrouped(params):
    """Labels that no plan here changes."""
    return jax.tree.map(lambda x: "a", params)


def per_example(tx):
    """An aggregation takes a gradient for each of the batch's two examples."""

    def update(grads, state, params=None):
        return tx.update(jax.tree.map(lambda g: jnp.stack([g, 0.5 * g]), grads), state, params)

    return ox.GradientTransformation(tx.init, update)


DECAY = {"shift": UNSEEN}  # weights decay towards zero, which is elsewhere after a shift
CUTS = {"cut": UNSEEN, "stack": UNSEEN}  # norms of whole leaves, in no state
NOISE = {kind: REFUSED for kind in KINDS}
MATRIX = {"heads": REFUSED, "move": REFUSED, "cut": REFUSED, "stack": REFUSED}
LEAVES = {"cut": REFUSED, "stack": REFUSED}

ROWS = {
    "acprop": row(lambda: cb.acprop(1e-2)),
    "adabelief": row(lambda: ox.adabelief(1e-2)),
    "adadelta": row(lambda: ox.adadelta(1.0)),
    "adafactor": row(lambda: ox.adafactor(1e-2, momentum=0.9), **LEAVES, shift=REFUSED),
    "adagrad": row(lambda: ox.adagrad(1e-2)),
    "adam": row(lambda: ox.adam(1e-2)),
    "adamax": row(lambda: ox.adamax(1e-2)),
    "adamaxw": row(lambda: ox.adamaxw(1e-2, weight_decay=0.1), **DECAY),
    "adamw": row(lambda: ox.adamw(1e-2, weight_decay=0.1), **DECAY),
    "adan": row(lambda: ox.adan(1e-2)),
    "adaptive_grad_clip": row(
        lambda: ox.chain(ox.adaptive_grad_clip(0.05), ox.sgd(1e-1)), move=UNSEEN, stack=UNSEEN, shift=UNSEEN
    ),
    "add_decayed_weights": row(lambda: ox.chain(ox.add_decayed_weights(0.1), ox.sgd(1e-2, 0.9)), **DECAY),
    "add_decayed_weights, schedule": row(
        lambda: ox.chain(ox.add_decayed_weights(lambda i: 0.1), ox.sgd(1e-2)), shift=REFUSED
    ),
    "add_noise": row(lambda: ox.chain(ox.add_noise(0.1, 0.5, key=0), ox.sgd(1e-2)), **NOISE),
    "ademamix": row(lambda: cb.ademamix(1e-2)),
    "adopt": row(lambda: cb.adopt(1e-2)),
    "amsgrad": row(lambda: ox.amsgrad(1e-2)),
    "apply_every": row(lambda: ox.chain(ox.apply_every(3), ox.sgd(1e-2))),
    "apply_if_finite": row(lambda: ox.apply_if_finite(ox.adam(1e-2), 3), compiled=True),
    "centralize": row(lambda: ox.chain(ox.centralize(), ox.sgd(1e-2)), flatten=UNSEEN, move=UNSEEN, **CUTS),
    "chain": row(lambda: ox.chain(ox.clip(0.3), ox.adam(1e-2))),
    "clip_by_block_rms": row(lambda: ox.chain(ox.clip_by_block_rms(0.1), ox.sgd(1e-2)), **CUTS),
    "clip_by_global_norm": row(lambda: ox.chain(ox.clip_by_global_norm(0.5), ox.adam(1e-2))),
    "cocob": row(lambda: cb.cocob()),
    "conditionally_mask": row(lambda: ox.conditionally_mask(ox.adam(1e-2), lambda step: step % 2 == 0), compiled=True),
    "conditionally_transform": row(
        lambda: ox.conditionally_transform(ox.adam(1e-2), lambda step: step % 2 == 0), compiled=True
    ),
    "dadapt_adamw": row(lambda: cb.dadapt_adamw(1.0, estim_lr0=1e-2)),
    "differentially_private_aggregate": row(
        lambda: ox.chain(per_example(cb.differentially_private_aggregate(1.0, 0.1, key=0)), ox.sgd(1e-2)), **NOISE
    ),
    "dog": row(lambda: cb.dog(1.0, ("distance", 0.1))),
    "dowg": row(lambda: cb.dowg(1.0, 0.1)),
    "ema": row(lambda: ox.chain(ox.ema(0.9), ox.scale(-1e-2))),
    "flatten": row(lambda: ox.flatten(ox.adam(1e-2))),
    "freeze": row(lambda: ox.chain(ox.adam(1e-2), ox.freeze(lambda p: jax.tree.map(lambda x: x.ndim > 4, p)))),
    "fromage": row(lambda: ox.fromage(1e-2), **CUTS, shift=UNSEEN),
    "galore": row(lambda: cb.galore(1e-2, rank=2, update_proj_gap=7), compiled=True, **MATRIX, sign=OURS),
    "inject_hyperparams": row(lambda: ox.inject_hyperparams(ox.adam)(learning_rate=ox.linear_schedule(1e-2, 1e-3, 20))),
    "inject_hyperparams, stateful": row(
        lambda: ox.inject_hyperparams(ox.adam)(
            learning_rate=ox.schedules.WrappedSchedule(ox.linear_schedule(1e-2, 1e-3, 20))
        )
    ),
    "keep_params_nonnegative": row(
        lambda: ox.chain(ox.sgd(1.0), ox.keep_params_nonnegative()), sign=UNSEEN, shift=UNSEEN
    ),
    "lamb": row(lambda: ox.lamb(1e-2), **CUTS, shift=UNSEEN),
    "lars": row(lambda: ox.lars(1.0), **CUTS, shift=UNSEEN),
    # Without its line search, which lets rounding grow; that has a row of its own.
    "lbfgs": row(lambda: ox.lbfgs(1e-2, memory_size=3, linesearch=None), few=True),
    "lion": row(lambda: ox.lion(1e-2, weight_decay=0.0)),
    "madgrad": row(lambda: cb.madgrad(1e-2)),
    "masked": row(lambda: ox.masked(ox.adam(1e-2), lambda t: {k: not k.startswith("rest") for k in t})),
    "measure_with_ema": row(
        lambda: ox.chain(ox.monitor({"norm": ox.measure_with_ema(ox.tree.norm, 0.9)}), ox.adam(1e-2))
    ),
    "mechanize": row(lambda: cb.mechanize(ox.sgd(1e-1), weight_decay=10.0, s_init=0.1), shift=REFUSED),
    "momo": row(lambda: cb.momo(1e-2), shift=OURS),
    "momo_adam": row(lambda: cb.momo_adam(1e-2), shift=OURS),
    "monitor": row(lambda: ox.chain(ox.monitor({"norm": ox.tree.norm}), ox.adam(1e-2))),
    "multi_transform": row(
        lambda: ox.multi_transform(
            {"a": ox.adam(1e-2), "b": ox.sgd(1e-2, 0.9)}, lambda t: {k: "ab"[k == "rest"] for k in t}
        )
    ),
    "MultiSteps": row(lambda: ox.MultiSteps(ox.adam(1e-2), 3), compiled=True),
    "MultiSteps, skipping": row(
        lambda: ox.MultiSteps(ox.adam(1e-2), 2, should_skip_update_fn=ox.skip_not_finite), few=True
    ),
    "muon": row(lambda: cb.muon(1e-2), compiled=True, **MATRIX),
    "nadam": row(lambda: ox.nadam(1e-2)),
    "nadamw": row(lambda: ox.nadamw(1e-2, weight_decay=0.1), **DECAY),
    "named_chain": row(lambda: ox.named_chain(("rest", ox.trace(0.9)), ("w", ox.sgd(1e-2, 0.9)))),
    "noisy_sgd": row(lambda: ox.noisy_sgd(1e-2, key=0), **NOISE),
    "normalize": row(lambda: ox.chain(cb.normalize(), ox.sgd(1e-2))),
    "normalize_by_update_norm": row(lambda: ox.chain(ox.normalize_by_update_norm(), ox.sgd(1e-2))),
    "novograd": row(lambda: ox.novograd(1e-2), **LEAVES),
    "optimistic_adam_v2": row(lambda: ox.optimistic_adam_v2(1e-2)),
    "optimistic_gradient_descent": row(lambda: ox.optimistic_gradient_descent(1e-2)),
    "partition": row(lambda: ox.partition({"a": ox.rmsprop(1e-2)}, ungrouped)),
    "polyak_sgd": row(lambda: ox.polyak_sgd(1e-2)),
    "prodigy": row(lambda: cb.prodigy(1.0, estim_lr0=1e-2)),
    "radam": row(lambda: ox.radam(1e-2)),
    "reduce_on_plateau": row(lambda: ox.chain(ox.adam(1e-2), cb.reduce_on_plateau(patience=2))),
    "rmsprop": row(lambda: ox.rmsprop(1e-2, momentum=0.9)),
    "rmsprop, centered": row(lambda: ox.rmsprop(1e-2, centered=True, bias_correction=True)),
    "rprop": row(lambda: ox.rprop(1e-2)),
    "sam": row(lambda: cb.sam(ox.adam(1e-2), ox.chain(cb.normalize(), ox.sgd(1e-2)))),
    "scale_by_backtracking_linesearch": row(
        lambda: ox.chain(ox.sgd(1.0), ox.scale_by_backtracking_linesearch(5, store_grad=True)), few=True
    ),
    "scale_by_distance_over_gradients": row(
        lambda: ox.chain(ox.scale_by_distance_over_gradients(0.1), ox.scale(-1.0)), **LEAVES
    ),
    "scale_by_factored_rms": row(
        lambda: ox.chain(ox.scale_by_factored_rms(min_dim_size_to_factor=2), ox.scale(-1e-2)),
        heads=REFUSED,
        move=OURS,
        cut=REFUSED,
        stack=OURS,
        shift=CAUTIOUS,
    ),
    "scale_by_param_block_norm": row(
        lambda: ox.chain(ox.scale_by_param_block_norm(), ox.sgd(1e-3)), **CUTS, shift=UNSEEN
    ),
    "scale_by_param_block_rms": row(
        lambda: ox.chain(ox.scale_by_param_block_rms(), ox.sgd(1e-3)), **CUTS, shift=UNSEEN
    ),
    "scale_by_rms, counted": row(lambda: ox.chain(ox.scale_by_rms(bias_correction=True), ox.scale(-1e-2))),
    "scale_by_schedule": row(lambda: ox.adam(ox.cosine_decay_schedule(1e-2, 20))),
    "scale_by_zoom_linesearch": row(lambda: ox.chain(ox.sgd(1.0), ox.scale_by_zoom_linesearch(5)), few=True),
    "schedule_free": row(lambda: cb.schedule_free(ox.sgd(1e-1), 1e-1)),
    "schedule_free_adamw": row(lambda: cb.schedule_free_adamw(1e-2)),
    "schedule_free_sgd": row(lambda: cb.schedule_free_sgd(1e-1)),
    "selective_transform": row(
        lambda: ox.selective_transform(ox.adam(1e-2), freeze_mask=lambda t: {k: k == "rest" for k in t})
    ),
    "sgd": row(lambda: ox.sgd(1e-2, momentum=0.9, nesterov=True)),
    "sgd, plain": row(lambda: ox.sgd(1e-2)),
    "sign_sgd": row(lambda: ox.sign_sgd(1e-2)),
    "signum": row(lambda: ox.signum(1e-2)),
    "simplified_ademamix": row(lambda: cb.simplified_ademamix(1e-2)),
    "sm3": row(lambda: ox.sm3(1e-2), flatten=OURS, heads=REFUSED, move=OURS, **LEAVES),
    "snapshot": row(
        lambda: ox.chain(ox.snapshot("last", lambda updates: updates), ox.adam(1e-2)), sign=OURS, shift=OURS
    ),
    "sophia": row(
        lambda: cb.sophia(1e-2, gamma=1.0, clip_threshold=None, update_interval=2, eps=0.1), compiled=True, **NOISE
    ),
    "split_real_and_imaginary": row(lambda: cb.split_real_and_imaginary(ox.adam(1e-2))),
    "trace": row(lambda: ox.chain(ox.trace(0.9), ox.scale(-1e-2))),
    "yogi": row(lambda: ox.yogi(1e-2)),
    "zero_nans": row(lambda: ox.chain(ox.zero_nans(), ox.adam(1e-2))),
}
