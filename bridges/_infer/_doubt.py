"""Doubt: the leaf elements that were chosen among several while nothing confirmed the choice.

A choice is confirmed by a later one on data that depends on it, through something that is no sum: were it wrong, that data
would be none of the source's. A search that went through has no doubts, since the outputs agree.
"""

from __future__ import annotations

import numpy as np

from bridges._infer._candidates import LEVELS
from bridges._infer._choices import HORIZON
from bridges._infer._graph import Graph
from bridges._infer._layout import moved_inputs
from bridges._infer._target import Target


def doubtful(target: Target) -> np.ndarray:
    """Returns the leaf elements that are in doubt, by their numbers; none where the search was not stopped."""
    if not target.stuck:
        return np.zeros(0, np.int64)
    target.candidates.level = LEVELS - 1
    choices, leaves, graph = target.choices.made, target.leaves, target.graph
    upstream = [target.upstream(stuck) for stuck in target.stuck.values()]
    sealed: set[int] = set()
    for choice in reversed(choices):
        if choice.entry.form.dots:
            sealed |= _before(graph, choice.step)
    near = {k for steps in upstream for k in [k for k, c in enumerate(choices) if c.step in steps][-HORIZON:]}
    found = [np.zeros(0, np.int64)]
    ends = [*[c.mark for c in choices], leaves.mark()][1:]
    for k, (choice, end) in enumerate(zip(choices, ends, strict=True)):
        if not any(choice.step in steps for steps in upstream) or (choice.step in sealed and k not in near):
            continue
        if len(choice.tried) > 1 or next(choice.rest, None) is not None:
            found.append(leaves.since(choice.mark, end))
    return np.concatenate(found)


def _before(graph: Graph, i: int) -> set[int]:
    """The steps that a step depends on by more than sums and moves."""
    found: set[int] = set()
    stack = [(v, False) for v in graph.steps[i].ins]
    seen = set(stack)
    while stack:
        v, mixed = stack.pop()
        if v not in graph.maker:
            continue
        j = graph.maker[v]
        step = graph.steps[j]
        if mixed:
            found.add(j)
        plain = moved_inputs(step) is not None or step.name in ("add", "sub", "dot_general", "conv_general_dilated")
        plain = plain and sum(graph.data[u] for u in step.ins) < 2
        for u in step.ins:
            if graph.data[u] and (u, mixed or not plain) not in seen:
                seen.add((u, mixed or not plain))
                stack.append((u, mixed or not plain))
    return found
