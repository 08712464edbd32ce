"""Candidates: the meetings of the source that one of the target may be, the likeliest first.

They have the same data, by the sums of the keys of their elements. Of several, those come first whose leaves have no
target yet, then those behind which the next operations give values of the source, then those that are used alike later.

Invariant: everything that is possible comes at some level; the level says only how far down the list the search goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bridges._infer._choices import Option, Place
from bridges._infer._element_keys import element_keys
from bridges._infer._equate import orders
from bridges._infer._form import Form
from bridges._infer._keys import total
from bridges._infer._layout import moved_inputs
from bridges._infer._numbers import ELEMENTWISE, numbers
from bridges._infer._side import Side
from bridges._infer._source import Entry, Source
from bridges._infer._table import aligned
from bridges._infer._tails import Tails

# Of options: 0 as they are written, of leaves that have no target yet; 1 of any leaves; 2 with axes permuted.
LEVELS = 3


class Candidates:
    """What the target's meetings may be.

    Attributes:
      level: How far options go, below `LEVELS`; looked at whenever one is asked for.
    """

    def __init__(self, target: Side, source: Source):
        self.level = 0
        self._target, self._source = target, source
        self._tails = Tails(target.graph), Tails(source.graph)
        self._sided = Tails(target.graph, sided=True), Tails(source.graph, sided=True)

    def options(
        self, forms: Sequence[Form], shape: tuple[int, ...], place: Place, wanted: int | None
    ) -> Iterator[Option]:
        """Yields what a meeting may be.

        Args:
          forms: The ways in which it may be written.
          shape, place: Its shape and place.
          wanted: A hash of the value that it must give: then everything that is possible comes.
        """
        v = self._target.graph.steps[place[0]].outs[max(place[1], 0)]
        for form in forms:
            keys = element_keys(self._target, form, shape)
            size, key = keys.size, int(total(keys))
            whole = self._source.entries.get((size, key), [])
            alike = [e for e in whole if self._alike(v, e)[0] <= 0]
            yield from self._ordered(v, form, keys, alike, wanted)
            yield from self._ordered(v, form, keys, self._source.slices(size, key), wanted)
            others = [e for e in whole if not any(e is a for a in alike)]
            yield from self._ordered(v, form, keys, others, wanted)

    def _ordered(
        self, v: int, form: Form, keys: np.ndarray, entries: list[Entry], wanted: int | None
    ) -> Iterator[Option]:
        several = len({total(e.gid) for e in entries}) > 1
        ranks = [self._rank(v, form, e) for e in entries]
        if several and wanted is None and keys.shape == self._target.graph.shape(v):
            ahead = [self._ahead(v, form, keys, e) for e in entries]
        else:
            ahead = [0.0] * len(entries)
        ranked = sorted((r[0], -a, r[1], r[2], k) for k, (r, a) in enumerate(zip(ranks, ahead, strict=True)))
        seen = set()
        later = []
        for used, *_, k in ranked:
            if used and self.level == 0 and wanted is None and any(not r[0] for r in ranked):
                continue
            for n, found in enumerate(orders(self._target, form, keys, self._source, entries[k])):
                if n and self.level < 2 and wanted is None:
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
        if keys.shape != tuple(self._target.graph.shape(v)):  # a piece of a value
            return 0.0
        found = next(orders(self._target, form, keys, self._source, entry), None)
        if found is None:
            return -1.0
        num = entry.num.ravel()[found].reshape(keys.shape)
        hits = []
        stack = [(v, num)]
        while stack:
            w, x = stack.pop()
            for i in self._target.graph.readers.get(w, ()):
                step = self._target.graph.steps[i]
                consts = {u: c for u in step.ins if u != w and (c := self._constant(u)) is not None}
                if any(u != w and u not in consts for u in step.ins):
                    continue
                if step.name not in ELEMENTWISE and moved_inputs(step) != [0]:
                    continue
                outs = numbers(step, [x if u == w else consts[u] for u in step.ins])
                if step.name in ELEMENTWISE and step.name != "convert_element_type":
                    table = self._source.table
                    rows = (table.find(outs[0]) or table.find_slices(outs[0])) if outs[0].dtype.kind == "f" else []
                    hits.append(any(aligned(outs[0], None, row) is not None for row in rows))
                else:
                    stack += list(zip(step.outs, outs, strict=True))
        return float(np.mean(hits)) if hits else 0.0

    def _constant(self, v: int) -> np.ndarray | None:
        """Returns the numbers of a value that depends on neither data nor leaves; None if it does."""
        value = self._target.values.get(v)
        return None if value is None or value.data or value.form is not None else value.num

    def _rank(self, v: int, form: Form, entry: Entry) -> tuple[float, float, float]:
        """Leaves that have no target yet come first, then what is used alike later."""
        open_monos = any(self._target.leaves.number(r) is None for m in form.monos for r in m.refs)
        refs = [r.ref.ravel()[:: max(1, r.ref.size // 8)] for m in entry.form.monos for r in m.refs if open_monos]
        for at, _ in entry.form.dots if self._open_dots(form) else ():
            flat = at.ravel()[:: max(1, at.size // 8)]
            owner = self._source.owners(flat)
            for c, a in zip(owner, flat, strict=True):
                if a >= 0:
                    made = self._source.contractions[c]
                    k = made.kernel[made.unit[a - self._source.starts[c]]]
                    refs.append(self._source.leaves.kernels[c].ref[k[:: max(1, k.size // 8)]])
        flat = np.concatenate(refs) if refs else np.zeros(0, np.int64)
        flat = flat[flat >= 0]
        used = float(self._target.leaves.are_taken(flat).mean() > 0.5) if flat.size else 0.0
        return used, *self._alike(v, entry)

    def _alike(self, v: int, entry: Entry) -> tuple[float, float]:
        """Returns how alike a value and a meeting are used later, less for more: in what order or not, and in order."""
        w = self._source.graph.steps[entry.place[0]].outs[entry.place[1]]
        alike, sided = (-float(tails[0].alike(v, tails[1], w)) for tails in (self._tails, self._sided))
        return alike, sided

    def _open_dots(self, form: Form) -> bool:
        """Whether some kernel is not known yet, by a sample of its elements."""
        for at, _ in form.dots:
            for c, _, local in self._target.parts(at.ravel()[:: max(1, at.size // 8)]):
                made, refs = self._target.contractions[c], self._target.leaves.kernels[c].ref
                sample = refs[made.kernel[made.unit[local]]]
                if not self._target.leaves.known[sample[sample >= 0]].all():
                    return True
        return False


def _code(entry: Entry, found: np.ndarray) -> int:
    parts = [at.ravel()[found] for at, _ in entry.form.dots]
    parts += [r.ref.ravel()[found] for m in entry.form.monos for r in m.refs]
    return hash(b"".join(np.ascontiguousarray(p).tobytes() for p in parts))
