"""solve: two networks in, for every target leaf the source elements that it consists of out."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bridges._infer._apart import apart
from bridges._infer._backwards import joined, turned
from bridges._infer._doubt import doubtful as doubtful_elements
from bridges._infer._draw import drawn_inputs, drawn_leaves, positive
from bridges._infer._found import STRUCTURE, VALUES, Evidence, Found, Network, Origin, Parting, Progress, Unplaced
from bridges._infer._graph import Graph
from bridges._infer._leaves import Leaves
from bridges._infer._parting import parting as parted_at
from bridges._infer._source import Source, evaluate
from bridges._infer._table import continued
from bridges._infer._target import Target
from bridges.core._errors import nearest

UNROLLED = 200_000
SAME = 2e-6  # how far outputs of one function are apart at most, as a part of the largest, in float32


def solve(
    src: Network,
    dst: Network,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    guess: Callable[[Found], Found] | None = None,
) -> Found:
    """Returns which source elements the target's leaves consist of; where one way leaves some open, the other is tried.

    Args:
      src, dst, seed, progress: As for `one_way`.
      guess: Completes what one way has found, if it can; asked before the other way is tried.
    """
    found = one_way(src, dst, seed=seed, progress=progress)
    if not found.unplaced or (found.parting is not None and found.parting.certain):
        return found
    if guess is not None and not (guessed := guess(found)).unplaced:
        return guessed
    began = time.perf_counter()
    back = one_way(dst, src, seed=seed, progress=progress)
    more = turned(back, src.variables, dst.variables)
    if back.parting is None and len(more) >= len(found.origins):  # as far as can be: nothing of a failed search stays
        open_ = [Unplaced(p, "no value of the source tells it") for p in sorted(dst.variables)]
        said = {item.path: item for item in found.unplaced}
        found = dataclasses.replace(
            found, origins={}, unplaced=tuple(said.get(item.path, item) for item in open_), parting=None
        )
    found = joined(found, more, src.variables)
    if not found.unplaced:
        error = compared(src, dst, found, seed + 1)
        if error < SAME:
            found = dataclasses.replace(found, parting=None)
        found = dataclasses.replace(found, error=error)
    seconds = {**found.seconds, "the other way": time.perf_counter() - began}
    return dataclasses.replace(found, unplaced=_with_candidates(found, src, dst), seconds=seconds)


def _with_candidates(found: Found, src: Network, dst: Network) -> tuple[Unplaced, ...]:
    """Returns the open leaves, those of which nothing is known with the source's unused leaves of their size."""
    sizes = {p: int(np.prod(np.shape(src.variables[p]))) for p in found.unused}
    out = []
    for item in found.unplaced:
        size = int(np.prod(np.shape(dst.variables[item.path])))
        alike = [p for p in found.unused if sizes[p] == size]
        names = {p.rpartition("/")[2] + "/" + p: p for p in alike}  # the leaf's own name counts most
        best = [names[n] for n in nearest(item.path.rpartition("/")[2] + "/" + item.path, names)]
        likely = tuple(dict.fromkeys([*best, *alike]))[:3]
        out.append(item if item.candidates else dataclasses.replace(item, candidates=likely))
    return tuple(out)


def compared(src: Network, dst: Network, found: Found, seed: int) -> float:
    """Returns how far the outputs are apart, as a part of the largest, if the leaves are as they were found."""
    inputs = drawn_inputs(src.inputs, seed)
    graphs = [_traced(side, inputs) for side in (src, dst)]
    shapes = {p: tuple(np.shape(x)) for p, x in sorted(src.variables.items())}
    values = drawn_leaves(graphs[0], src.variables, seed)
    return _anew(src, dst, graphs, found.origins, Leaves(shapes, values).paths, seed)


