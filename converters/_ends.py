"""Ends: the two sides of a comparison with their variables and the plan between them, from whatever the caller had."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import bridges
from bridges._infer._arrays import cast, cast_all, is_real, plan_in
from bridges._infer._random import randomised
from bridges.core._errors import BridgeError, StructureError, describe
from bridges.core._spec import Spec
from bridges.mapping._mapping import Mapping as Rules
from bridges.mapping._plan import Plan
from converters._frameworks import FRAMEWORKS
from converters._side import (
    Form,
    Side,
    form_of,
    framework_of,
    function_side,
    model_side,
    named,
)


@dataclasses.dataclass(frozen=True)
class Ends:
    """Both sides, ready to run.

    Attributes:
      modes: 'eval', and 'train' where it was given -> the two sides.
      plan: The plan, if there is one.
      src: The source's flat variables.
      dst: The target's flat variables, as they were given or as the plan makes them.
      as_planned: Whether `dst` is what the plan makes of `src`.
      differing: Target paths whose values are not what the plan makes, with what it makes.
      made_up: Whether the source's variables are random because none were given.
    """

    modes: Mapping[str, tuple[Side, Side]]
    plan: Plan | None
    src: Mapping[str, Any]
    dst: Mapping[str, Any]
    as_planned: bool
    differing: Mapping[str, Any]
    made_up: bool

    def variables(self, dtype: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns both sides' variables in a precision."""
        src = cast_all(self.src, np.dtype(dtype))
        if self.plan is not None and self.as_planned:
            return src, {**dict(plan_in(self.plan, dtype).forward(_within(src, self.plan))), **self._others(dtype)}
        return src, cast_all(self.dst, np.dtype(dtype))

    def _others(self, dtype: str) -> dict[str, Any]:
        planned = self.plan.dst if self.plan is not None else {}
        return {path: cast(x, np.dtype(dtype)) for path, x in self.dst.items() if path not in planned}


def _within(src: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    return {path: src[path] for path in plan.src}


def ends_of(
    models: tuple[Any, Any],
    inputs: Sequence[Any],
    *,
    frameworks: tuple[str | None, str | None],
    train: tuple[Any, Any] | None,
    src: Any,
    dst: Any,
    plan: Any,
    seed: int,
) -> Ends:
    """Returns the ends of a comparison; see `converters.verify` for the arguments."""
    kinds = [framework or framework_of(model) for model, framework in zip(models, frameworks, strict=True)]
    for kind in kinds:
        if kind is not None and kind not in FRAMEWORKS:
            raise BridgeError(f"{kind!r} is no framework that is known: they are {', '.join(FRAMEWORKS)}.")
    sides = [
        model_side(model, kind, inputs, end) if kind else None
        for model, kind, end in zip(models, kinds, ("source", "target"), strict=True)
    ]
    if plan is None and all(sides):
        plan = bridges.conventions(str(kinds[0]), str(kinds[1]))
    if plan is not None and not isinstance(plan, Plan):
        plan = Rules.of(plan)
        if all(sides) and not any(part.layers for part in plan.parts):  # it only says where modules went
            plan |= bridges.conventions(str(kinds[0]), str(kinds[1]))
        specs = [side.spec if side and side.spec else _spec(tree) for side, tree in zip(sides, (src, dst), strict=True)]
        plan = plan.plan(*specs)
    made_up = src is None
    if src is None:
        entries = plan.src if plan is not None else sides[0].spec.entries if sides[0] and sides[0].spec else None
        if entries is None:
            raise BridgeError("There are no variables to compare with: pass src=, the source's variables.")
        src = randomised(entries, seed)
    if plan is None and dst is None:
        unknown = [end for end, side in zip(("source", "target"), sides, strict=True) if side is None]
        marks = "', '".join(kind or "…" for kind in kinds)
        raise BridgeError(
            "Pass plan=, or dst=, the target's variables: else there is nothing to run the target with. The"
            f" {' and the '.join(unknown)} {'was' if len(unknown) == 1 else 'were'} taken for apply(variables, *inputs); a"
            f" function that is a model needs its framework said, frameworks=('{marks}')."
        )
    src_flat, src_form = _read(src, plan.src if plan is not None else None, plan, 0, sides[0])
    dst_flat: dict[str, Any] = {}
    dst_form: Form | None = None
    abstract = dst is not None and any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(dst))
    if dst is not None:
        dst_flat, dst_form = _read(dst, plan.dst if plan is not None else None, plan, 1, sides[1])
    if abstract and plan is None:
        raise BridgeError("The target's variables are abstract: pass plan= too, so that they have values.")
    planned = {} if plan is None else dict(plan.forward(_within(src_flat, plan)))
    extras = sides[1].extras if sides[1] else {}
    if dst is None or abstract:
        loose = [p for p, x in dst_flat.items() if p not in planned and isinstance(x, jax.ShapeDtypeStruct)]
        if loose:
            raise StructureError(f"The plan gives no value for {loose}: pass concrete variables as dst=.")
        dst_flat = {**extras, **dst_flat, **planned}
        differing: dict[str, Any] = {}
    else:
        dst_flat = {**extras, **dst_flat}
        differing = {p: x for p, x in planned.items() if not _same(x, dst_flat[p], plan)}
    if dst_form is None:
        state = bridges.State(dst_flat, plan.dst.declared if plan is not None else None)
        dst_form = Form(jax.tree.structure(state), tuple(state))
    forms = (src_form, dst_form)
    pairs = {"eval": models, **({} if train is None else {"train": train})}
    modes = {
        mode: (
            _side(pair[0], mode, 0, forms[0], inputs, frameworks[0]),
            _side(pair[1], mode, 1, forms[1], inputs, frameworks[1]),
        )
        for mode, pair in pairs.items()
    }
    src_flat = {**(sides[0].extras if sides[0] else {}), **src_flat}
    return Ends(modes, plan, src_flat, dst_flat, plan is not None and not differing, differing, made_up)


