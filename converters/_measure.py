"""Running one side in one precision, and measuring how far two results are apart.

Errors are counted in ulps of the largest value: `max|a - b| / (eps · max|wanted|)`, with eps the spacing of the dtype at
1. An element of a sum that cancels cannot be more exact than its terms, which are as large as the largest elements;
ulps of the element itself would call that noise an error.

What is allowed is the larger of a fixed number of ulps and a multiple of the source's own rounding: how far the source is
in this precision from itself in a wider one (where there is none, from itself with every variable and input moved by one
ulp). So a deep or badly conditioned model is judged by what it can compute, and a good one strictly. In float64 only the
fixed number counts; it lies far above the rounding of any model and far below what float32 could resolve, so that two
functions that agree there are the same function and not a near miss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges._infer._arrays import Inputs, cotangent, is_real
from bridges._infer._graph import QUICK
from bridges.core._flat import flatten
from bridges.core._jaxpr import narrower
from converters._side import Side

ULPS = {"float64": 2.0**22, "float32": 16.0, "float16": 4.0, "bfloat16": 4.0}
TIMES = 8.0  # allowed: so many times the source's own rounding
# A leaf whose largest value is below this part of the largest of its group is compared at this size: a gradient that
# is zero in exact arithmetic (that of an attention's key bias) is nothing but rounding.
FLOOR = {"float64": 2.0**-20, "float32": 2.0**-10, "float16": 2.0**-4, "bfloat16": 2.0**-4}

Flat = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one side computed: flat NumPy arrays.

    Attributes:
      out: The outputs, by path.
      new: The variables after the call; empty where they are not known.
      variables: Gradients with respect to real variables; None if they were not asked for.
      inputs: Gradients with respect to real inputs.
      narrow: Whether some value was computed in a narrower floating dtype than that asked for.
    """

    out: dict[str, Any]
    new: dict[str, Any]
    variables: dict[str, Any] | None
    inputs: dict[str, Any]
    narrow: str = ""


class Run:
    """One side compiled for one precision: called with variables and inputs, it gives an `Outcome`.

    Args:
      side: The model.
      flat: Its variables, with `extras`.
      inputs: Where arrays go among the inputs.
      arrays: The inputs' arrays.
      loss: `loss(output) -> scalar`; None for `cotangent`.
      gradients: Whether gradients are wanted.
    """

    def __init__(
        self, side: Side, flat: Flat, inputs: Inputs, arrays: Flat, loss: Callable[[Any], Any] | None, gradients: bool
    ):
        def forward(real: Flat, xs: Flat, rest: Flat, fixed: Flat) -> tuple[Any, Any]:
            out, new = side.run({**real, **rest}, inputs.filled({**xs, **fixed}))
            value = (loss or cotangent)(out)
            return value, (out, {} if new is None else {p: v for p, v in new.items() if p in flat})

        def step(real: Flat, xs: Flat, rest: Flat, fixed: Flat) -> Any:
            if not gradients or not (real or xs):
                return forward(real, xs, rest, fixed)[1], None
            (_, aux), grads = jax.value_and_grad(forward, (0, 1), has_aux=True)(real, xs, rest, fixed)
            return aux, grads

        args = (*_parted(flat), *_parted(arrays))
        traced = jax.jit(step).trace(args[0], args[2], args[1], args[3])
        sizes = [np.dtype(x.dtype).itemsize for x in [*args[0].values(), *args[2].values()] if _floating(x)]
        self._narrow = narrower(traced.jaxpr.jaxpr, max(sizes, default=4))
        # In float64 what is computed counts, not how fast the program is; in the others it is the program that users run.
        quick = max(sizes, default=4) == 8
        self._compiled = traced.lower().compile(QUICK if quick else None)

    def __call__(self, flat: Flat, arrays: Flat) -> Outcome:
        (real, rest), (xs, fixed) = _parted(flat), _parted(arrays)
        (out, new), grads = self._compiled(real, xs, rest, fixed)
        of_variables, of_inputs = (None, {}) if grads is None else grads
        kept, after, gradients, others = jax.tree.map(_host, (flatten(out), dict(new), of_variables, of_inputs))
        return Outcome(kept, after, gradients, others, self._narrow)


def _host(x: Any) -> Any:
    return x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)


def _floating(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, np.floating)


