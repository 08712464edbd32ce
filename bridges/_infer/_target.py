"""Target: the network whose leaves are looked for, gone through once, with choices that are taken back when they fail.

Where leaves meet data the source's meetings with the same data are the candidates. What a choice says of the leaves holds
until a later step contradicts it: a step that needs a value which no choice gives, or outputs that differ.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bridges._infer._equate import equate, orders, units
from bridges._infer._form import Form
from bridges._infer._graph import Graph
from bridges._infer._keys import U, fresh, total
from bridges._infer._layout import moved_inputs, moves
from bridges._infer._leaves import Conflict, Leaves, Pseudo
from bridges._infer._numbers import ELEMENTWISE, host, numbers
from bridges._infer._source import Entry, Source, element_keys, evaluate, parts
from bridges._infer._table import SAME, aligned
from bridges._infer._tails import Tails
from bridges._infer._walk import Stuck, Value, Walk

TRIES = 120  # choices that are taken back for one step, at each level; a quarter once a step was given up
ALL_TRIES = 600  # in all
# Of options: 0 as they are written, of leaves that have no target yet; 1 of any leaves; 2 with axes permuted.
LEVELS = 3
MOST_PIECES = 16  # that a value is made of
HORIZON = 24  # choices that are looked back to


@dataclasses.dataclass
class Choice:
    """A choice that was made.

    Attributes:
      step, out: Where.
      mark: The leaves' state before.
      rest: The options that are left.
      code: A hash of the value that it gave.
      entry: The source's meeting.
      tried: The values that were taken, as hashes.
    """

    step: int
    out: int
    mark: int
    rest: Iterator[tuple[Form, Entry, np.ndarray]]
    code: int
    entry: Entry
    tried: frozenset[int]


class Target(Walk):
    """The target.

    Attributes:
      choices: In order.
      matched: By value: the source step whose value it is, and the difference.
      stuck: The steps that could not be done, with what they needed.
    """

    def __init__(self, graph: Graph, leaves: Leaves, source: Source, progress: Callable[[int, int, str], None] | None):
        super().__init__(graph, leaves)
        self.source = source
        self.choices: list[Choice] = []
        self.matched: dict[int, tuple[int, float]] = {}
        self.unmatched: dict[int, None] = {}
        self.stuck: dict[int, Stuck] = {}
        self._resumed: dict[tuple[int, int], tuple[Iterator[Any], frozenset[int]]] = {}
        self._forced: dict[tuple[int, int], int] = {}
        self._pinned: dict[tuple[int, int], int] = {}
        self._level = 0
        self._upstream_of_goal: set[int] = set()
        self._tails = Tails(graph), Tails(source.graph)
        self._sided = Tails(graph, sided=True), Tails(source.graph, sided=True)
        self._next = 1 << 62
        self._used = np.zeros(source.leaves.num.size, bool)
        self._progress = progress
        self._wholes: dict[
            int, dict[int, tuple[Value, Value]]
        ] = {}  # what was made of pieces at a step, as it was before

    def run(self) -> None:
        """Goes through all steps, and compares the outputs."""
        self.roots()
        i, goal, count = 0, 0, len(self.graph.steps)
        tries = spent = 0
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
                    first, tries, self._level, self._forced = None, 0, 0, {}
                continue
            except Stuck as err:
                if i == guess:  # as it was at first, and no choice helps
                    guess, self._forced = -1, {}
                    if (start := self._guessed(err)) is not None:
                        first, i = None, start
                        continue
                    self.stuck[i] = at_goal
                if i in self.stuck or self._forced:
                    self.stuck.setdefault(i, err)
                    if i < count:
                        self.values.update(dict.fromkeys(self.graph.steps[i].outs))
                    i += 1
                    continue
                stuck = err
            if first is None or i > goal:
                first, tries, self._level = [(c.step, c.out, c.code) for c in self.choices], 0, 0
                goal, at_goal, self._upstream_of_goal = i, stuck, self.upstream(stuck)
            tries, spent = tries + 1, spent + 1
            more = tries <= (TRIES // 4 if self.stuck else TRIES) and spent <= ALL_TRIES
            back = self._back(self._upstream_of_goal | self.upstream(stuck)) if more else None
            if back is not None:
                i = back
                continue
            open_now = [s for s, _, _ in first if s in self._upstream_of_goal][-HORIZON:]
            if self._level < LEVELS - 1 and open_now and spent <= ALL_TRIES:  # again, with options that are less likely
                self._level, tries = self._level + 1, 0
                i = min(self._restored(first, goal), open_now[0])
                self._taken_back(i)
                self._forced = {(s, o): n for s, o, n in first if s < open_now[0]}
                continue
            self._level = 0
            i = self._restored(first, goal)
            guess = goal if goal < count else -1
            if goal == count:
                self.stuck[goal] = at_goal

    def _guessed(self, stuck: Stuck) -> int | None:
        """Tries whole source leaves in the place of the one leaf that is lacking; returns where to go on if one fits.

        One fits if a value soon behind it is one of the source's: distances to the vectors of a codebook, say.
        """
        values = [self.values[v] for v in stuck.values]
        lacking = {
            path
            for v, x in zip(stuck.values, values, strict=True)
            if x is not None
            for path in self.graph.leaves[v]
            if not self.leaves.known[self.leaves.refs(path)].any()
        }
        if len(lacking) != 1:
            return None
        (path,) = lacking
        mine, taken = self.leaves.refs(path), self._taken()
        readers = self.graph.readers.get(self.graph.variables[path], [])
        for other in self.source.leaves.paths:
            theirs = self.source.leaves.refs(other)
            if theirs.size != mine.size or mine.size < 2 or np.isin(theirs.ravel()[:4], taken).any():
                continue
            for axes in itertools.permutations(range(theirs.ndim)) if theirs.ndim <= 4 else ():
                moved = theirs.transpose(axes)
                if [n for n in moved.shape if n > 1] != [n for n in mine.shape if n > 1]:
                    continue
                mark, flat = self.leaves.mark(), moved.ravel()
                num = self.source.leaves.num[flat]
                self.leaves.assign(mine.ravel(), flat, np.ones(flat.size), np.zeros(flat.size), num)
                if self._fits(min(readers), stuck.step):
                    return min(readers)
                self.leaves.undo(mark)
        return None

    def _fits(self, start: int, stop: int) -> bool:
        """Whether the steps around a stop can be done, and one makes a value of the source of values that are not."""
        kept, choices, mark = dict(self.values), list(self.choices), self.leaves.mark()
        try:
            for j in range(start, min(stop + 12, len(self.graph.steps))):
                self.step(j)
                step = self.graph.steps[j]
                made = [self.values[v] for v in step.outs]
                ins = [x for v in step.ins if (x := self.values[v]) is not None and x.data]
                if (
                    j >= stop
                    and ins
                    and all(x.private for x in ins)
                    and all(x and x.gid is not None and not x.private for x in made)
                ):
                    return True
        except Stuck:
            return False
        finally:
            self.leaves.undo(mark)
            self.choices[:] = choices
            self.values.clear()
            self.values.update(kept)
        return False

    def _restored(self, wanted: list[tuple[int, int, int]], otherwise: int) -> int:
        """Takes back what differs from the wanted choices, which are forced from then on; returns where to go on."""
        now = [(c.step, c.out, c.code) for c in self.choices]
        self._resumed, self._forced = {}, {}
        if now == wanted:
            return otherwise
        same = sum(1 for _ in itertools.takewhile(lambda p: p[0] == p[1], zip(now, wanted, strict=False)))
        restart = min([c.step for c in self.choices[same:]] + [s for s, _, _ in wanted[same:]])
        self._taken_back(restart)
        self._forced = {(s, o): n for s, o, n in wanted}
        return restart

    def _taken_back(self, step: int) -> None:
        """Takes back the choices from a step on."""
        k = next((k for k, c in enumerate(self.choices) if c.step >= step), len(self.choices))
        if k < len(self.choices):
            self.leaves.undo(self.choices[k].mark)
            del self.choices[k:]

    def _back(self, upstream: set[int]) -> int | None:
        """Takes back the last choice that the stuck step depends on and that has an alternative."""
        count = 0
        while self.choices:
            k = len(self.choices) - 1
            while k >= 0 and self.choices[k].step not in upstream:
                k -= 1
            if k < 0 or count > HORIZON:
                return None
            choice = self.choices[k]
            count += 1
            self.leaves.undo(choice.mark)
            del self.choices[k:]
            self._resumed = {(choice.step, choice.out): (choice.rest, choice.tried)}
            if self._peek(choice):
                self._pinned = {(c.step, c.out): c.code for c in self.choices if c.step == choice.step}
                self._taken_back(choice.step)
                return choice.step
        return None

    def _peek(self, choice: Choice) -> bool:
        rest, tried = self._resumed[choice.step, choice.out]
        for option in rest:
            if _result(option) not in tried:
                self._resumed[choice.step, choice.out] = (itertools.chain([option], rest), tried)
                return True
        self._resumed = {}
        return False

    def upstream(self, stuck: Stuck) -> set[int]:
        """Returns the steps that a step depends on."""
        found: set[int] = set()
        stack = list(self.graph.outs) if stuck.step >= len(self.graph.steps) else list(self.graph.steps[stuck.step].ins)
        stack += stuck.values
        seen = set(stack)
        while stack:
            v = stack.pop()
            if v in self.graph.maker:
                i = self.graph.maker[v]
                if i not in found:
                    found.add(i)
                    new = [u for u in self.graph.steps[i].ins if u not in seen]
                    seen.update(new)
                    stack += new
        return found

    def level_for_probes(self) -> None:
        """Makes single steps ready to be tried after the search."""
        self._level, self._forced, self._resumed, self._pinned = 1, {}, {}, {}

    def doubtful(self) -> dict[int, list[int]]:
        """Returns the leaf elements that were chosen among several and that nothing confirmed, with the other options.

        A choice is confirmed by a later one on data that depends on it, through something that is no sum: were it wrong,
        that data would be none of the source's.
        """
        found: dict[int, list[int]] = {}
        if not self.stuck:
            return found
        self._level = LEVELS - 1
        marks = [c.mark for c in self.choices[1:]] + [self.leaves.mark()]
        upstream = set().union(*[self.upstream(s) for s in self.stuck.values()])
        sealed: set[int] = set()
        for k in range(len(self.choices) - 1, -1, -1):
            choice = self.choices[k]
            if choice.entry.form.dots:
                sealed |= self._before(choice.step)
        near = {k for s in self.stuck.values() for k in self._near(self.upstream(s))}
        for k, choice in enumerate(self.choices):
            if choice.step not in upstream or (choice.step in sealed and k not in near):
                continue
            others = [e for _, e, _ in itertools.islice(choice.rest, 8)]
            if len(choice.tried) > 1 or others:
                for ref in self.leaves.since(choice.mark, marks[k]):
                    found[int(ref)] = []
        return found

    def _near(self, upstream: set[int]) -> list[int]:
        return [k for k, c in enumerate(self.choices) if c.step in upstream][-HORIZON:]

    def _before(self, i: int) -> set[int]:
        """The steps that a step depends on by more than sums and moves."""
        found: set[int] = set()
        stack = [(v, False) for v in self.graph.steps[i].ins]
        seen = set(stack)
        while stack:
            v, mixed = stack.pop()
            if v not in self.graph.maker:
                continue
            j = self.graph.maker[v]
            step = self.graph.steps[j]
            if mixed:
                found.add(j)
            plain = moved_inputs(step) is not None or step.name in ("add", "sub", "dot_general", "conv_general_dilated")
            plain = plain and sum(self.graph.data[u] for u in step.ins) < 2
            for u in step.ins:
                if self.graph.data[u] and (u, mixed or not plain) not in seen:
                    seen.add((u, mixed or not plain))
                    stack.append((u, mixed or not plain))
        return found

    def _outputs(self) -> None:
        for k, (v, w) in enumerate(zip(self.graph.outs, self.source.graph.outs, strict=False)):
            mine, theirs = self.values[v], self.source.values[w]
            if mine is None or theirs is None:
                continue
            a, b = self.number(mine), self.source.number(theirs)
            if a is None and mine.form is not None and mine.data and self._in_pieces(v, mine, self.graph.maker[v]):
                made = self.values[v]
                a = None if made is None else made.num
            if a is None and mine.data:
                raise Stuck(len(self.graph.steps), [v, k])
            if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
                continue
            scale = np.max(np.abs(b), initial=1e-30) if b.dtype.kind == "f" else 1.0
            if a.shape != b.shape or not np.allclose(a, b, rtol=0, atol=2e-6 * scale, equal_nan=True):
                raise Stuck(len(self.graph.steps), [v, k])

    # Numbers ---------------------------------------------------------------------------------------------------------

    def register(self, num: Any, hint: np.ndarray | None, place: tuple[int, int]) -> tuple[Any, Any, bool]:
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
        if (joint := self._found_in_pieces(num)) is not None:
            return num, joint, False
        for row in self.source.table.find_slices(num):
            if (same := aligned(num, None, row)) is not None and same[2] <= 100 * SAME:
                return num, same[0], False
        if num.size > 1 and num.dtype.kind == "f":
            self.unmatched[out] = None
        gid = fresh(self._next, num.shape)
        self._next += num.size + 1
        return num, gid, True

    def _found_in_pieces(self, num: np.ndarray) -> np.ndarray | None:
        """Returns the keys of a value of which no value of the source is the whole, but several are slices."""
        if num.dtype.kind != "f":
            return None
        for axis, size in enumerate(num.shape):
            for count in [c for c in range(2, min(size, MOST_PIECES) + 1) if size % c == 0]:
                if num.size // count < 4:
                    continue
                keys = []
                for piece in np.split(num, count, axis):
                    found = (aligned(piece, None, row) for row in self.source.table.find(piece))
                    same = next((f for f in found if f is not None), None)
                    if same is None:
                        break
                    keys.append(same[0])
                else:
                    return np.concatenate(keys, axis)
        return None

    def moved(self, value: Value, place: tuple[int, int]) -> Value:
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
            mark, count = self.leaves.mark(), len(self.choices)
            for v in err.values:
                value = self.values[v]
                if value is not None and value.form is not None and value.data and not self._in_pieces(v, value, i):
                    self.leaves.undo(mark)
                    del self.choices[count:]
                    raise err from None
            super().step(i)

    def _in_pieces(self, v: int, value: Value, i: int) -> bool:
        """Makes a value of which no meeting of the source is the whole out of several; whether that was possible."""
        assert value.form is not None
        shape = value.shape
        form = value.form.each(lambda x: np.broadcast_to(x, shape))
        keys = element_keys(self, form, shape)
        ways = [(axis, n) for axis, n in enumerate(shape) if n > 1]  # a stack, then parts that lie side by side
        ways += [(a, c) for a in reversed(range(len(shape))) for c in range(2, shape[a]) if shape[a] % c == 0]
        for axis, count in ways:
            if count <= MOST_PIECES:
                sets = np.split(keys, count, axis)
                if any((k.size, int(total(k))) not in self.source.entries for k in sets):
                    continue
                found = []
                mark, made_before = self.leaves.mark(), len(self.choices)
                for n, index in enumerate(np.split(np.arange(keys.size).reshape(shape), count, axis)):
                    piece = form.each(lambda x, at=index: x.ravel()[at])  # type: ignore[misc]
                    place = (i, -1 - (v * 10_000 + n))
                    made = self.met(Value(index.shape, True, None, None, piece), [piece], place)
                    if made.num is None:
                        self.leaves.undo(mark)
                        del self.choices[made_before:]
                        break
                    found.append(made)
                else:
                    num = np.concatenate([m.num for m in found], axis)
                    gid = np.concatenate([m.gid for m in found], axis)
                    joint = Value(shape, True, num, gid, value.form if value.form.small else None)
                    self.values[v] = joint
                    self._wholes.setdefault(i, {})[v] = value, joint
                    return True
        return False

    # Meetings --------------------------------------------------------------------------------------------------------

    def met(self, value: Value, forms: Sequence[Form], place: tuple[int, int]) -> Value:
        if value.num is not None:
            return value
        chosen = place in self._forced or place in self._resumed
        if not chosen and self._level < LEVELS - 1 and self._split_later(forms[0], value.shape, place):
            return value
        if place in self._resumed:
            self._pinned = {}
            options, tried = self._resumed.pop(place)
        else:
            options, tried = self._options(forms, value.shape, place, self._forced.get(place)), frozenset()
        wanted = self._forced.get(place, self._pinned.get(place))
        for form, entry, found in options:
            code = _result((form, entry, found))
            if code in tried or (wanted is not None and code != wanted):
                continue
            mark = self.leaves.mark()
            try:
                equate(self, form, self.source, entry, found)
                self._solve()
            except Conflict:
                self.leaves.undo(mark)
                continue
            if self.leaves.since(mark, self.leaves.mark()).size:
                self.choices.append(Choice(*place, mark, options, code, entry, tried | {code}))
            if place[1] >= 0:
                self.matched[self.graph.steps[place[0]].outs[place[1]]] = (entry.place[0], 0.0)
            shape = value.shape
            num, gid = (x.ravel()[found].reshape(shape) for x in (entry.num, entry.gid))
            kept = value.form if value.form is not None and value.form.small else None
            return Value(shape, True, num, gid, kept)
        return value

    def _split_later(self, form: Form, shape: tuple[int, ...], place: tuple[int, int]) -> bool:
        """Whether the units of a value go apart before anything else is done with it: its parts are then looked for."""
        if not form.dots or place[1] < 0:
            return False
        whole = units(self, form, shape)
        count = np.unique(whole).size
        stack = [(self.graph.steps[place[0]].outs[place[1]], whole)]
        for _ in range(12):
            if not stack:
                break
            v, here = stack.pop()
            for i in self.graph.readers.get(v, ()):
                step = self.graph.steps[i]
                if step.name in ("add", "sub"):
                    stack.append((step.outs[0], np.broadcast_to(here, self.graph.shape(step.outs[0]))))
                    continue
                moved = moved_inputs(step)
                if moved is None or len(moved) != 1 or step.name == "convert_element_type":
                    continue
                rest = [self.values.get(u) for u in step.ins[1:]]
                if any(x is None or x.num is None for x in rest):
                    continue
                index = moves(step, [self.graph.shape(u) for u in step.ins], [None, *[x.num for x in rest if x]])
                for out, at in zip(step.outs, index, strict=True):
                    inside = here.ravel()[np.maximum(at, 0)]
                    if at.size < here.size and np.unique(inside).size < count:
                        return True
                    stack.append((out, inside))
        return False

    def _options(
        self, forms: Sequence[Form], shape: tuple[int, ...], place: tuple[int, int], wanted: int | None
    ) -> Iterator[tuple[Form, Entry, np.ndarray]]:
        v = self.graph.steps[place[0]].outs[max(place[1], 0)]
        for form in forms:
            keys = element_keys(self, form, shape)
            size, key = keys.size, int(total(keys))
            whole = self.source.entries.get((size, key), [])
            alike = [e for e in whole if self._rank(v, form, e)[1] <= 0]
            yield from self._ordered(v, form, keys, alike, wanted)
            yield from self._ordered(v, form, keys, self.source.slices(size, key), wanted)
            others = [e for e in whole if not any(e is a for a in alike)]
            yield from self._ordered(v, form, keys, others, wanted)

    def _ordered(
        self, v: int, form: Form, keys: np.ndarray, entries: list[Entry], wanted: int | None
    ) -> Iterator[tuple[Form, Entry, np.ndarray]]:
        several = len({total(e.gid) for e in entries}) > 1
        ranks = [self._rank(v, form, e) for e in entries]
        if several and wanted is None and keys.shape == self.graph.shape(v):
            ahead = [self._ahead(v, form, keys, e) for e in entries]
        else:
            ahead = [0.0] * len(entries)
        ranked = sorted((r[0], -a, r[1], r[2], k) for k, (r, a) in enumerate(zip(ranks, ahead, strict=True)))
        seen = set()
        later = []
        for used, *_, k in ranked:
            if used and self._level == 0 and wanted is None and any(not r[0] for r in ranked):
                continue
            for n, found in enumerate(orders(self, form, keys, self.source, entries[k])):
                if n and self._level < 2 and wanted is None:
                    break
                code = (hash(entries[k].gid.ravel()[found].tobytes()), _code(entries[k], found))
                if code not in seen:
                    seen.add(code)
                    if n:
                        later.append((form, entries[k], found))
                    else:
                        yield form, entries[k], found
        yield from later

    def _ahead(self, v: int, form: Form, keys: np.ndarray, entry: Entry) -> float:
        """Returns how many of the next operations on a value would give values of the source."""
        if keys.shape != tuple(self.graph.shape(v)):  # a piece of a value
            return 0.0
        found = next(orders(self, form, keys, self.source, entry), None)
        if found is None:
            return -1.0
        num = entry.num.ravel()[found].reshape(keys.shape)
        hits = []
        stack = [(v, num)]
        while stack:
            w, x = stack.pop()
            for i in self.graph.readers.get(w, ()):
                step = self.graph.steps[i]
                others = [self.values.get(u) for u in step.ins if u != w]
                if any(o is None or o.form is not None or o.num is None or o.data for o in others):
                    continue
                if step.name not in ELEMENTWISE and moved_inputs(step) != [0]:
                    continue
                nums = [x if u == w else self.values[u].num for u in step.ins]  # type: ignore[union-attr]
                outs = numbers(step, nums)
                if step.name in ELEMENTWISE and step.name != "convert_element_type":
                    table = self.source.table
                    rows = (table.find(outs[0]) or table.find_slices(outs[0])) if outs[0].dtype.kind == "f" else []
                    hits.append(any(aligned(outs[0], None, row) is not None for row in rows))
                else:
                    stack += list(zip(step.outs, outs, strict=True))
        return float(np.mean(hits)) if hits else 0.0

    def _rank(self, v: int, form: Form, entry: Entry) -> tuple[float, float, float]:
        """Leaves that have no target yet come first, then what is used alike later."""
        w = self.source.graph.steps[entry.place[0]].outs[entry.place[1]]
        open_monos = any(self.leaves.number(r) is None for m in form.monos for r in m.refs)
        refs = [r.ref.ravel()[:: max(1, r.ref.size // 8)] for m in entry.form.monos for r in m.refs if open_monos]
        for at, _ in entry.form.dots if self._open_dots(form) else ():
            flat = at.ravel()[:: max(1, at.size // 8)]
            owner = np.searchsorted(np.array(self.source.starts), flat, "right") - 1
            for c, a in zip(owner, flat, strict=True):
                if a >= 0:
                    made = self.source.contractions[c]
                    k = made.kernel[made.unit[a - self.source.starts[c]]]
                    refs.append(self.source.leaves.kernels[c].ref[k[:: max(1, k.size // 8)]])
        flat = np.concatenate(refs) if refs else np.zeros(0, np.int64)
        flat = flat[flat >= 0]
        used = float(np.isin(flat, self._taken()).mean() > 0.5) if flat.size else 0.0
        alike, sided = (-float(tails[0].alike(v, tails[1], w)) for tails in (self._tails, self._sided))
        return used, alike, sided

    def _open_dots(self, form: Form) -> bool:
        """Whether some kernel is not known yet, by a sample of its elements."""
        for at, _ in form.dots:
            for c, _, local in parts(self, at.ravel()[:: max(1, at.size // 8)]):
                made, refs = self.contractions[c], self.leaves.kernels[c].ref
                sample = refs[made.kernel[made.unit[local]]]
                if not self.leaves.known[sample[sample >= 0]].all():
                    return True
        return False

    def _taken(self) -> np.ndarray:
        return np.unique(self.leaves.source[self.leaves.known[: self.leaves.end].nonzero()[0]])

    # Values of leaves alone ------------------------------------------------------------------------------------------

    def _solve(self) -> None:
        """Finds the leaves behind values of leaves alone that have become known.

        Raises:
          Conflict: No leaves give these values.
        """
        for pseudo in self.leaves.pseudos:
            refs = pseudo.refs.ravel()
            if pseudo.solved or not self.leaves.known[refs].all():
                continue
            self._behind(pseudo)
            self.leaves.solved(pseudo)

    def _behind(self, pseudo: Pseudo) -> None:
        refs = pseudo.refs.ravel()
        theirs = self.leaves.source[refs]
        wanted = self.leaves.num[refs]
        unknown = [
            p for p in sorted(self.graph.leaves[pseudo.value]) if not self.leaves.known[self.leaves.refs(p)].all()
        ]
        other = next(
            (
                q
                for q in self.source.leaves.pseudos
                if q.refs.size and q.refs.flat[0] <= theirs.min() and theirs.max() <= q.refs.flat[-1]
            ),
            None,
        )
        if not unknown:
            if not self._gives(pseudo, {}, wanted):
                raise Conflict
            return
        if other is None:
            raise Conflict
        moved = theirs - other.refs.flat[0]  # which element of theirs each of mine is
        names = sorted(self.source.graph.leaves[other.value])
        for chosen in itertools.permutations(names, len(unknown)):
            options = [self._arranged(p, q, pseudo, moved) for p, q in zip(unknown, chosen, strict=True)]
            for arranged in itertools.product(*options):
                given = {}
                for p, source_ref in zip(unknown, arranged, strict=True):
                    given[p] = self.source.leaves.num[source_ref].reshape(self.leaves.shapes[p])
                if self._gives(pseudo, given, wanted):
                    for p, source_ref in zip(unknown, arranged, strict=True):
                        n = source_ref.size
                        self.leaves.assign(
                            self.leaves.refs(p).ravel(), source_ref, np.ones(n), np.zeros(n), given[p].ravel()
                        )
                    return
        raise Conflict

    def _arranged(self, path: str, other: str, pseudo: Pseudo, moved: np.ndarray) -> list[np.ndarray]:
        """Returns ways in which a target leaf may be a source leaf: by the values' elements, or by axes."""
        mine, theirs = self.leaves.refs(path), self.source.leaves.refs(other)
        if mine.size != theirs.size:
            return []
        found = []
        if mine.size == moved.size and np.array_equal(np.sort(moved), np.arange(moved.size)):
            found.append(theirs.ravel()[moved])
        found.append(theirs.ravel())
        sizes = [n for n in mine.shape if n != 1]
        squeezed = theirs.squeeze()
        if 1 < len(sizes) <= 4:
            for order in itertools.permutations(range(squeezed.ndim)):
                if [squeezed.shape[a] for a in order] == sizes:
                    found.append(squeezed.transpose(order).ravel())
        unique = {x.tobytes(): x for x in found}
        return list(unique.values())

    def _gives(self, pseudo: Pseudo, given: dict[str, np.ndarray], wanted: np.ndarray) -> bool:
        have: dict[int, Any] = {}
        for path in self.graph.leaves[pseudo.value]:
            refs = self.leaves.refs(path)
            have[self.graph.variables[path]] = given.get(path, self.leaves.num[refs])
        num = evaluate(self.graph, pseudo.value, have)
        with np.errstate(all="ignore"):
            num = np.ravel(1 / num if pseudo.reciprocal else num)
        return num.size == wanted.size and bool(np.allclose(num, wanted, rtol=1e-6, atol=1e-9 * np.abs(wanted).max()))


def _result(option: tuple[Form, Entry, np.ndarray]) -> int:
    """Returns a hash of the value that an option gives."""
    _, entry, found = option
    return hash(entry.gid.ravel()[found].tobytes())


def _code(entry: Entry, found: np.ndarray) -> int:
    parts = [at.ravel()[found] for at, _ in entry.form.dots]
    parts += [r.ref.ravel()[found] for m in entry.form.monos for r in m.refs]
    return hash(b"".join(np.ascontiguousarray(p).tobytes() for p in parts))


__all__ = ["Target", "host"]