def _side(model: Any, mode: str, end: int, form: Form, inputs: Sequence[Any], framework: str | None) -> Side:
    name = ("source", "target")[end]
    kind = framework or framework_of(model)
    if kind:
        return model_side(model, kind, inputs, name)
    return function_side(model, form, mode == "train", name)


def _spec(tree: Any) -> Spec:
    if tree is None:
        raise BridgeError("A mapping is planned between two models or their variables: pass src= and dst=, or a Plan.")
    return Spec.of(named(tree, None, "variables"))


def _read(tree: Any, wanted: Any, plan: Plan | None, end: int, side: Side | None) -> tuple[dict[str, Any], Form]:
    what = ("source's variables", "target's variables")[end]
    known = None
    if wanted is not None and plan is not None:
        known = [*wanted, *(plan.src_random, plan.dst_random)[end]]
    elif side is not None and side.spec is not None:
        known = [*side.spec.entries]
    form = form_of(tree, known, what, partly=True)
    flat = dict(zip(form.paths, jax.tree.leaves(tree), strict=True))
    lacking = [path for path in wanted or () if path not in flat]
    if lacking:
        raise StructureError(f"The {what} lack entries of the plan: {', '.join(map(repr, lacking))}.")
    return flat, form


def _same(planned: Any, given: Any, plan: Plan | None) -> bool:
    """Whether a target's value is what the plan makes: bit for bit, or to the rounding of an offset or a scale."""
    if np.shape(planned) != np.shape(given):
        return False
    if jax.dtypes.issubdtype(planned.dtype, jax.dtypes.prng_key):
        return True
    a, b = np.asarray(planned), np.asarray(given)
    if np.array_equal(a, b):
        return True
    if not is_real(a) or plan is None or plan.verdict == "exact":
        return False
    eps = float(jax.numpy.finfo(a.dtype).eps)
    return bool(np.all(np.abs(a.astype(np.float64) - b) <= 2 * eps * np.maximum(1.0, np.abs(a.astype(np.float64)))))


def shape_text(stages: Sequence[Sequence[Any]]) -> str:
    """Returns `float32[3,4] -> float32[12]` for the first and the last stage of an item."""
    ends = [" + ".join(map(describe, stage)) for stage in (stages[0], stages[-1])]
    return ends[0] if ends[0] == ends[1] else " -> ".join(filter(None, ends))