def one_way(src: Network, dst: Network, *, seed: int = 0, progress: Progress | None = None) -> Found:
    """Returns which source elements the target's leaves consist of, found by walking through the target.

    Args:
      src: The source.
      dst: The target; its inputs have the paths, shapes and dtypes of the source's.
      seed: For the values that are drawn.
      progress: Called now and then with the steps done, their number, and where the search is.
    """
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def lap(what: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[what] = now - began
        began = now

    inputs = drawn_inputs(src.inputs, seed)
    graphs = [_traced(side, inputs) for side in (src, dst)]
    lap("tracing")
    values = drawn_leaves(graphs[0], src.variables, seed)
    _set(graphs[0], values)
    shapes = [{p: tuple(np.shape(x)) for p, x in sorted(side.variables.items())} for side in (src, dst)]
    source = Source(graphs[0], Leaves(shapes[0], values))
    source.run()
    lap("source")
    target = Target(graphs[1], Leaves(shapes[1]), source, progress)
    target.run()
    lap("target")
    origins, unplaced = _placed(target)
    unused = _unused(source, target)
    parting = parted_at(target)
    error = float("inf")
    if not unplaced:
        error = _anew(src, dst, graphs, origins, source.leaves.paths, seed + 1)
        if parting is None and not error < SAME:
            text = "no numbers" if np.isnan(error) else f"{error:.1e} apart"
            parting = Parting("", "", f"on other values the outputs are {text}")
    lap("check")
    return Found(tuple(source.leaves.paths), origins, tuple(unplaced), tuple(unused), parting, error, seconds)


def _traced(side: Network, inputs: Mapping[str, Any]) -> Graph:
    """Returns the graph, traced in float64 where the model runs in it."""
    try:
        with jax.enable_x64(True):
            variables = {p: np.ones(np.shape(x), _wide(x.dtype)) for p, x in side.variables.items()}
            return Graph(side.run, variables, {p: _as(x, _wide(x.dtype)) for p, x in inputs.items()}, UNROLLED)
    except Exception:  # the model's own: its layers may not leave float32
        pass
    variables = {p: np.ones(np.shape(x), x.dtype) for p, x in side.variables.items()}
    return Graph(side.run, variables, {p: _as(x, side.inputs[p].dtype) for p, x in inputs.items()}, UNROLLED)


def _as(x: Any, dtype: Any) -> Any:
    return x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x, dtype)


def _wide(dtype: Any) -> Any:
    return np.float64 if jax.numpy.issubdtype(dtype, np.floating) else dtype


def _set(graph: Graph, values: Mapping[str, Any]) -> None:
    for path, v in graph.variables.items():
        graph.roots[v] = values[path]


def _placed(target: Target) -> tuple[dict[str, Origin], list[Unplaced]]:
    leaves, source = target.leaves, target.source.leaves
    starts = np.array([source.starts[p] for p in source.paths], np.int64)
    origins, unplaced = {}, []
    evidence = _evidence(target)
    doubtful = np.zeros(leaves.num.size, bool)
    doubtful[doubtful_elements(target)] = True
    for path in leaves.paths:
        refs = leaves.refs(path)
        known = leaves.known[refs]
        whole = leaves.source[refs]
        kind, text = VALUES, ""
        scale, shift = leaves.scale[refs], leaves.shift[refs]
        if doubtful[refs].any():
            names = {source.path_of(int(r)) for r in np.unique(whole[known & (whole >= 0)])[:1]} - {""}
            reason = "there are several candidates, and what would tell them apart could not be reached"
            unplaced.append(Unplaced(path, reason, tuple(sorted(names)), 0.0))
            continue
        if not known.all() and known.any():
            where = _continued(np.where(known, whole, -1), source, known, scale, shift)
            if where is not None:
                whole, kind = where, STRUCTURE
                text = f"{int(known.sum())} of {known.size} elements by values, the others by the same layout"
                scale, shift = np.full(refs.shape, scale[known][0]), np.full(refs.shape, shift[known][0])
                known = np.ones_like(known)
        if not known.all():
            unplaced.append(Unplaced(path, _reason(target, path), (), float(known.mean())))
            continue
        index = np.where(whole >= 0, np.searchsorted(starts, whole, "right") - 1, -1)
        element = np.where(whole >= 0, whole - starts[np.maximum(index, 0)], 0)
        said = dataclasses.replace(evidence.get(path, Evidence(kind)), kind=kind, text=text)
        origins[path] = Origin(index, element, scale, shift, said)
    return origins, unplaced


