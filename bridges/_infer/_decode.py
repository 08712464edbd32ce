"""Decode: from the source element of every target element to the ops of the mapping language that bring it there.

Leaves that share elements make a group, and a group becomes one rule. Both of its ends are cut along axes into pieces until
each piece of the source is a piece of the target, whole, in an order that `rearranged` can say; the rule is then: cut the
source, reorder the pieces, rearrange each, join them. What is cut and how follows from the elements alone.

Invariant: the ops of a group, run on numbered elements, give exactly the elements that were found; this is checked.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bridges._infer._digits import rearranged
from bridges._infer._found import Origin
from bridges._infer._pieces import Pieces, Undecodable, distinct, numbered, valued
from bridges.core._errors import MappingError
from bridges.mapping._each import Reshape
from bridges.mapping._lists import Concat, Copy, Split, Stack, Unstack
from bridges.mapping._op import Abstract, Op
from bridges.mapping._resolve import resolve


@dataclasses.dataclass(frozen=True)
class Joint:
    """Leaves of the source that become leaves of the target, all of them by the same ops.

    Attributes:
      sources, targets: Paths.
      ops: From sources to targets.
      tied: Whether source elements go to several places.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    ops: tuple[Op, ...]
    tied: bool = False


def groups(origins: Mapping[str, Origin]) -> list[tuple[list[int], list[str]]]:
    """Returns the sources (as `Origin.source` numbers them) and the targets of each group of leaves that share elements."""
    leader: dict[Any, Any] = {}

    def find(x: Any) -> Any:
        while leader.setdefault(x, x) != x:
            leader[x] = x = leader[leader[x]]
        return x

    uses = {path: [i for i in distinct(origin.source) if i >= 0] for path, origin in origins.items()}
    for path, sources in uses.items():
        for i in sources:
            leader[find(i)] = find(path)
    found: dict[Any, tuple[list[int], list[str]]] = {}
    for path, sources in uses.items():
        if sources:
            mine = found.setdefault(find(path), ([], []))
            mine[0].extend(i for i in sources if i not in mine[0])
            mine[1].append(path)
    return list(found.values())


def decode(
    sources: Sequence[str], shapes: Mapping[str, tuple[int, ...]], targets: Mapping[str, Origin], names: Sequence[str]
) -> Joint:
    """Returns the joint of one group.

    Args:
      sources: The paths of its sources.
      shapes: Their shapes.
      targets: Its targets, with the elements of which they consist.
      names: What `Origin.source` indexes.

    Raises:
      Undecodable: No ops say it; the text says why.
    """
    group = _Group(list(sources), shapes, dict(targets), names)
    return group.joint()


