"""Planned: what the layers' conventions say of leaves that the search leaves open, taken if the outputs then agree.

A plan that layers, shapes and the flow of data leave no doubt about is one hypothesis. It is tried where the search ended
early, on values drawn anew: if all outputs agree, the leaves are where the plan has them. What the search has placed keeps
its evidence.

What it does not do: take a part of a plan, or one that the outputs contradict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bridges._infer._arrays import plan_in
from bridges._infer._found import CONSTANT, STRUCTURE, Evidence, Found, Origin
from bridges.core._errors import BridgeError
from bridges.core._spec import Spec
from bridges.mapping._conventions import conventions, frameworks
from bridges.mapping._plan import Plan

TEXT = "by its layer's convention; with all leaves so, the outputs agree"


def planned(found: Found, src: Spec, dst: Spec, targets: Mapping[str, Any], same: Callable[[Found], bool]) -> Found:
    """Returns what was found, completed by the conventions' own plan if that holds.

    Args:
      found: From the search, with leaves that are open.
      src, dst: The specs of both ends.
      targets: The target's leaves by path.
      same: Whether the outputs agree if the leaves are so.
    """
    if not {src.framework, dst.framework} <= set(frameworks()) or not src.layers or not dst.layers:
        return found
    try:
        plan = conventions(src.framework, dst.framework).plan(src, dst)
    except BridgeError:  # it leaves a doubt, or refuses
        return found
    origins = origins_of(plan, src, found.sources, targets)
    if origins is None:
        return found
    kept = {p: found.origins[p] for p in origins if p in found.origins and _equal(found.origins[p], origins[p])}
    origins |= kept
    taken = {found.sources[int(i)] for o in origins.values() for i in np.unique(o.source) if i >= 0}
    whole = dataclasses.replace(
        found, origins=origins, unplaced=(), unused=tuple(p for p in found.sources if p not in taken), parting=None
    )
    return whole if same(whole) else found


def origins_of(plan: Plan, src: Spec, names: tuple[str, ...], targets: Mapping[str, Any]) -> dict[str, Origin] | None:
    """Returns a plan's targets element by element; None if a target is no rearrangement of the named sources.

    Args:
      plan: From `src`.
      src: The source's spec.
      names: The source's leaves, which `Origin.source` indexes.
      targets: The target's leaves, by path; those that the plan makes besides are left out.
    """
    known = {name: i for i, name in enumerate(names)}
    shapes = {p: tuple(x.shape) for p, x in src.entries.items()}
    rng = np.random.default_rng(0)
    values = {p: rng.normal(size=shapes[p]) for p in names}
    origins: dict[str, Origin] = {}
    for item in plan_in(plan, np.float64):
        if not any(path in targets for path in item.targets):
            continue
        if any(path not in known for path in item.sources):
            return None
        ends = np.cumsum([0, *(int(np.prod(shapes[p])) for p in item.sources)])
        numbers = [
            np.arange(a, b, dtype=np.float64).reshape(shapes[p])
            for a, b, p in zip(ends, ends[1:], item.sources, strict=False)
        ]
        try:
            zero, one = (item.forward([np.full_like(x, n) for x in numbers]) for n in (0, 1))
            coded, real = item.forward(numbers), item.forward([values[p] for p in item.sources])
        except BridgeError:  # sources that must be equal
            return None
        for path, shift, ones, code, wanted in zip(item.targets, zero, one, coded, real, strict=True):
            if path not in targets:
                continue
            scale = ones - shift
            constant = scale == 0
            number = np.where(constant, 0, (code - shift) / np.where(constant, 1, scale)).round().astype(np.int64)
            which = np.where(constant, -1, np.searchsorted(ends, number, "right") - 1)
            element = np.where(constant, 0, number - ends[np.maximum(which, 0)])
            leaf = np.array([known[p] for p in item.sources] or [-1])[which]
            kind = STRUCTURE if item.sources else CONSTANT
            origin = Origin(np.where(constant, -1, leaf), element, scale, shift, Evidence(kind, text=TEXT))
            sizes_fit = bool(np.all((number >= 0) & (number < max(int(ends[-1]), 1))))
            if not sizes_fit or not np.allclose(origin.value([values[p] for p in names]), wanted, rtol=1e-9, atol=1e-9):
                return None
            origins[path] = origin
    return origins if origins.keys() == targets.keys() else None


def _equal(one: Origin, two: Origin) -> bool:
    return (
        np.array_equal(one.source, two.source)
        and np.array_equal(one.element, two.element)
        and np.allclose(one.scale, two.scale)
        and np.allclose(one.shift, two.shift)
    )