def _evidence(target: Target) -> dict[str, Evidence]:
    """Returns for each leaf where it was matched first, and how many later values that depend on it are the source's."""
    graph, source = target.graph, target.source.graph
    confirmed: dict[str, int] = {}
    errors: dict[str, float] = {}
    for v, (_, gap) in target.matched.items():
        if v >= 0 and target.values.get(v) is not None:
            for path in graph.leaves[v]:
                confirmed[path] = confirmed.get(path, 0) + 1
                errors[path] = max(errors.get(path, 0.0), gap)
    starts = np.array([target.leaves.starts[p] for p in target.leaves.paths], np.int64)
    found: dict[str, Evidence] = {}
    ends = [*[c.mark for c in target.choices.made], target.leaves.mark()][1:]
    for choice, end in zip(target.choices.made, ends, strict=True):
        refs = target.leaves.since(choice.mark, end)
        src, dst = source.steps[choice.entry.place[0]], graph.steps[choice.step]
        for k in np.unique(np.searchsorted(starts, refs[refs < target.leaves.count], "right") - 1):
            path = target.leaves.paths[k]
            at, to = (f"{x.scope} ({x.name})".strip() for x in (src, dst))
            error = errors.get(path, float("nan"))
            found.setdefault(path, Evidence(VALUES, at, to, error, confirmed.get(path, 0)))
    return found


def _reason(target: Target, path: str) -> str:
    v = target.graph.variables[path]
    if target.graph.kind(v) == "c":
        return "it is complex: where such leaves meet data is not followed"
    return "no value of the source tells it" if target.graph.readers.get(v) else "nothing in the target depends on it"


def _continued(
    where: np.ndarray, source: Leaves, known: np.ndarray, scale: np.ndarray, shift: np.ndarray
) -> np.ndarray | None:
    have = where[known]
    if np.any(have < 0) or np.ptp(scale[known]) or np.ptp(shift[known]):
        return None
    path = source.path_of(int(have[0]))
    if not path:
        return None
    first, size = source.starts[path], int(np.prod(source.shapes[path]))
    if have.min() < first or have.max() >= first + size:
        return None
    leaf = first + np.arange(size, dtype=np.int64).reshape(source.shapes[path])
    for axes in itertools.permutations(range(leaf.ndim)) if leaf.ndim <= 5 else ():
        moved = leaf.transpose(axes)
        if moved.shape == where.shape and np.array_equal(moved[known], have):
            return moved
    whole = continued(where, linear=True)
    if whole is None or whole.min() < first or whole.max() >= first + size or np.unique(whole).size != whole.size:
        return None
    return whole


def _unused(source: Source, target: Target) -> list[str]:
    taken = np.zeros(source.leaves.num.size, bool)
    found = target.leaves.source[: target.leaves.count][target.leaves.known[: target.leaves.count]]
    taken[found[found >= 0]] = True
    refs = {p: source.leaves.refs(p) for p in source.leaves.paths}
    return [p for p, ref in refs.items() if ref.size and not taken[ref].any()]


def _anew(
    src: Network, dst: Network, graphs: list[Graph], origins: Mapping[str, Origin], paths: Sequence[str], seed: int
) -> float:
    inputs = drawn_inputs(src.inputs, seed)
    values = drawn_leaves(graphs[0], src.variables, seed)
    given = [values[p] for p in paths]
    other = {p: o.value(given) for p, o in origins.items()}
    outs = []
    for graph, variables in zip(graphs, (values, other), strict=True):
        have: dict[int, Any] = {v: np.asarray(variables[p]) for p, v in graph.variables.items()}
        have.update({v: _like(inputs[p]) for p, v in graph.inputs.items()})
        outs.append([evaluate(graph, v, have) for v in graph.outs])
    if len(outs[0]) != len(outs[1]):
        return float("inf")
    gaps = [apart([a], [b]) for a, b in zip(*outs, strict=True) if isinstance(a, np.ndarray)]
    return float(np.max([0.0, *gaps]))  # NaN if one is


def _like(x: Any) -> Any:
    return _as(x, _wide(x.dtype))


__all__ = ["positive", "solve"]