class _Group:
    """The work on one group: every source element has a number, its code; the target is an arrangement of codes."""

    def __init__(
        self,
        sources: list[str],
        shapes: Mapping[str, tuple[int, ...]],
        targets: dict[str, Origin],
        names: Sequence[str],
    ):
        self.shapes = [shapes[path] for path in sources]
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        starts = {names.index(path): start for path, start in zip(sources, np.cumsum([0, *sizes[:-1]]), strict=True)}
        self.sources, self.sizes = sources, sizes
        self.targets = targets
        arranged = []
        for path, origin in targets.items():
            if np.any(origin.source < 0):
                raise Undecodable(f"a part of {path!r} is constant, and a part is not")
            base = np.zeros(max(names.index(p) for p in sources) + 1, np.int64)
            for i, start in starts.items():
                base[i] = start
            arranged.append(base[origin.source] + origin.element)
        self.plain = arranged
        self.scales = [np.broadcast_to(o.scale, o.source.shape) for o in targets.values()]
        self.shifts = [np.broadcast_to(o.shift, o.source.shape) for o in targets.values()]
        self.total = sum(sizes)

    def joint(self) -> Joint:
        values = self._values()
        if len(self.sources) == len(self.targets) == 1 and values is not None:
            found = rearranged(self.plain[0], self.shapes[0], self.plain[0].shape)
            if found is not None:
                tied = self.plain[0].size > self.total
                return self._made([*found, *valued(*values)], tied)
        codes = np.concatenate([np.ravel(c) for c in self.plain])
        counts = np.bincount(codes, minlength=self.total)
        if not counts.all():
            unused = self.sources[int(np.searchsorted(np.cumsum(self.sizes), int(np.argmin(counts)), "right"))]
            raise Undecodable(f"only a part of {unused!r} is used")
        tied = bool(np.any(counts > 1))
        first: list[Op] = []
        arranged, sizes, shapes = self.plain, self.sizes, self.shapes
        if tied:
            if len(set(counts.tolist())) > 1:
                raise Undecodable("some elements of the source go to more places than others")
            times = int(counts[0])
            first = [Copy(times, True)]
            arranged = _apart(self.plain, codes, self.sizes, times)
            sizes = [n for n in self.sizes for _ in range(times)]
            shapes = [s for s in self.shapes for _ in range(times)]
        pieces = Pieces(shapes, sizes, arranged, self.scales, self.shifts)
        return self._made([*first, *pieces.ops()], tied)

    def _values(self) -> tuple[float, float] | None:
        """Returns the scale and the shift of the first target, if all of it has the same."""
        scale, shift = self.scales[0], self.shifts[0]
        if not scale.size or np.ptp(scale) or np.ptp(shift):
            return None
        return float(scale.flat[0]), float(shift.flat[0])

    def _made(self, ops: list[Op], tied: bool) -> Joint:
        ins = [Abstract(shape, np.dtype(np.float64)) for shape in self.shapes]
        outs = [Abstract(c.shape, np.dtype(np.float64)) for c in self.plain]
        try:
            made = opened(ops, ins, outs)
            stages = resolve(made, ins, outs)
            arrays = [a.reshape(s) for a, s in zip(numbered(self.sizes), self.shapes, strict=True)]
            xs: list[Any] = [a.astype(np.float64) for a in arrays]
            for op, stage in zip(made, stages[1:], strict=True):
                xs = op.apply(xs, list(stage))
        except MappingError as err:
            raise Undecodable(str(err)) from err
        for x, codes, scale, shift in zip(xs, self.plain, self.scales, self.shifts, strict=True):
            if not np.allclose(x, codes * scale + shift, rtol=1e-12, atol=1e-9):
                raise Undecodable("the ops that were found do not give the elements that were found")
        return Joint(tuple(self.sources), tuple(self.targets), tuple(made), tied)


def _apart(arranged: list[np.ndarray], codes: np.ndarray, sizes: Sequence[int], times: int) -> list[np.ndarray]:
    """Returns the arrangements with a code of its own for each place that an element goes to."""
    order = np.argsort(codes, kind="stable")
    which = np.empty_like(codes)
    which[order] = np.arange(codes.size) % times  # the first, second, … place of the element
    ends = np.cumsum([0, *sizes])
    leaf = np.searchsorted(ends, codes, "right") - 1
    new = codes + ends[leaf] * (times - 1) + which * np.asarray(sizes)[leaf]
    out, at = [], 0
    for c in arranged:
        out.append(new[at : at + c.size].reshape(c.shape))
        at += c.size
    return out


def opened(ops: Sequence[Op], ins: Sequence[Abstract], outs: Sequence[Abstract]) -> list[Op]:
    """Returns the ops without the sizes that follow from both ends, so that they serve leaves of other sizes as well."""
    stages = resolve(ops, ins, outs)
    found = list(ops)
    for n in reversed(range(len(found))):
        for less in _LESS.get(type(found[n]), lambda op: [])(found[n]):
            tried = [*found[:n], less, *found[n + 1 :]]
            try:
                if resolve(tried, ins, outs) == stages:
                    found = tried
                    break
            except MappingError:
                continue
    return found


def _less_split(op: Any) -> list[Op]:
    same = len(set(op.sizes or ())) == 1
    return [dataclasses.replace(op, sizes=None), *([type(op)(op.axis, None, len(op.sizes), True)] if same else [])]


_LESS: dict[type, Callable[[Any], list[Op]]] = {
    Reshape: lambda op: [dataclasses.replace(op, shape=None)],
    Split: _less_split,
    Concat: _less_split,
    Stack: lambda op: [dataclasses.replace(op, parts=None)],
    Unstack: lambda op: [dataclasses.replace(op, parts=None)],
    Copy: lambda op: [dataclasses.replace(op, parts=None)],
}


def natural(path: str) -> list[Any]:
    """Returns a key that sorts paths with their numbers as numbers."""
    return [(int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"([0-9]+)", path)]
