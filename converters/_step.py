"""One training step of both sides, from an optimizer state that was in use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bridges._infer._arrays import is_real, plan_in
from bridges.core._errors import BridgeError
from bridges.core._kind import Param, kind_type
from bridges.core._state import State
from bridges.mapping._plan import Plan
from converters._ends import Ends
from converters._measure import Run, apart, distances, nudged
from converters.report import DIFFERENT, EQUAL, NOT_RUN, UNPROVEN, Check


def _trained(spec: State, among: Mapping[str, Any]) -> list[str]:
    """Returns the paths of parameters: what is declared so, or every real entry where nothing is declared."""
    kinds = spec.declared
    declared = any(kind is not None for kind in kinds.values())
    return [
        p
        for p in spec
        if p in among
        and is_real(among[p])
        and (not declared or (p in kinds and issubclass(kind_type(kinds[p]), Param)))
    ]


def step_checks(
    ends: Ends, runs: tuple[Run, Run], arrays: Mapping[str, Any], optimizer: Any, dtype: str, dull: frozenset[str]
) -> list[Check]:
    """Returns a check for each of the target's parameters after a step.

    The source makes a first step, so that moments are not zero. Its parameters and its optimizer state are converted; both
    sides make the second step, and the source's result, converted, is compared with the target's.

    Args:
      ends: Variables and plan.
      runs: Both sides, compiled.
      arrays: The inputs' arrays.
      optimizer: An optax transformation.
      dtype: The precision.
      dull: Source variables whose gradient is rounding: an optimizer that divides by its size makes noise of it.
    """
    if ends.plan is None:
        return [Check("step", dtype, "parameter", "", NOT_RUN, note="without a plan no optimizer state can be carried")]
    plan = plan_in(ends.plan, dtype)
    src, dst = ends.variables(dtype)
    mine = _trained(plan.src, src)
    if not mine:
        return [Check("step", dtype, "parameter", "", NOT_RUN, note="there are no parameters")]

    def stepped(run: Run, flat: dict[str, Any], paths: list[str], state: Any) -> tuple[dict[str, Any], Any, Any]:
        params = State({p: jax.numpy.asarray(flat[p]) for p in paths})
        state = optimizer.init(params) if state is None else state
        gradients = run(flat, arrays).variables or {}
        updates, state = optimizer.update(State({p: jax.numpy.asarray(gradients[p]) for p in paths}), state, params)
        new = {p: np.asarray(params[p] + updates[p]).astype(flat[p].dtype) for p in paths}
        return {**flat, **new}, state, params

    first, state, params = stepped(runs[0], src, mine, None)
    made = _forward(plan, first)
    theirs = _trained(plan.dst, made)
    joined = {t for item in plan for t in item.targets if any(s in mine for s in item.sources)}
    theirs = [p for p in theirs if p in joined]
    try:
        carried = plan.optimizer(state, params, State({p: made[p] for p in theirs}))
    except BridgeError as err:
        return [Check("step", dtype, "parameter", "", NOT_RUN, note=f"plan.optimizer refuses: {err}")]
    second, *_ = stepped(runs[0], first, mine, state)
    wanted = _forward(plan, second)
    start = {**dst, **made} if ends.as_planned else dict(dst)
    got, *_ = stepped(runs[1], start, theirs, carried)
    rounding: dict[str, float] = {}
    if dtype != "float64":
        moved = {**first, **{p: nudged({p: first[p]}, dtype)[p] for p in mine}}
        other, *_ = stepped(runs[0], moved, mine, state)
        rounding = apart(wanted, _forward(plan, other))
    sources = {t: item.sources for item in plan for t in item.targets}
    paths = [p for p in theirs if not all(s in dull for s in sources[p])]
    still = [p for p in paths if np.array_equal(np.asarray(wanted[p]), np.asarray(made[p]))]
    checks = []
    if paths and len(still) == len(paths):
        checks.append(Check("step", dtype, "parameter", "", UNPROVEN, note="the optimizer moves no parameter"))
    found = distances({p: wanted[p] for p in paths}, {p: got[p] for p in paths}, rounding, dtype, False)
    for path, gap in found.items():
        status = EQUAL if gap.ok else DIFFERENT
        checks.append(Check("step", dtype, "parameter", path, status, gap.ulps, gap.relative, gap.allowed, gap.problem))
    return checks


def _forward(plan: Plan, flat: Mapping[str, Any]) -> dict[str, Any]:
    return {p: np.asarray(x) if is_real(x) else x for p, x in plan.forward({p: flat[p] for p in plan.src}).items()}
