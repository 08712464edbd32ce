"""Digging: from a difference in the outputs to the first layer that differs, and other evidence for what outputs miss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bridges._infer._graph import Graph
from bridges._infer._match import Match, broken, informative, origin
from bridges.mapping._plan import Plan
from converters._hypotheses import of_leaves
from converters._layers import Layers, before, locate
from converters._reason import UNKNOWN, Bench, find
from converters.report import FirstDifference

_NEAR = 8  # steps from where a variable meets the data to a value that is taken as evidence for it


def first_difference(
    src: Graph, dst: Graph, plan: Plan | None, planned: Mapping[str, Any], *, mode: str, dtype: str, relative: float
) -> FirstDifference | None:
    """Returns where two graphs part, None if their outputs agree after all.

    Args:
      src, dst: The graphs.
      plan: For names.
      planned: What the plan makes of the source.
      mode, dtype: Of the run.
      relative: How far values may be apart to be the same.
    """
    match = Match(src, relative)
    bench = Bench(src, dst, match, set(), 0, relative)
    wrong = [v for v, out in zip(dst.outs, src.outs, strict=False) if bench.differ(dst.values[v], src.values[out])]
    carriers = broken(dst, match, wrong)
    at = origin(dst, carriers)
    if at is None:
        return None
    bench = Bench(src, dst, match, carriers, at, relative)
    layers = Layers(plan, dst.variables)
    place, after = locate(dst, layers, at, carriers)
    ahead = before(dst, layers, at, place)
    reason = find(bench, layers, place, after, None if after else layers.place(ahead.layer), planned)
    if reason.after and after is not None:
        place = after
    if reason.ahead:
        place = ahead
    if reason.place is not None:
        place = reason.place
    operation = dst.steps[at].name
    return FirstDifference(
        place.layer, place.src_layer, place.where, operation, place.paths, place.src_paths, reason.text, reason.evidence,
        mode, dtype,
    )  # fmt: skip


def gradient_difference(
    src: Graph, dst: Graph, plan: Plan | None, paths: Sequence[str], mode: str, dtype: str
) -> FirstDifference | None:
    """Returns the last layer whose gradient differs where outputs agree: from there backwards they part."""
    layers = Layers(plan, dst.variables)
    targets = {s: item.targets for item in plan or () for s in item.sources}
    met = {p: i for i in range(len(dst.steps)) for p in dst.own(i)}
    mine = sorted((t for p in paths for t in targets.get(p, ())), key=lambda t: met.get(t, -1))
    if not mine:
        return None
    place = layers.place(layers.layer(mine[-1]))
    stopped = [
        name for name, g in (("source", src), ("target", dst)) if any(s.name == "stop_gradient" for s in g.steps)
    ]
    text = f"outputs agree; a stop_gradient is in the {' and in the '.join(stopped)}" if stopped else "outputs agree"
    operation = dst.steps[met[mine[-1]]].name if mine[-1] in met else "gradient"
    return FirstDifference(
        place.layer, place.src_layer, place.where, operation, place.paths, place.src_paths,
        f"{UNKNOWN}: the derivative differs, not the value (a stopped or custom gradient)", text, mode, dtype,
    )  # fmt: skip


def by_values(src: Graph, dst: Graph, path: str, targets: Sequence[str], relative: float) -> str:
    """Returns what intermediate value proves a variable that the outputs do not depend on; '' if none does.

    A value counts if it is made of the variable in few steps, changes when the variable does, and is at both ends the same
    up to layout.
    """
    near_dst = {v for t in targets for v in _near(dst, t)}
    near_src = set(_near(src, path))
    match = Match(src, relative)
    dull = {dst.variables[t]: _other(dst.values[dst.variables[t]]) for t in targets if t in dst.variables}
    numbers = sorted(near_dst)
    for v, changed in zip(numbers, dst.again(dull, numbers), strict=True):
        value = dst.values[v]
        if not informative(value) or np.size(value) < 2:
            continue
        if near_src.intersection(match.find(value)) and not near_src.intersection(match.find(changed)):
            return f"by the value of `{dst.steps[dst.maker[v]].name}` that both make of it, {np.size(value)} numbers"
    return ""


def _other(x: Any) -> Any:
    values = np.random.default_rng(5).normal(size=np.shape(x)) + 0.5
    return jnp.asarray(values, x.dtype) if jnp.issubdtype(x.dtype, np.inexact) else x + 1


def _near(graph: Graph, path: str) -> list[int]:
    """Returns the data made of a variable within a few steps of where it meets the data."""
    if path not in graph.variables:
        return []
    distance: dict[int, int] = {}
    made = {graph.variables[path]}
    for step in graph.steps:
        if not any(v in made or v in distance for v in step.ins):
            continue
        if not any(graph.data[v] for v in step.outs):
            made.update(step.outs)
            continue
        least = min(distance.get(v, 0) for v in step.ins if v in made or v in distance)
        if least < _NEAR:
            distance.update({v: min(least + 1, distance.get(v, _NEAR)) for v in step.outs})
    return sorted(distance)


def related(differing: Mapping[str, Any], given: Mapping[str, Any], planned: Mapping[str, Any]) -> dict[str, str]:
    """Returns, for each target's variable that is not what the plan makes, how the two are related."""
    found = dict.fromkeys(differing, "it is not what the plan makes of the source")
    for path in differing:
        same = {p: x for p, x in given.items() if np.shape(x) == np.shape(given[path])}
        for text, leaves in of_leaves([path], same, {}, {}):
            if all(p in planned and _alike(x, planned[p]) for p, x in leaves.items()):
                found[path] = f"by the plan, {text}"
                break
    return found


def _alike(a: Any, b: Any) -> bool:
    if np.shape(a) != np.shape(b):
        return False
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return bool(np.max(np.abs(a - b), initial=0) <= 1e-6 * max(1.0, float(np.max(np.abs(b), initial=0))))
