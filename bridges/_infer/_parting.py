"""Parting: the first place where two networks differ, and what differs there, found by trying.

Where the search stops, one thing at a time is made in the target what it is in the source: a constant of the code, or the
value that the stopped step reads. If the search then goes on over that place, this is what differs.

What it does not do: it does not go on behind the place; two differences at one place are not told.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from bridges._infer._found import Parting
from bridges._infer._layout import moved_inputs
from bridges._infer._target import Target
from bridges._infer._walk import Value

BACK = 80  # steps before the stop at which a constant may stand
TRIES = 120  # runs of these steps


def parting(target: Target) -> Parting | None:
    """Returns where the networks part, or where the search stopped; None where it did not."""
    if not target.stuck:
        return None
    i = min(target.stuck)
    if i >= len(target.graph.steps):
        stuck = target.stuck[i]
        return Parting("", "", f"output {stuck.values[1]} differs" if len(stuck.values) > 1 else "the outputs differ")
    found = _constant(target, i) or _operation(target, i)
    if found is not None:
        return found
    step = target.graph.steps[i]
    return Parting("", _place(target, i), f"no place of the source has the data that {step.name} reads here")


def _place(target: Any, i: int) -> str:
    step = target.graph.steps[i]
    return f"{step.scope} ({step.name})".strip()


def _constant(target: Target, i: int) -> Parting | None:
    """Tries the source's constants in the place of the target's."""
    theirs: dict[float, int] = {}
    for j, step in enumerate(target.source.graph.steps):
        for v in step.ins:
            if v in target.source.graph.roots and (c := _number(target.source.graph.roots[v])) is not None:
                theirs.setdefault(c, j)
    upstream = target.upstream(target.stuck[i])
    tries = 0
    for j in sorted(j for j in upstream | {i} if j >= i - BACK):
        for v in target.graph.steps[j].ins:
            mine = _number(target.graph.roots[v]) if v in target.graph.roots else None
            if mine is None:
                continue
            near = sorted(theirs, key=lambda c, m=mine: abs(np.log(abs(c) + 1e-30) - np.log(abs(m) + 1e-30)))  # type: ignore[misc]
            for c in near[:12]:
                if abs(c - mine) <= 1e-7 * abs(mine):
                    continue
                tries += 1
                if tries > TRIES:
                    return None
                kept = target.graph.roots[v], target.values[v]
                target.graph.roots[v] = np.float64(c)
                target.values[v] = Value((), False, np.asarray(c, np.float64))
                passed = _passes(target, j, i)
                target.graph.roots[v], target.values[v] = kept
                if passed:
                    src = _place(target.source, theirs[c])
                    text = f"the constant {c:.6g} in the source is {mine:.6g} in the target"
                    return Parting(src, _place(target, j), text, True)
    return None


_TRUTH = {"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "xor", "is_finite"}


def _number(x: Any) -> float | None:
    if np.size(x) != 1 or not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        return None
    value = float(np.ravel(np.asarray(x))[0])
    return value if np.isfinite(value) and 0 < abs(value) < 1e15 else None


def _passes(target: Target, start: int, stop: int) -> bool:
    """Whether the steps from one to another can be done, and the last by what the source has; nothing of it stays."""
    mark, choices = target.leaves.mark(), list(target.choices)
    kept = dict(target.values)
    target.level_for_probes()
    try:
        for j in range(start, stop + 1):
            target.step(j)
        outs = [target.values[v] for v in target.graph.steps[stop].outs]
        reads = [target.values[v] for v in target.graph.steps[stop].ins]
        good = all(x is not None and not x.private for x in outs) and all(
            x is not None and not x.private for x in reads
        )
        return good
    except Exception:  # a constant where it makes no sense: that does not pass
        return False
    finally:
        target.leaves.undo(mark)
        target.choices[:] = choices
        target.values.clear()
        target.values.update(kept)


def _operation(target: Target, i: int) -> Parting | None:
    """Tries the source's values in the place of one that the target computes with other operations."""
    graph, source = target.graph, target.source.graph
    upstream = target.upstream(target.stuck[i])
    for j in sorted(upstream):
        step = graph.steps[j]
        made = target.values.get(step.outs[0])
        if made is None or not made.private or moved_inputs(step) is not None:
            continue
        ins = [target.values[v] for v in step.ins]
        if any(x is None or x.private or x.num is None for x in ins if x is None or x.data):
            continue
        reads = {int(g) for x in ins if x is not None and x.data and x.gid is not None for g in np.ravel(x.gid)[:64]}
        for w, k in _made_of(target, reads):
            value = target.source.values[w]
            if value is None or value.num is None or value.gid is None or value.num.size != np.prod(made.shape):
                continue
            readers = [source.steps[m].name for m in source.readers.get(w, ())]
            if not readers or not isinstance(value.num, np.ndarray) or step.name in _TRUTH:
                continue  # a number does not stand for a truth value
            kept = target.values[step.outs[0]]
            target.values[step.outs[0]] = Value(
                made.shape, True, value.num.reshape(made.shape), value.gid.reshape(made.shape)
            )
            passed = _passes(target, j + 1, i)
            target.values[step.outs[0]] = kept
            if passed:
                text = f"the source has {source.steps[k].name} where the target has {step.name}"
                return Parting(_place(target.source, k), _place(target, j), text, True)
        return None
    return None


def _made_of(target: Target, keys: set[int]) -> Iterator[tuple[int, int]]:
    """Yields the source's values, with their steps, that are made of a value with these keys, a few steps on."""
    graph = target.source.graph
    reached: dict[int, int] = {}
    for step in graph.steps:
        for v in step.ins:
            value = target.source.values.get(v)
            if value is None or value.gid is None:
                continue
            depth = reached.get(v, 0)
            if depth == 0 and not keys & {int(g) for g in np.ravel(value.gid)[:64]}:
                continue
            if depth < 8:
                for out in step.outs:
                    reached[out] = min(reached.get(out, 99), depth + 1)
    for w in reached:
        yield w, graph.maker[w]
