"""Proof: both models on new random values, the target's converted by the mapping's plan: outputs and gradients.

In float64, where equal functions and near misses lie far apart; judged as float32 only if a model does not run in float64,
or computes something in float32 whatever it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges._infer._arrays import cast_all, cotangent, is_real, plan_in
from bridges._infer._end import End
from bridges._infer._graph import QUICK
from bridges._infer._inferred import Verified
from bridges.core._jaxpr import count, narrower, trace
from bridges.mapping._plan import Plan

_DULL = 1e-12  # of the largest gradient: the output does not depend on what has less
_SHORT = 1500  # operations that are compiled together
# Of the largest value; another epsilon or activation is far above the first.
LIMITS = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}


def verified(src: End, dst: End, plan: Plan, seed: int = 1) -> Verified:
    """Returns how far the models are apart, in float64 if both run in it.

    Args:
      src, dst: The models.
      plan: The plan between them.
      seed: For the source's variables.
    """
    found = _widest(src, dst, plan, src.values(seed))
    return found if np.isfinite(found.outputs) else _widest(src, dst, plan, src.values(seed, positive=True))


def _widest(src: End, dst: End, plan: Plan, values: Mapping[str, Any]) -> Verified:
    try:
        with jax.enable_x64(True):
            return _in(src, dst, plan, values, "float64")
    except (TypeError, ValueError) as err:  # a model that makes float32 of its own does not run in float64
        try:
            return _in(src, dst, plan, values, "float32")
        except Exception:
            raise err from None


def agree(found: Verified) -> bool:
    """Whether the difference is rounding."""
    limit = LIMITS[found.dtype]
    return found.outputs <= limit and found.gradients <= limit


def _in(src: End, dst: End, plan: Plan, values: Mapping[str, Any], dtype: str) -> Verified:
    given = cast_all(values, np.dtype(dtype))
    arrays = cast_all(src.inputs.arrays, np.dtype(dtype))
    made = plan_in(plan, dtype)
    mine = {p: given[p] for p in plan.src}
    theirs = {**cast_all(dst.fixed, np.dtype(dtype)), **dict(made.forward(mine))}
    here, there = _run(src, given, arrays), _run(dst, theirs, arrays)
    pulled = _pulled(made, mine, there[1])
    gradients = {p: x for p, x in here[1].items() if p in pulled}
    narrow = here[2] or there[2]
    apart = _apart(here[0], there[0]), _apart(list(gradients.values()), [pulled[p] for p in gradients])
    return Verified(narrow or dtype, *apart, _by_leaf(gradients, pulled))


def _by_leaf(wanted: Mapping[str, Any], got: Mapping[str, Any]) -> dict[str, float]:
    tops = {p: float(np.max(np.abs(x), initial=0)) for p, x in wanted.items()}
    least = _DULL * max(tops.values(), default=0.0)
    gaps = {p: float(np.max(np.abs(x - got[p]), initial=0)) for p, x in wanted.items()}
    return {p: gaps[p] / top if top > least else float("nan") for p, top in tops.items()}


def _run(end: End, flat: Mapping[str, Any], arrays: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any], str]:
    """Returns the outputs, the gradients of a random sum of them with respect to real variables, and any narrower dtype."""
    traced = trace(end.run, dict(flat), dict(arrays))
    real = {p: jnp.asarray(x) for p, x in flat.items() if is_real(x) and p in end.spec.entries}

    def loss(real: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        outs = jax.tree.leaves(traced({**flat, **real}, dict(arrays)))
        return cotangent(outs), outs

    # A long program runs operation by operation: layers that are alike share their compiled operations, while XLA takes
    # minutes for the program of a hundred layers as a whole.
    step = jax.grad(loss, has_aux=True)
    short = count(traced.closed.jaxpr) <= _SHORT
    gradients, outs = (jax.jit(step, compiler_options=QUICK) if short else step)(real)
    size = max((np.dtype(x.dtype).itemsize for x in real.values()), default=4)
    narrow = narrower(traced.closed.jaxpr, size)
    return [np.asarray(x) for x in outs], {p: np.asarray(x) for p, x in gradients.items()}, narrow


def _pulled(plan: Plan, src: Mapping[str, Any], gradients: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the gradients with respect to the source's variables, by the chain rule through the plan."""
    real = {p: jnp.asarray(x) for p, x in src.items() if is_real(x)}

    def forward(real: Mapping[str, Any]) -> dict[str, Any]:
        return {p: x for p, x in plan.forward({**src, **real}).items() if p in gradients and is_real(x)}

    made, back = jax.vjp(forward, real)
    return {p: np.asarray(x) for p, x in back({p: gradients[p].astype(x.dtype) for p, x in made.items()})[0].items()}


def _apart(a: list[Any], b: list[Any]) -> float:
    """Returns the largest difference, as a part of the largest value; infinite where shapes differ."""
    if [x.shape for x in a] != [x.shape for x in b]:
        return float("inf")
    worst = 0.0
    top = max((float(np.max(np.abs(x))) for x in a if x.size and is_real(x)), default=0.0)
    for x, y in zip(a, b, strict=True):
        if not x.size:
            continue
        if not is_real(x):
            worst = max(worst, float("inf") if not np.array_equal(x, y) else 0.0)
            continue
        gap = float(np.max(np.abs(x - y)))
        worst = max(worst, gap / top if top else gap)
    return worst if np.isfinite(worst) else float("inf")
