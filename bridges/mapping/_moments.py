"""What the fields of optimizer states hold: a literal table of the NamedTuples of optax 0.2.8, by class and field name.

A plan that only moves elements about needs no more than shapes. A sign or an offset needs to know how a field follows the
gradient g, and what is kept a leaf, an axis or a matrix cannot follow every change of shape: that is what is said here.
optax itself is not imported; the class is known by its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

VALUE, PER_LEAF, FLAG, WHOLE = "value", "per leaf", "flag", "whole"


@dataclasses.dataclass(frozen=True)
class Field:
    """What a field holds for each parameter.

    Attributes:
      power: It goes with this power of the gradient (`mu`: 1, `nu`: 2, a step of the parameter: -1).
      role: `VALUE`: a parameter itself; `PER_LEAF`: one number for the whole of a leaf, which stays when its elements are
        rearranged; `FLAG`: what was noticed in a leaf, and nothing reads; `WHOLE`: an array that belongs to no parameter.
      history: It has a leading axis of past steps.
    """

    power: int = 0
    role: str = ""
    history: bool = False


_1, _2, _STEP = Field(1), Field(2), Field(-1)
_VALUE, _PER_LEAF, _FLAG, _WHOLE = (Field(role=role) for role in (VALUE, PER_LEAF, FLAG, WHOLE))

# From optax/_src/{transform,factorized,linesearch}.py, optax/transforms/*.py and optax/contrib/*.py of 0.2.8.
_FIELDS: dict[str, dict[str, Field]] = {
    "ApplyEvery": {"grad_acc": _1},
    "COCOBState": {
        "init_particles": _VALUE, "cumulative_gradients": _1, "scale": _2, "subgradients": _2, "reward": _2,
    },
    "DAdaptAdamWState": {"exp_avg": _1, "exp_avg_sq": _2, "grad_sum": _1},
    "DoGState": {"init_params": _VALUE},
    "DoWGState": {"init_params": _VALUE},
    "EmaState": {"ema": _1},
    "FactoredState": {"v": _2, "v_row": _2, "v_col": _2},
    "MadgradState": {"grad_sum_sq": _2, "s": _1, "x0": _VALUE},
    "MechanicState": {"x0": _VALUE, "r": _WHOLE, "m": _WHOLE, "v": _WHOLE, "s": _WHOLE},
    "MomoAdamState": {"exp_avg": _1, "exp_avg_sq": _2},
    "MomoState": {"exp_avg": _1},
    "MultiStepsState": {"acc_grads": _1},
    "MuonState": {"mu": _1, "ns_coeffs": _WHOLE},
    "ProdigyState": {"exp_avg": _1, "exp_avg_sq": _2, "grad_sum": _1, "params0": _VALUE},
    "SAMState": {"cache": _VALUE},
    "ScaleByAdaDeltaState": {"e_g": _2, "e_x": Field(-2)},
    "ScaleByAdamState": {"mu": _1, "nu": _2},
    "ScaleByAdanState": {"m": _1, "v": _1, "n": _2, "g": _1},
    "ScaleByAdemamixState": {"m1": _1, "m2": _1, "nu": _2},
    "ScaleByAmsgradState": {"mu": _1, "nu": _2, "nu_max": _2},
    "ScaleByBacktrackingLinesearchState": {"grad": _1},
    "ScaleByBeliefState": {"mu": _1, "nu": _2},
    "ScaleByDistanceOverGradientsState": {
        "max_dist": _PER_LEAF, "grad_sum_of_squares": _PER_LEAF, "init_params": _VALUE,
    },
    "ScaleByLBFGSState": {
        "params": _VALUE, "updates": _1, "weights_memory": _WHOLE,
        "diff_params_memory": Field(-1, history=True), "diff_updates_memory": Field(1, history=True),
    },
    "ScaleByLionState": {"mu": _1},
    "ScaleByNovogradState": {"mu": _1, "nu": _PER_LEAF},
    "ScaleByOptimisticGradientState": {"previous_gradient": _1},
    "ScaleByRStdDevState": {"mu": _1, "nu": _2},
    "ScaleByRStdDevWithCountState": {"mu": _1, "nu": _2},
    "ScaleByRmsState": {"nu": _2},
    "ScaleByRmsWithCountState": {"nu": _2},
    "ScaleByRpropState": {"step_sizes": Field(-2), "prev_updates": _STEP},
    "ScaleByRssState": {"sum_of_squares": _2},
    "ScaleBySM3State": {"mu": _2, "nu": _1},
    "ScaleBySimplifiedAdEMAMixState": {"m": _1, "n": _2},
    "ScaleByZoomLinesearchState": {"grad": _1},
    "ScheduleFreeState": {"z": _VALUE},
    "SophiaState": {"mu": _1, "nu": _2},
    "TraceState": {"trace": _1},
    "ZeroNansState": {"found_nan": _FLAG},
    "GaLoreState": {"projector": _PER_LEAF},
    "InjectHyperparamsState": {"hyperparams": _WHOLE},
    "InjectStatefulHyperparamsState": {"hyperparams": _WHOLE, "hyperparams_states": _WHOLE},
}  # fmt: skip

# Classes that look at a leaf as a whole, and why moments that fit are not enough when leaves are cut or joined.
LEAFWISE = {
    "FactoredState": "Adafactor takes means over whole leaves",
    "ScaleByNovogradState": "Novograd keeps the norm of a whole leaf",
    "ScaleByDistanceOverGradientsState": "layer-wise DoG keeps distance and norm of a whole leaf",
}
# The same, where the axes count as well.
AXISWISE = {
    "MuonState": "Muon makes whole matrices orthogonal and scales by their sides",
    "ScaleBySM3State": "SM3 keeps an accumulator for each axis",
    "GaLoreState": "GaLore projects whole matrices by one of their sides",
}
# Classes whose updates depend on the parameters' own values, so that an offset is felt.
POSITIONED = {
    "WeightDecaySchedule": "weights decay towards zero",
    "MechanicState": "Mechanic scales by the norm of the parameters",
    "FactoredState": "Adafactor scales by the root mean square of the parameters",
    "MomoState": "MoMo keeps inner products with the parameters",
    "MomoAdamState": "MoMo keeps inner products with the parameters",
}
# For trees that were stored without their classes (as dictionaries of field names).
_BY_FIELDS = {
    frozenset(("count", "v_row", "v_col", "v")): "FactoredState",
    frozenset(("count", "mu", "ns_coeffs")): "MuonState",
    frozenset(("count", "base_optimizer_state", "projector")): "GaLoreState",
    frozenset(("count", "rng_key")): "AddNoiseState",
    frozenset(("max_dist", "grad_sum_of_squares", "init_params")): "ScaleByDistanceOverGradientsState",
}


def class_name(node: Any) -> str:
    """Returns the name of the state's class, '' for a plain container; stored dictionaries are known by their keys."""
    if isinstance(node, Mapping):
        return _BY_FIELDS.get(frozenset(map(str, node)), "")
    return "" if type(node) in (tuple, list) else type(node).__name__


def field_of(owner: str, name: str) -> Field | None:
    """Returns what the field of a class holds, None if that is not known."""
    return _FIELDS.get(owner, {}).get(name)


def is_key(leaf: Any, name: str) -> bool:
    """Whether the leaf is a random key: a typed one, or a raw one under such a name."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return False
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return True
    return "key" in name and dtype == "uint32" and len(leaf.shape) == 1
