"""Side: one of the two networks as far as it is known: its graph, its leaves, its values, where leaves meet data.

The source and the target are sides, so that a sum, a product or a contraction (`_sums`, `_contracted`) means the same
whichever it is on. What differs is what becomes of a value that is new (`register`), whose elements were only moved
(`moved`), or in which leaves meet data (`met`): the source records it, the target looks it up.

Invariant: contractions, their kernels and the numbers at which their outputs start stand in one order and are only ever
added to; a value of leaves alone has one pseudo leaf, however often it is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bridges._infer._contraction import Contraction
from bridges._infer._form import Form, Mono, Refs
from bridges._infer._graph import Graph
from bridges._infer._leaves import Leaves
from bridges._infer._value import Value


class Side:
    """A graph and its values so far.

    Attributes:
      graph: The graph.
      leaves: Its leaves.
      values: By number; None for what depends on something that could not be told.
      contractions: By the first of their global numbers, ascending.
      starts: These numbers.
    """

    def __init__(self, graph: Graph, leaves: Leaves):
        self.graph, self.leaves = graph, leaves
        self.values: dict[int, Value | None] = {}
        self.contractions: list[Contraction] = []
        self.starts: list[int] = []
        self._starts = np.zeros(0, np.int64)  # the same, as an array
        self._end = 0
        self._pseudo: dict[tuple[int, int], np.ndarray] = {}

    @contextlib.contextmanager
    def tried(self) -> Iterator[None]:
        """Takes back what is said of leaves and values within, on leaving."""
        mark, values = self.leaves.mark(), dict(self.values)
        try:
            yield
        finally:
            self.leaves.undo(mark)
            self.values.clear()
            self.values.update(values)

    # What the sides do differently -----------------------------------------------------------------------------------

    def register(self, num: np.ndarray, hint: np.ndarray | None, place: tuple[int, int]) -> tuple[Any, Any, bool]:
        """Returns the numbers and keys of a value that depends on data, and whether the keys are private."""
        raise NotImplementedError

    def moved(self, value: Value, place: tuple[int, int]) -> Value:
        """Returns a value whose elements were moved, with the keys that it should have."""
        raise NotImplementedError

    def met(self, value: Value, forms: Sequence[Form], place: tuple[int, int]) -> Value:
        """Returns a value in which leaves and data meet, after it was recorded or looked up."""
        raise NotImplementedError

    # -----------------------------------------------------------------------------------------------------------------

    def number(self, value: Value) -> Any:
        """Returns the numbers of a value, or None if they are not known."""
        if value.num is not None or value.form is None:
            return value.num
        form = value.form
        if form.dots or form.atoms:
            return None
        out: Any = 0.0 if form.const is None else form.const
        for mono in form.monos:
            product: Any = 1.0 if mono.num is None else mono.num
            for refs in mono.refs:
                x = self.leaves.number(refs)
                if x is None:
                    return None
                product = product * x
            out = out + product
        return np.broadcast_to(np.asarray(out), value.shape)

    def contract(self, made: Contraction, refs: Refs, shape: tuple[int, ...]) -> Form:
        """Returns the form of a contraction's output, after taking it in."""
        kernel = Refs(*(np.broadcast_to(x, refs.ref.shape).ravel() for x in (refs.ref, refs.scale, refs.shift)))
        self.contractions.append(made)
        self.leaves.kernels.append(kernel)
        self.starts.append(self._end)
        at = np.arange(self._end, self._end + made.row.size, dtype=np.int64).reshape(shape)
        self._end += made.row.size
        return Form(dots=((at, np.ones(shape)),))

    def parts(self, at: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Returns the contractions that outputs are of: the contraction, where, and the outputs' numbers within it."""
        owner = self.owners(at)
        found = []
        for c in np.unique(owner[at >= 0]):
            here = (owner == c) & (at >= 0)
            found.append((int(c), here, at[here] - self.starts[c]))
        return found

    def owners(self, at: np.ndarray) -> np.ndarray:
        """Returns which contraction each output is of, by its number; anything for outputs that are none (below 0)."""
        if len(self.starts) != self._starts.size:
            self._starts = np.array(self.starts, np.int64)
        return np.searchsorted(self._starts, at, "right") - 1

    def param(self, value: Value, i: int) -> Refs | None:
        """Returns the leaf elements that a value without data consists of."""
        if value.data or value.form is None:
            return None
        refs = value.form.param()
        if refs is not None:
            return refs
        form = self.pseudo(i, -1, value.shape)
        return form.param()

    def pseudo(self, i: int, o: int, shape: tuple[int, ...] | None = None) -> Form:
        """Returns the form of a value that leaves give by more than moving: elements of a leaf that stands for it."""
        if (i, o) not in self._pseudo:
            step = self.graph.steps[i]
            if o < 0:
                v = next(v for v in step.ins if (x := self.values[v]) and not x.data and x.form is not None)
            else:
                v = step.outs[o]
            self._pseudo[i, o] = self.leaves.pseudo(v, tuple(self.graph.shape(v)) if shape is None else shape)
        return Form(monos=(Mono((Refs.of(self._pseudo[i, o]),)),))

    def pseudo_of_reciprocal(self, i: int, value: Value) -> Form:
        """Returns the form of 1 / value."""
        if (i, -2) not in self._pseudo:
            v = self.graph.steps[i].ins[1]
            self._pseudo[i, -2] = self.leaves.pseudo(v, value.shape, reciprocal=True)
        return Form(monos=(Mono((Refs.of(self._pseudo[i, -2]),)),))

    def keyed(self, num: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns numbers that depend on data and that no operation gave, with their keys."""
        num, gid, _ = self.register(np.asarray(num), None, (-1, 0))  # of scalars NumPy makes no arrays
        return num, gid

    def named(self, form: Form) -> Form:
        """Returns a form whose known numbers all have keys."""
        bare = any(m.num is not None and m.gid is None for m in form.monos)
        return dataclasses.replace(form, monos=tuple(map(self._named, form.monos))) if bare else form

    def _named(self, mono: Mono) -> Mono:
        return mono if mono.num is None or mono.gid is not None else Mono(mono.refs, *self.keyed(mono.num))
