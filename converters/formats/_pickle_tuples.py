"""NamedTuples of a pickle: optax's, and those that the user lists.

A pickle holds a NamedTuple's dotted name and its values, never its field names. For optax they come from the installed
package, and from the table below where it is absent or has changed; for all others from the user. No module is imported
because a pickle names it: optax is the one that is, and only a NamedTuple class of it is taken.
"""

from __future__ import annotations

import collections
import functools
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bridges.core._errors import UnsupportedError

Fields = Mapping[str, Sequence[str] | type]

# Class -> its fields, in every release of optax from 0.0.6 to 0.2.8; several where releases differ.
_OPTAX: dict[str, tuple[str, ...]] = {
    "AccumulateAvgUpdatesState": ("micro_step ready avg_grad",),
    "AddDecayedWeightsState": ("",),
    "AddNoiseState": ("count rng_key",),
    "ApplyEvery": ("count grad_acc",),
    "ApplyIfFiniteState": ("notfinite_count last_finite total_notfinite inner_state",),
    "BacktrackingLineSearchState": ("learning_rate new_value new_grad decrease_error iter_num",),
    "BacktrackingLinesearchInfo": ("num_linesearch_steps decrease_error",),
    "COCOBState": ("init_particles cumulative_gradients scale subgradients reward",),
    "ConditionallyMaskState": ("step inner_state",),
    "ConditionallyTransformState": ("inner_state step",),
    "DAdaptAdamWState": ("exp_avg exp_avg_sq grad_sum estim_lr numerator_weighted count",),
    "DifferentiallyPrivateAggregateState": ("rng_key",),
    "DoGState": ("is_init_step init_params max_dist sum_sq_norm_grads",),
    "DoWGState": ("init_params weighted_sq_norm_grads estim_sq_dist",),
    "EmaState": ("count ema",),
    "EmptyState": ("",),
    "FactoredState": ("count v_row v_col v",),
    "GaLoreState": ("count base_optimizer_state projector",),
    "HutchinsonState": ("key",),
    "InjectHyperparamsState": ("count hyperparams inner_state",),
    "InjectStatefulHyperparamsState": ("count hyperparams hyperparams_states inner_state",),
    "LookaheadParams": ("fast slow",),
    "LookaheadState": ("fast_state steps_since_sync",),
    "MadgradState": ("count grad_sum_sq s x0",),
    "MaskedNode": ("",),
    "MaskedState": ("inner_state",),
    "MaybeUpdateState": ("inner_state step",),
    "MechanicState": ("base_optimizer_state count r m v s x0",),
    "MomoAdamState": ("exp_avg exp_avg_sq barf gamma lb count",),
    "MomoState": ("exp_avg barf gamma lb count",),
    "MonitorState": ("measurements measure_states",),
    "MultiStepsState": (
        "mini_step gradient_step inner_opt_state acc_grads skip_state",
        "mini_step gradient_step inner_opt_state acc_grads",
    ),
    "MultiTransformState": ("inner_states",),
    "MuonState": ("count mu ns_coeffs",),
    "PartitionState": ("inner_states",),
    "PerElementMeanAndSumSqDiffGradsState": ("micro_step ready mean_grads sum_sq_diff_grads",),
    "PerElementMeanAndVarianceEMAState": ("count ema_decay mean_grads_ema variance_grads_ema",),
    "ProdigyState": ("exp_avg exp_avg_sq grad_sum params0 estim_lr numerator_weighted count",),
    "ReduceLROnPlateauState": (
        "scale best_value plateau_count cooldown_count count avg_value",
        "lr best_loss plateau_count cooldown_counter",
    ),
    "SAMState": ("steps_since_sync opt_state adv_state cache",),
    "ScaleByAdaDeltaState": ("e_g e_x",),
    "ScaleByAdamState": ("count mu nu",),
    "ScaleByAdanState": ("m v n g t",),
    "ScaleByAdemamixState": ("count count_m2 m1 m2 nu",),
    "ScaleByAmsgradState": ("count mu nu nu_max",),
    "ScaleByBacktrackingLinesearchState": ("learning_rate value grad info", "learning_rate value grad"),
    "ScaleByBeliefState": ("count mu nu",),
    "ScaleByDistanceOverGradientsState": ("max_dist grad_sum_of_squares init_params",),
    "ScaleByFromageState": ("count",),
    "ScaleByLBFGSState": ("count params updates diff_params_memory diff_updates_memory weights_memory",),
    "ScaleByLionState": ("count mu",),
    "ScaleByNovogradState": ("count mu nu",),
    "ScaleByOptimisticGradientState": ("is_initial_step previous_gradient",),
    "ScaleByRStdDevState": ("mu nu",),
    "ScaleByRStdDevWithCountState": ("count mu nu",),
    "ScaleByRmsState": ("nu",),
    "ScaleByRmsWithCountState": ("count nu",),
    "ScaleByRpropState": ("step_sizes prev_updates",),
    "ScaleByRssState": ("sum_of_squares",),
    "ScaleBySM3State": ("mu nu",),
    "ScaleByScheduleState": ("count",),
    "ScaleBySimplifiedAdEMAMixState": ("t m n",),
    "ScaleByTrustRatioState": ("",),
    "ScaleState": ("",),
    "ScaleByZoomLinesearchState": ("learning_rate value grad info",),
    "ScheduleFreeState": ("b1 weight_sum step_count max_lr base_optimizer_state z",),
    "SnapshotState": ("measurement",),
    "SophiaState": ("count mu nu hessian_fn_state",),
    "SplitRealAndImaginaryState": ("inner_state",),
    "TraceState": ("trace",),
    "WeightDecaySchedule": ("count",),
    "WrappedScheduleState": ("count",),
    "ZeroNansState": ("found_nan",),
    "ZoomLinesearchInfo": ("num_linesearch_steps decrease_error curvature_error",),
}