def _parted(flat: Flat) -> tuple[dict[str, Any], dict[str, Any]]:
    real = {path: x for path, x in flat.items() if is_real(x)}
    return real, {path: x for path, x in flat.items() if path not in real}


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far two arrays are apart.

    Attributes:
      ulps: In ulps of the largest wanted value.
      relative: As a part of the largest wanted value.
      allowed: The ulps that are allowed.
      problem: What is wrong apart from the size of the error (shape, dtype, NaN); empty if nothing is.
    """

    ulps: float
    relative: float
    allowed: float
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem and self.ulps <= self.allowed


def distances(wanted: Flat, got: Flat, rounding: Mapping[str, float], dtype: str, floor: bool) -> dict[str, Distance]:
    """Returns the distance of each wanted leaf from what was got; a leaf that only one of the two has is a problem.

    Args:
      wanted: The source's values.
      got: The target's.
      rounding: The source's own rounding of each leaf, absolute; nothing for none.
      dtype: The precision of the run.
      floor: Whether small leaves are compared at the size of their group.
    """
    tops = {path: top(x) for path, x in wanted.items()}
    least = max(tops.values(), default=0.0) * FLOOR[dtype] if floor else 0.0
    eps = float(jnp.finfo(dtype).eps)
    scales = {path: max(value, least) for path, value in tops.items()}
    usual = sorted(rounding.get(p, 0.0) / s for p, s in scales.items() if s > 0)
    middle = usual[len(usual) // 2] if usual else 0.0
    found = {}
    for path in [*wanted, *(p for p in got if p not in wanted)]:
        if path not in wanted or path not in got:
            found[path] = Distance(np.inf, np.inf, 0, f"only the {'target' if path in got else 'source'} has it")
            continue
        scale = scales[path]
        own = max(rounding.get(path, 0.0) / scale if scale > 0 else 0.0, middle)
        found[path] = distance(wanted[path], got[path], scale, max(ULPS[dtype], TIMES * own / eps), eps)
    return found


def top(x: Any) -> float:
    """Returns the largest absolute value, 0 for what is empty or no number."""
    if not np.size(x) or not _numeric(x):
        return 0.0
    return float(np.max(np.abs(_wide(x))))


def _numeric(x: Any) -> bool:
    return hasattr(x, "dtype") and not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _wide(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def distance(wanted: Any, got: Any, scale: float, allowed: float, eps: float) -> Distance:
    """Returns how far `got` is from `wanted`, at the given scale."""
    if tuple(np.shape(wanted)) != tuple(np.shape(got)):
        return Distance(np.inf, np.inf, allowed, f"the shape is {np.shape(got)}, the source's {np.shape(wanted)}")
    if wanted.dtype != got.dtype:
        return Distance(np.inf, np.inf, allowed, f"the dtype is {got.dtype}, the source's {wanted.dtype}")
    if not _numeric(wanted) or not np.size(wanted):
        return Distance(0.0, 0.0, allowed)
    if not is_real(wanted):
        wrong = int(np.sum(np.asarray(wanted) != np.asarray(got)))
        return Distance(
            np.inf if wrong else 0.0, np.inf if wrong else 0.0, 0, f"{wrong} values differ" if wrong else ""
        )
    a, b = _wide(wanted), _wide(got)
    for name, x in (("source", a), ("target", b)):
        bad = int(np.sum(~np.isfinite(x)))
        if bad:
            return Distance(np.inf, np.inf, allowed, f"{bad} of {x.size} values of the {name} are NaN or infinite")
    error = float(np.max(np.abs(a - b)))
    if error == 0:
        return Distance(0.0, 0.0, allowed)
    if scale == 0:
        return Distance(np.inf, np.inf, allowed, f"the source has zeros only, the target up to {top(b):.3g}")
    return Distance(error / scale / eps, error / scale, allowed)


def apart(a: Flat, b: Flat) -> dict[str, float]:
    """Returns the largest absolute difference of each leaf, for leaves of the same shape."""
    found = {}
    for path, x in a.items():
        y = b.get(path)
        if y is not None and is_real(x) and is_real(y) and np.shape(x) == np.shape(y) and np.size(x):
            error = np.abs(_wide(x) - _wide(y))
            found[path] = float(np.max(error)) if np.all(np.isfinite(error)) else 0.0
    return found


def nudged(flat: Flat, dtype: str) -> dict[str, Any]:
    """Returns the real arrays with every element moved by up to one ulp, up, down or not at all."""
    rng = np.random.default_rng(11)
    eps = float(jnp.finfo(dtype).eps)

    def move(x: Any) -> Any:
        if not is_real(x):
            return x
        return (np.asarray(x) * (1 + eps * rng.integers(-1, 2, np.shape(x)))).astype(x.dtype)

    return {path: move(x) for path, x in flat.items()}


def constant(flat: Flat) -> list[str]:
    """Returns the paths of real outputs of several elements that all have one value: nothing can differ there."""
    return [
        path for path, x in flat.items() if is_real(x) and np.size(x) > 1 and np.all(np.asarray(x) == np.ravel(x)[0])
    ]
