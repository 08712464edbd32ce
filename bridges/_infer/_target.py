"""Target: the network whose leaves are looked for, gone through once, with choices that are taken back when they fail.

Where leaves meet data the source's meetings with the same data are the candidates. What a choice says of the leaves holds
until a later step contradicts it: a step that needs a value which no choice gives, or outputs that differ.

Invariant: a step is given up only after every choice that it depends on was tried within the bounds below; it is then
listed as stuck, its outputs are unknown, and the search goes on with what does not depend on them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bridges._infer._behind import place_behind
from bridges._infer._candidates import LEVELS, Candidates
from bridges._infer._choices import HORIZON, Choice, Choices, Place, result
from bridges._infer._element_keys import element_keys
from bridges._infer._equate import equate
from bridges._infer._form import Form
from bridges._infer._found import Progress
from bridges._infer._graph import Graph
from bridges._infer._joint import cuts, is_split_later, joint_keys
from bridges._infer._keys import U, fresh, total
from bridges._infer._leaves import Conflict, Leaves
from bridges._infer._source import Source
from bridges._infer._table import SAME, aligned
from bridges._infer._value import Stuck, Value
from bridges._infer._walk import Walk
from bridges._infer._whole_leaves import guessed

TRIES = 120  # choices that are taken back for one step, at each level; a quarter once a step was given up
ALL_TRIES = 600  # in all


class Target(Walk):
    """The target.

    Attributes:
      source: The other side, gone through.
      choices: What was chosen, in order.
      candidates: What may be chosen.
      matched: By value: the source step whose value it is, and the difference.
      stuck: The steps that could not be done, with what they needed.
    """

    def __init__(self, graph: Graph, leaves: Leaves, source: Source, progress: Progress | None):
        super().__init__(graph, leaves)
        self.source = source
        self.choices = Choices(leaves)
        self.candidates = Candidates(self, source)
        self.matched: dict[int, tuple[int, float]] = {}
        self.stuck: dict[int, Stuck] = {}
        self._next = 1 << 62
        self._progress = progress
        self._wholes: dict[
            int, dict[int, tuple[Value, Value]]
        ] = {}  # of values made in pieces at a step: before, after

    def run(self) -> None:
        """Goes through all steps, and compares the outputs."""
        self.roots()
        i, goal, count = 0, 0, len(self.graph.steps)
        tries = spent = 0
        upstream: set[int] = set()  # the steps that the goal depends on
        at_goal, guess = Stuck(0, []), -1
        first: list[tuple[int, int, int]] | None = None  # the choices with which the goal was first stuck
        while i <= count:
            if self._progress is not None and i % 16 == 0:
                self._progress(i, count, self.graph.steps[min(i, count - 1)].scope)
            try:
                if i == count:
                    self._outputs()
                else:
                    self.step(i)
                i += 1
                if i > goal and first is not None:
                    first, tries, self.candidates.level = None, 0, 0
                    self.choices.force(())
                continue
            except Stuck as err:
                if i == guess:  # as it was at first, and no choice helps
                    guess = -1
                    self.choices.force(())
                    if (start := guessed(self, self.source, err)) is not None:
                        first, i = None, start
                        continue
                    self.stuck[i] = at_goal
                if i in self.stuck or self.choices.forced:
                    self.stuck.setdefault(i, err)
                    if i < count:
                        self.values.update(dict.fromkeys(self.graph.steps[i].outs))
                    i += 1
                    continue
                stuck = err
            if first is None or i > goal:
                first, tries, self.candidates.level = self.choices.codes(), 0, 0
                goal, at_goal, upstream = i, stuck, self.upstream(stuck)
            tries, spent = tries + 1, spent + 1
            more = tries <= (TRIES // 4 if self.stuck else TRIES) and spent <= ALL_TRIES
            back = self.choices.back(upstream | self.upstream(stuck)) if more else None
            if back is not None:
                i = back
                continue
            open_now = [s for s, _, _ in first if s in upstream][-HORIZON:]
            if self.candidates.level < LEVELS - 1 and open_now and spent <= ALL_TRIES:
                self.candidates.level, tries = self.candidates.level + 1, 0  # again, with options that are less likely
                i = min(self.choices.restored(first, goal), open_now[0])
                self.choices.taken_back(i)
                self.choices.force(code for code in first if code[0] < open_now[0])
                continue
            self.candidates.level = 0
            i = self.choices.restored(first, goal)
            guess = goal if goal < count else -1
            if goal == count:
                self.stuck[goal] = at_goal

    def upstream(self, stuck: Stuck) -> set[int]:
        """Returns the steps that a stopped step, or the comparison of the outputs, depends on."""
        steps = self.graph.steps
        reads = self.graph.outs if stuck.step >= len(steps) else steps[stuck.step].ins
        return self.graph.upstream([*reads, *stuck.values])

    @contextlib.contextmanager
    def tried(self) -> Iterator[None]:
        """Takes back what is said and chosen within, on leaving."""
        choices = list(self.choices.made)
        with super().tried():
            yield
        self.choices.made[:] = choices

    def level_for_probes(self) -> None:
        """Makes single steps ready to be tried after the search."""
        self.candidates.level = 1
        self.choices.forget_plans()

    def _outputs(self) -> None:
        for k, (v, w) in enumerate(zip(self.graph.outs, self.source.graph.outs, strict=False)):
            mine, theirs = self.values[v], self.source.values[w]
            if mine is None or theirs is None:
                continue
            a, b = self.number(mine), self.source.number(theirs)
            if a is None and mine.data and self._in_pieces(v, mine, self.graph.maker[v]):
                made = self.values[v]
                a = None if made is None else made.num
            if a is None and mine.data and np.prod(mine.shape):
                raise Stuck(len(self.graph.steps), [v, k])
            if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
                continue
            scale = np.max(np.abs(b), initial=1e-30, where=np.isfinite(b)) if b.dtype.kind in "fc" else 1.0
            if a.shape != b.shape or not np.allclose(a, b, rtol=0, atol=2e-6 * scale, equal_nan=True):
                raise Stuck(len(self.graph.steps), [v, k])

    def register(self, num: Any, hint: np.ndarray | None, place: Place) -> tuple[Any, Any, bool]:
        if not isinstance(num, np.ndarray):
            return num, None, True
        if num.dtype.kind == "f" and not num.any():
            return num, np.zeros(num.shape, U), False
        out = self.graph.steps[place[0]].outs[place[1]] if place[0] >= 0 else -1
        best: tuple[np.ndarray, float, int] | None = None
        for row in self.source.table.find(num):
            if (same := aligned(num, hint, row)) is not None and (best is None or same[2] < best[1]):
                best = same[0], same[2], row.place
                if same[2] <= SAME:
                    break
        if best is not None:
            self.matched[out] = best[2], best[1]
            return num, best[0], False
        self.matched.pop(out, None)
        if (joint := joint_keys(self.source.table, num)) is not None:
            return num, joint, False
        for row in self.source.table.find_slices(num):
            if (same := aligned(num, None, row)) is not None and same[2] <= 100 * SAME:
                return num, same[0], False
        gid = fresh(self._next, num.shape)
        self._next += num.size + 1
        return num, gid, True

    def moved(self, value: Value, place: Place) -> Value:
        if not value.private:
            return value
        num, gid, private = self.register(value.num, None, place)
        return value if private else dataclasses.replace(value, num=num, gid=gid, private=False)

    def step(self, i: int) -> None:
        for v, (whole, made) in self._wholes.pop(i, {}).items():
            if self.values[v] is made:
                self.values[v] = whole
        try:
            super().step(i)
        except Stuck as err:
            mark, count = self.leaves.mark(), len(self.choices.made)
            for v in err.values:
                value = self.values[v]
                if value and value.form and value.data and not self._in_pieces(v, value, i):
                    self.leaves.undo(mark)
                    del self.choices.made[count:]
                    raise err from None
            super().step(i)

    def _in_pieces(self, v: int, value: Value, i: int) -> bool:
        """Makes a value of which no meeting of the source is the whole out of several; whether that was possible."""
        if value.form is None:
            return False
        shape, kept = value.shape, value.form if value.form.small else None
        form = value.form.each(lambda x: np.broadcast_to(x, shape))
        keys = element_keys(self, form, shape)
        for axis, count in cuts(shape):
            sets = np.split(keys, count, axis)
            if any((k.size, int(total(k))) not in self.source.entries for k in sets):
                continue
            found = []
            mark, made_before = self.leaves.mark(), len(self.choices.made)
            for n, index in enumerate(np.split(np.arange(keys.size).reshape(shape), count, axis)):
                piece = form.at(index)
                place = (i, -1 - (v * 10_000 + n))
                made = self.met(Value(index.shape, True, None, None, piece), [piece], place)
                if made.num is None:
                    self.leaves.undo(mark)
                    del self.choices.made[made_before:]
                    break
                found.append(made)
            else:
                num = np.concatenate([m.num for m in found], axis)
                gid = np.concatenate([m.gid for m in found], axis)
                joint = Value(shape, True, num, gid, kept)
                self.values[v] = joint
                self._wholes.setdefault(i, {})[v] = value, joint
                return True
        return False

    def met(self, value: Value, forms: Sequence[Form], place: Place) -> Value:
        if value.num is not None:
            return value
        loose = not self.choices.is_settled(place) and self.candidates.level < LEVELS - 1
        if loose and is_split_later(self, forms[0], value.shape, place):
            return value
        options, tried = self.choices.resumed(place) or (
            self.candidates.options(forms, value.shape, place, self.choices.forced_at(place)),
            frozenset(),
        )
        wanted = self.choices.wanted(place)
        for form, entry, found in options:
            code = result((form, entry, found))
            if code in tried or (wanted is not None and code != wanted):
                continue
            mark = self.leaves.mark()
            try:
                equate(self, form, self.source, entry, found)
                place_behind(self, self.source)
            except Conflict:
                self.leaves.undo(mark)
                continue
            if self.leaves.since(mark, self.leaves.mark()).size:
                self.choices.made.append(Choice(*place, mark, options, code, entry, tried | {code}))
            if place[1] >= 0:
                self.matched[self.graph.steps[place[0]].outs[place[1]]] = (entry.place[0], 0.0)
            shape = value.shape
            num, gid = (x.ravel()[found].reshape(shape) for x in (entry.num, entry.gid))
            kept = value.form if value.form is not None and value.form.small else None
            return Value(shape, True, num, gid, kept)
        return value