# NamedTuples of other public code that stand in checkpoints.
_KNOWN = {
    "haiku._src.recurrent.LSTMState": ("hidden", "cell"),
    "haiku.LSTMState": ("hidden", "cell"),
}


def checked(namedtuples: Fields | None) -> dict[str, tuple[str, ...] | type]:
    """Returns the user's list with its fields checked.

    Raises:
      UnsupportedError: Fields are no names, repeat, or a class is no NamedTuple.
    """
    found: dict[str, tuple[str, ...] | type] = {}
    for name, fields in (namedtuples or {}).items():
        if isinstance(fields, type):
            if not is_namedtuple(fields):
                raise UnsupportedError(f"namedtuples[{name!r}] is {fields.__name__}, which is no NamedTuple class.")
            found[name] = fields
            continue
        names = tuple(fields.split(",")) if isinstance(fields, str) else tuple(fields)
        try:
            made(name, names)
        except (ValueError, TypeError) as err:
            raise UnsupportedError(
                f"namedtuples[{name!r}] are no fields: {err}. Give their names in order, as in ('params', 'opt_state')."
            ) from err
        found[name] = names
    return found


@functools.lru_cache(maxsize=1024)
def made(dotted: str, fields: tuple[str, ...]) -> type:
    """Returns a NamedTuple class of that dotted name; the same one for the same name and fields.

    >>> made('my.module.TrainingState', ('params', 'opt_state'))(1, 2)
    TrainingState(params=1, opt_state=2)
    """
    module, _, name = dotted.rpartition(".")
    cls = collections.namedtuple(name, fields)  # type: ignore[misc]
    cls.__module__, cls.__qualname__ = module, name
    cls._read_from_pickle = True  # type: ignore[attr-defined]
    return cls


def is_made(cls: type) -> bool:
    """Whether a class is one that `made` gave: it stands for one of the same name that need not be here."""
    return getattr(cls, "_read_from_pickle", False)


def is_namedtuple(cls: Any) -> bool:
    """Whether a class is a NamedTuple's."""
    fields = getattr(cls, "_fields", None)
    return isinstance(cls, type) and issubclass(cls, tuple) and isinstance(fields, tuple)


def is_known(dotted: str) -> bool:
    """Whether that is the name of a NamedTuple class that optax has or had, or of one of Haiku's."""
    module, _, name = dotted.rpartition(".")
    if dotted in _KNOWN:
        return True
    return module.partition(".")[0] == "optax" and (name in _OPTAX or _installed(module, name) is not None)


def known(dotted: str, count: int) -> type | None:
    """Returns the NamedTuple class of that name with that number of fields, or None if optax has and had none, nor Haiku.

    The installed optax's own where it is there and has not changed; otherwise one of the same name with the fields that
    the table gives.
    """
    module, _, name = dotted.rpartition(".")
    if len(_KNOWN.get(dotted, ())) == count and dotted in _KNOWN:
        return made(dotted, _KNOWN[dotted])
    if module.partition(".")[0] != "optax":
        return None
    cls = _installed(module, name)
    if cls is not None and len(cls._fields) == count:  # type: ignore[attr-defined]
        return cls
    for fields in _OPTAX.get(name, ()):
        if len(fields.split()) == count:
            return made(dotted, tuple(fields.split()))
    return None


def _installed(module: str, name: str) -> type | None:
    try:
        optax: Any = importlib.import_module("optax")
    except ImportError:
        return None
    # Classes move between optax's private modules from release to release; the public name stays.
    for place in (sys.modules.get(module), optax, getattr(optax, "contrib", None)):
        cls = getattr(place, name, None)
        if is_namedtuple(cls) and str(getattr(cls, "__module__", "")).partition(".")[0] == "optax":
            return cls
    return None


def reference(cls: type) -> tuple[str, str]:
    """Returns the (module, name) by which a pickle is to name a NamedTuple class: optax's public one where there is one."""
    module, name = cls.__module__, cls.__qualname__
    if module.partition(".")[0] == "optax" and getattr(sys.modules.get("optax"), name, None) is cls:
        module = "optax"
    return module, name
