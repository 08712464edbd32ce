"""Proof: both models on new random values, the target's converted by the mapping's plan: outputs and gradients.

In float64, where equal functions and near misses lie far apart; in float32 only if a model does not run in float64 or
computes in float32 whatever it is given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges._infer._arrays import cast_all, is_real, plan_in
from bridges._infer._end import End
from bridges._infer._graph import QUICK
from bridges._infer._inferred import Verified
from bridges.mapping._plan import Plan

LIMITS = {"float64": 1e-9, "float32": 1e-4}  # of the largest value; another epsilon or activation is far above


def verified(src: End, dst: End, plan: Plan, seed: int = 1) -> Verified:
    """Returns how far the models are apart, in the widest precision that both compute in.

    Args:
      src, dst: The models.
      plan: The plan between them.
      seed: For the source's variables.
    """
    values = src.values(seed)
    wide = _in(src, dst, plan, values, "float64")
    return wide if wide is not None else _in(src, dst, plan, values, "float32")  # type: ignore[return-value]


def agree(found: Verified) -> bool:
    """Whether the difference is rounding."""
    limit = LIMITS[found.dtype]
    return found.outputs <= limit and found.gradients <= limit


def _in(src: End, dst: End, plan: Plan, values: Mapping[str, Any], dtype: str) -> Verified | None:
    wide = dtype == "float64"
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        given = cast_all(values, np.dtype(dtype))
        arrays = cast_all(src.inputs.arrays, np.dtype(dtype))
        made = plan_in(plan, dtype)
        mine = {p: given[p] for p in plan.src}
        theirs = {**cast_all(dst.fixed, np.dtype(dtype)), **dict(made.forward(mine))}
        try:
            here = _run(src, given, arrays)
            there = _run(dst, theirs, arrays)
        except Exception:
            if wide:  # a model that does not run in float64
                return None
            raise
        if wide and not all(x.dtype in (np.float64, np.complex128) for x in (*here[0], *there[0]) if is_real(x)):
            return None
        pulled = _pulled(made, mine, there[1])
        gradients = {p: x for p, x in here[1].items() if p in pulled}
        return Verified(
            dtype, _apart(here[0], there[0]), _apart(list(gradients.values()), [pulled[p] for p in gradients])
        )


def _run(end: End, flat: Mapping[str, Any], arrays: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Returns the outputs and the gradients of a random sum of them, with respect to real variables."""
    real = {p: jnp.asarray(x) for p, x in flat.items() if is_real(x) and p in end.spec.entries}
    rest = {p: x for p, x in flat.items() if p not in real}

    def loss(real: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        outs = jax.tree.leaves(end.run({**rest, **real}, arrays))
        rng = np.random.default_rng(0)
        total: Any = 0.0
        for out in outs:
            weights = rng.standard_normal(out.shape)
            if is_real(out):
                total += jnp.sum(jnp.real(out) * weights.astype(np.dtype(str(jnp.real(out).dtype))))
        return total, outs

    compiled = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)
    gradients, outs = compiled(real)
    return [np.asarray(x) for x in outs], {p: np.asarray(x) for p, x in gradients.items()}


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
