"""Proof: both models on new random values, the target's converted by the mapping's plan: outputs and gradients.

In float64, where equal functions and near misses lie far apart; judged as float32 only if a model does not run in float64,
or computes something in float32 whatever it is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges._infer._apart import apart
from bridges._infer._arrays import cast_all, cotangent, is_real, plan_in
from bridges._infer._end import End
from bridges._infer._graph import QUICK
from bridges._infer._inferred import Verified
from bridges.core._jaxpr import count, distinct, narrower, trace
from bridges.mapping._plan import Plan

_DULL = 1e-12  # of the largest gradient: the output does not depend on what has less
_SHORT = 1500  # operations that are compiled together
_ALIKE = 16  # operations for each that is different, from which on a program is mostly the same layers again
# Of the largest value; another epsilon or activation is far above the first.
LIMITS = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}


def verified(src: End, dst: End, plan: Plan, seed: int = 1) -> Verified:
    """Returns how far the models are apart, in float64 if both run in it.

    Args:
      src, dst: The models.
      plan: The plan between them.
      seed: For the source's variables.
    """
    found, numbers = _widest(src, dst, plan, src.values(seed))
    if numbers == 1:
        return found
    other, more = _widest(src, dst, plan, src.values(seed, positive=True))
    return other if more > numbers else found


def _widest(src: End, dst: End, plan: Plan, values: Mapping[str, Any]) -> tuple[Verified, float]:
    try:
        with jax.enable_x64(True):
            found = _in(src, dst, plan, values, "float64")
    except (TypeError, ValueError) as err:  # a model that makes float32 of its own does not run in float64
        try:
            return _in(src, dst, plan, values, "float32")
        except Exception:
            raise err from None
    if not found[0].no_gradients:
        return found
    other = _in(src, dst, plan, values, "float32")  # it may be only in float64 that there are none
    return found if other[0].no_gradients else other


def agree(found: Verified) -> bool:
    """Whether the difference is rounding."""
    limit = LIMITS[found.dtype]
    return found.outputs <= limit and (found.gradients <= limit or bool(found.no_gradients))


def _in(src: End, dst: End, plan: Plan, values: Mapping[str, Any], dtype: str) -> tuple[Verified, float]:
    """Returns how far the models are apart, and which part of the outputs are numbers in both."""
    given = cast_all(values, np.dtype(dtype))
    arrays = cast_all(src.inputs.arrays, np.dtype(dtype))
    made = plan_in(plan, dtype)
    mine = {p: given[p] for p in plan.src}
    theirs = {**cast_all(dst.fixed, np.dtype(dtype)), **dict(made.forward(mine))}
    here, there = _run(src, given, arrays), _run(dst, theirs, arrays)
    narrow = here.narrow or there.narrow or dtype
    outputs, numbers = apart(here.outs, there.outs), min(here.numbers, there.numbers)
    if reason := here.no_gradients or there.no_gradients:
        return Verified(narrow, outputs, float("nan"), {}, reason), numbers
    pulled = _pulled(made, mine, there.gradients)
    gradients = {p: x for p, x in here.gradients.items() if p in pulled}
    gap = apart(list(gradients.values()), [pulled[p] for p in gradients])
    return Verified(narrow, outputs, gap, _by_leaf(gradients, pulled)), numbers


@dataclasses.dataclass(frozen=True)
class _Ran:
    """One model's outputs, its gradients by path (or why there are none), and a dtype in it that is narrower."""

    outs: list[Any]
    gradients: dict[str, Any]
    no_gradients: str
    narrow: str

    @property
    def numbers(self) -> float:
        """Which part of the outputs are finite numbers; 1 if there are none."""
        real = [x for x in self.outs if is_real(x) and x.size]
        return sum(np.count_nonzero(np.isfinite(x)) for x in real) / max(1, sum(x.size for x in real)) if real else 1.0


def _by_leaf(wanted: Mapping[str, Any], got: Mapping[str, Any]) -> dict[str, float]:
    tops = {p: float(np.max(np.abs(x), initial=0, where=np.isfinite(x))) for p, x in wanted.items()}
    least = _DULL * max(tops.values(), default=0.0)
    dull = {p for p, x in wanted.items() if np.all(np.isfinite(x)) and tops[p] <= least}
    return {p: float("nan") if p in dull else apart([x], [got[p]]) for p, x in wanted.items()}


def _run(end: End, flat: Mapping[str, Any], arrays: Mapping[str, Any]) -> _Ran:
    """Returns the outputs, and the gradients of a random sum of them with respect to real variables."""
    traced = trace(end.run, dict(flat), dict(arrays))
    real = {p: jnp.asarray(x) for p, x in flat.items() if is_real(x) and p in end.spec.entries}

    def loss(real: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        outs = jax.tree.leaves(traced({**flat, **real}, dict(arrays)))
        return cotangent(outs), outs

    # A long program runs operation by operation: layers that are alike share their compiled operations, while XLA takes
    # minutes for the program of a hundred layers as a whole. Each different operation costs some 40 ms to compile alone;
    # together they cost as much from about 16 uses of each on (`_ALIKE`), and more than linearly beyond.
    jaxpr = traced.closed.jaxpr
    short = count(jaxpr) <= min(_SHORT, _ALIKE * distinct(jaxpr))

    def run(fn: Callable[..., Any]) -> Any:
        return (jax.jit(fn, compiler_options=QUICK) if short else fn)(real)

    reason = ""
    try:
        gradients, outs = run(jax.grad(loss, has_aux=True))
    except (ValueError, NotImplementedError) as err:  # loops that end by what they compute, callbacks
        gradients, outs = {}, run(loss)[1]
        reason = str(err).partition("\n")[0].partition(". ")[0]
    size = max((np.dtype(x.dtype).itemsize for x in real.values()), default=4)
    narrow = narrower(traced.closed.jaxpr, size)
    return _Ran([_host(x) for x in outs], {p: np.asarray(x) for p, x in gradients.items()}, reason, narrow)


def _host(x: Any) -> np.ndarray:
    key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if key else x)


def _pulled(plan: Plan, src: Mapping[str, Any], gradients: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the gradients with respect to the source's variables, by the chain rule through the plan."""
    real = {p: jnp.asarray(x) for p, x in src.items() if is_real(x)}

    def forward(real: Mapping[str, Any]) -> dict[str, Any]:
        return {p: x for p, x in plan.forward({**src, **real}).items() if p in gradients and is_real(x)}

    made, back = jax.vjp(forward, real)
    return {p: np.asarray(x) for p, x in back({p: gradients[p].astype(x.dtype) for p, x in made.items()})[0].items()}
