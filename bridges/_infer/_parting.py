"""Parting: the first place where two networks differ, and what differs there, found by trying.

Where the search stops, one thing at a time is made in the target what it is in the source: a constant of the code, or the
value that the stopped step reads. If the search then goes on over that place, this is what differs.

What it does not do: it does not go on behind the place; two differences at one place are not told.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from bridges._infer._found import Parting
from bridges._infer._numbers import ELEMENTWISE
from bridges._infer._target import Target
from bridges._infer._value import Value

BACK = 80  # steps before the stop at which a constant may stand
TRIES = 120  # runs of these steps
DEPTH = 16  # steps between a common value and one that is tried
ENDS = 8  # values of the target, the last before the stop first, in whose place the source's are tried


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
            for c in _nearest(mine, theirs)[:12]:
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


def _nearest(number: float, others: Iterable[float]) -> list[float]:
    """Returns numbers by how near they are in size, the nearest first."""
    size = np.log(abs(number) + 1e-30)
    return sorted(others, key=lambda c: abs(np.log(abs(c) + 1e-30) - size))


_TRUTH = {"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "xor", "is_finite"}


def _number(x: Any) -> float | None:
    if np.size(x) != 1 or not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        return None
    value = float(np.ravel(np.asarray(x))[0])
    return value if np.isfinite(value) and 0 < abs(value) < 1e15 else None


def _passes(target: Target, start: int, stop: int) -> bool:
    """Whether the steps from one to another can be done, and the last by what the source has; nothing of it stays."""
    step = target.graph.steps[stop]
    with target.tried():
        target.level_for_probes()
        try:
            for j in range(start, stop + 1):
                target.step(j)
        except Exception:  # a constant where it makes no sense: that does not pass
            return False
        values = [target.values[v] for v in (*step.outs, *step.ins)]
        return all(x is not None and not x.private for x in values)


def _operation(target: Target, i: int) -> Parting | None:
    """Tries values that the source makes of some data without a leaf, for those that the target makes of it without one."""
    graph, source = target.graph, target.source.graph
    values: Any = target.values
    mine = _spans(
        target, graph, sorted(target.upstream(target.stuck[i])), lambda v: v.gid is not None and not v.private
    )
    ends = sorted((v for v in mine if values[v].private), key=lambda v: -graph.maker[v])
    tries = 0
    for w in ends[:ENDS]:
        made, span = values[w], mine[w]
        keys = {int(g) for u in span.reads for g in np.ravel(values[u].gid)[:64]}
        theirs = _spans(target.source, source, range(len(source.steps)), functools.partial(_has, keys))
        inside = {j for other in theirs.values() for j in other.steps}

        def order(v: int, inside: set[int] = inside) -> tuple[bool, int]:  # first what goes on to a leaf
            return all(j in inside for j in source.readers.get(v, ())), source.maker[v]

        for v in sorted(theirs, key=order):
            value = target.source.values[v]
            if value is None or value.num is None or value.gid is None:
                continue
            if (
                value.num.size != np.prod(made.shape)
                or value.num.dtype == bool
                or graph.steps[span.last].name in _TRUTH
            ):
                continue  # a number does not stand for a truth value
            tries += 1
            if tries > TRIES:
                return None
            target.values[w] = Value(made.shape, True, value.num.reshape(made.shape), value.gid.reshape(made.shape))
            passed = _passes(target, span.last + 1, i)
            target.values[w] = made
            if passed:
                return _differing(target, span, theirs[v])
    return None


@dataclasses.dataclass(frozen=True)
class Span:
    """The steps from some values to another, without a leaf among them.

    Attributes:
      reads: The values that they begin at.
      others: Other data that takes part.
      steps: Their numbers.
    """

    reads: frozenset[int]
    others: frozenset[int]
    steps: frozenset[int]

    @property
    def last(self) -> int:
        return max(self.steps)


def _spans(walk: Any, graph: Any, steps: Iterable[int], begins: Callable[[Any], bool]) -> dict[int, Span]:
    """Returns the spans behind the values at which one begins, by the value at their end."""
    found: dict[int, Span] = {}
    for j in steps:
        step = graph.steps[j]
        reads, others, passed = set[int](), set[int](), {j}
        for u in step.ins:
            value = walk.values[u] if u < len(walk.values) or isinstance(walk.values, dict) else None
            if not graph.data[u]:
                if graph.leaves[u]:
                    break
            elif value is None or value.num is None:
                break
            elif begins(value):
                reads.add(u)
            elif u in found:
                reads |= found[u].reads
                others |= found[u].others
                passed |= found[u].steps
            else:
                others.add(u)
        else:
            if reads and len(passed) <= DEPTH:
                span = Span(frozenset(reads), frozenset(others), frozenset(passed))
                found.update({v: span for v in step.outs if (x := walk.values[v]) is not None and x.num is not None})
    return found


def _has(keys: set[int], value: Any) -> bool:
    return value.gid is not None and not keys.isdisjoint(int(g) for g in np.ravel(value.gid)[:64])


def _differing(target: Target, mine: Span, theirs: Span) -> Parting:
    graphs = target.source.graph, target.graph
    names = [
        list(dict.fromkeys(g.steps[j].name for j in sorted(span.steps)))
        for g, span in zip(graphs, (theirs, mine), strict=True)
    ]
    only = [[n for n in one if n not in two] for one, two in (names, names[::-1])]
    src, dst = (", ".join(some) or "nothing like it" for some in only)
    text = (
        f"the source has {src} where the target has {dst}" if any(only) else "the same operations have other constants"
    )
    plain = all(
        len(span.reads) == 1 and not span.others and ELEMENTWISE.issuperset(some)
        for span, some in zip((theirs, mine), names, strict=True)
    )
    return Parting(_place(target.source, min(theirs.steps)), _place(target, min(mine.steps)), text, plain)
