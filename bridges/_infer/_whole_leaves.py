"""Whole leaves of the source tried in the place of the one leaf that a stopped search lacks.

Where nothing but the leaf itself tells what it is (distances to the vectors of a codebook), there is no meeting to look up:
the leaf is needed as numbers. Leaves of the source that nothing was made of yet are tried, with their axes in every order.

Invariant: one is taken only if a value soon behind it is one of the source's.
"""

from __future__ import annotations

import itertools

import numpy as np

from bridges._infer._side import Side
from bridges._infer._source import Source
from bridges._infer._value import Stuck, Value
from bridges._infer._walk import Walk

AHEAD = 12  # steps behind the stop within which a value of the source must come


def guessed(target: Walk, source: Source, stuck: Stuck) -> int | None:
    """Returns where to go on after a whole source leaf took the place of the one that is lacking; None if none fits."""
    path = _lacking(target, stuck)
    if path is None:
        return None
    mine = target.leaves.refs(path)
    start = min(target.graph.readers.get(target.graph.variables[path], []))
    for other in source.leaves.paths:
        if source.values[source.graph.variables[other]] is None:
            continue
        theirs = source.leaves.refs(other)
        if theirs.size != mine.size or mine.size < 2 or target.leaves.are_taken(theirs.ravel()[:4]).any():
            continue
        for axes in itertools.permutations(range(theirs.ndim)) if theirs.ndim <= 4 else ():
            moved = theirs.transpose(axes)
            if [n for n in moved.shape if n > 1] != [n for n in mine.shape if n > 1]:
                continue
            mark, flat = target.leaves.mark(), moved.ravel()
            num = source.leaves.num[flat]
            target.leaves.assign(mine.ravel(), flat, np.ones(flat.size), np.zeros(flat.size), num)
            if _fits(target, start, stuck.step):
                return start
            target.leaves.undo(mark)
    return None


def _lacking(target: Side, stuck: Stuck) -> str | None:
    """Returns the one leaf of which nothing is known behind the values that are needed; None if there are more."""
    lacking = {
        path
        for v in stuck.values
        if target.values[v] is not None
        for path in target.graph.leaves[v]
        if not target.leaves.known[target.leaves.refs(path)].any()
    }
    return lacking.pop() if len(lacking) == 1 else None


def _fits(target: Walk, start: int, stop: int) -> bool:
    """Whether the steps around a stop can be done, and one makes a value of the source of values that are not."""
    steps = target.graph.steps
    with target.tried():
        for j in range(start, min(stop + AHEAD, len(steps))):
            try:
                target.step(j)
            except Stuck:
                return False
            made = [target.values[v] for v in steps[j].outs]
            ins = [x for v in steps[j].ins if (x := target.values[v]) is not None and x.data]
            if j >= stop and ins and all(x.private for x in ins) and all(map(_is_source, made)):
                return True
    return False


def _is_source(value: Value | None) -> bool:
    return value is not None and value.gid is not None and not value.private
