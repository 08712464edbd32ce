"""Source: the network whose leaves are known, gone through once; where leaves meet data in it is recorded.

Every meeting is recorded in the ways in which another network may write it: with its offset and without, with what is
added to it taken apart or as one known value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bridges._infer._element_keys import element_keys
from bridges._infer._form import Form, Mono
from bridges._infer._graph import Graph
from bridges._infer._keys import U, fresh, total
from bridges._infer._leaves import Leaves
from bridges._infer._numbers import host, numbers
from bridges._infer._table import MOST_SLICES, SAME, Table, aligned, parted
from bridges._infer._value import Stuck, Value
from bridges._infer._walk import Walk


@dataclasses.dataclass(frozen=True)
class Entry:
    """A meeting of leaves and data in the source.

    Attributes:
      form: What meets.
      num, gid: The value and the keys of its elements.
      keys: What each element is made of.
      place: The step and output that it was recorded for.
    """

    form: Form
    num: np.ndarray
    gid: np.ndarray
    keys: np.ndarray
    place: tuple[int, int]

    def part(self, at: tuple[slice, ...]) -> Entry:
        """Returns the part of the meeting that slices take."""
        shape = self.keys.shape
        form = self.form.each(lambda x: np.broadcast_to(x, shape)[at])
        return Entry(form, self.num[at], self.gid[at], self.keys[at], self.place)


class Source(Walk):
    """The source, gone through.

    Attributes:
      table: Its values.
      entries: Its meetings, by size and the sum of the keys of their elements.
    """

    def __init__(self, graph: Graph, leaves: Leaves):
        super().__init__(graph, leaves)
        self.table = Table()
        self.entries: dict[tuple[int, int], list[Entry]] = {}
        self._next = 1 << 60
        self._numbers: dict[int, Any] = {}
        self._here = 0
        self._slices: dict[tuple[int, int], list[tuple[Entry, int, int, int]]] | None = None

    def run(self) -> None:
        """Goes through all steps."""
        self.roots()
        for value in self.values.values():
            if value is not None and value.data and isinstance(value.num, np.ndarray) and value.gid is not None:
                self.table.add(value.num, value.gid)
        for i in range(len(self.graph.steps)):
            self._here = i
            try:
                self.step(i)
            except Stuck:  # it needs what could not be told: a complex leaf
                self.values.update(dict.fromkeys(self.graph.steps[i].outs))

    def register(self, num: Any, hint: np.ndarray | None, place: tuple[int, int]) -> tuple[Any, Any, bool]:
        if not isinstance(num, np.ndarray):
            return num, None, False
        if num.dtype.kind == "f" and not num.any():
            return num, np.zeros(num.shape, U), False
        for row in self.table.find(num):
            if (same := aligned(num, hint, row)) is not None and same[2] <= SAME:
                return num, same[0], False
        gid = fresh(self._next, num.shape)
        self._next += num.size + 1
        if num.dtype.kind in "fiu":
            self.table.add(num, gid, hint, place[0] if place[0] >= 0 else self._here)
        return num, gid, False

    def moved(self, value: Value, place: tuple[int, int]) -> Value:
        if isinstance(value.num, np.ndarray) and value.gid is not None and value.num.dtype.kind in "fiu":
            self.table.add(value.num, value.gid, None, place[0])
        return value

    def pseudo(self, i: int, o: int, shape: tuple[int, ...] | None = None) -> Form:
        return self._with_numbers(super().pseudo(i, o, shape))

    def pseudo_of_reciprocal(self, i: int, value: Value) -> Form:
        return self._with_numbers(super().pseudo_of_reciprocal(i, value))

    def _with_numbers(self, form: Form) -> Form:
        last = self.leaves.pseudos[-1]
        if not self.leaves.known[last.refs].all():
            num = evaluate(self.graph, last.value, self._numbers)
            with np.errstate(all="ignore"):
                self.leaves.num[last.refs] = 1 / num if last.reciprocal else num
            self.leaves.known[last.refs] = True
        return form

    def met(self, value: Value, forms: Sequence[Form], place: tuple[int, int]) -> Value:
        assert value.num is not None and value.gid is not None
        for form in forms:
            self.record(form, value.num, value.gid, place)
            offsets = [m for m in form.monos if m.num is None]
            if offsets and (form.dots or any(m.num is not None for m in form.monos)):
                self._bare(form, offsets, value, place)
            for mono in form.monos if len(form.monos) == 1 and not form.dots else ():
                if len(mono.refs) > 1 and mono.num is not None:
                    for refs in mono.refs:
                        part = self.leaves.number(refs)
                        assert part is not None
                        num, gid, _ = self.register(np.asarray(mono.num * part), None, place)
                        self.record(Form(monos=(Mono((refs,), mono.num, mono.gid),)), num, gid, place)
        return value

    def _bare(self, form: Form, offsets: list[Mono], value: Value, place: tuple[int, int]) -> None:
        assert value.num is not None and value.gid is not None
        num: Any = value.num
        for mono in offsets:
            product: Any = 1.0
            for refs in mono.refs:
                part = self.leaves.number(refs)
                assert part is not None
                product = product * part
            num = num - product
        if form.const is not None:
            num = num - form.const
        num, gid, _ = self.register(np.asarray(num), None, place)
        self.record(form.without_offsets(), num, gid, place)
        self.record(Form((), tuple(offsets), ((gid, num),), form.const), value.num, value.gid, place)

    def slices(self, size: int, key: int) -> list[Entry]:
        """Returns the equal parts of meetings along an axis with this size and sum of keys."""
        if self._slices is None:
            self._slices = {}
            for entries in self.entries.values():
                for entry in entries:
                    for axis, m in enumerate(entry.keys.shape):
                        for count in [c for c in range(2, min(m, MOST_SLICES) + 1) if m % c == 0]:
                            for i, k in enumerate(total(parted(entry.keys, axis, count), 1)):
                                self._slices.setdefault((entry.keys.size // count, int(k)), []).append(
                                    (entry, axis, count, i)
                                )
        found = []
        for entry, axis, count, i in self._slices.get((size, key), []):
            shape = entry.keys.shape
            step = shape[axis] // count
            at = (slice(None),) * axis + (slice(i * step, (i + 1) * step),)
            found.append(entry.part(at))
        return found

    def record(self, form: Form, num: np.ndarray, gid: np.ndarray, place: tuple[int, int]) -> None:
        """Takes a meeting in."""
        keys = element_keys(self, form, num.shape)
        if keys.any():
            self.entries.setdefault((num.size, int(total(keys))), []).append(Entry(form, num, gid, keys, place))


def evaluate(graph: Graph, wanted: int, have: dict[int, Any]) -> Any:
    """Returns the numbers of a value, from those of roots and of what is in `have`, which is filled."""
    stack = [wanted]
    while stack:
        v = stack[-1]
        if v in have:
            stack.pop()
        elif v in graph.roots:
            have[v] = host(graph.roots[v])
        else:
            step = graph.steps[graph.maker[v]]
            lacking = [u for u in step.ins if u not in have]
            if lacking:
                stack += lacking
            else:
                have.update(zip(step.outs, numbers(step, [have[u] for u in step.ins]), strict=True))
    return have[wanted]
