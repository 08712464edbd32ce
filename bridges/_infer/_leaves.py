"""Leaves: the elements of all leaves of one side under global numbers, what is known of each, and how to take it back.

What a target element is (which source element, scaled and shifted by what) is assigned once; `mark` and `undo` take back
what was assigned since. Values that leaves give by more than moving their elements (`rsqrt(var + eps)`) get numbers of their
own, as elements of pseudo leaves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from bridges._infer._form import Refs


class Conflict(Exception):
    """An element is not what it was said to be."""


@dataclasses.dataclass
class Pseudo:
    """A value of leaves alone.

    Attributes:
      value: Its number in the graph.
      refs: Its elements.
      reciprocal: Whether they are those of 1 / value.
      solved: Whether the leaves behind it are known.
    """

    value: int
    refs: np.ndarray
    reciprocal: bool
    solved: bool = False


class Leaves:
    """The elements of one side's leaves.

    Attributes:
      paths: The leaves, in the order of their numbers.
      num: float64: numbers, by element.
      known: bool: whether they are known.
      source: int64: which element of the other side it is; -1 for a constant.
      scale, shift: float64: how it is made of that.
      kernels: The elements of the kernels of the contractions, in their order.
      pseudos: The pseudo leaves.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Any] | None = None):
        self.paths = list(shapes)
        self.shapes = dict(shapes)
        self.starts: dict[str, int] = {}
        end = 0
        for path, shape in shapes.items():
            self.starts[path] = end
            end += int(np.prod(shape))
        self.count = self.end = end
        self.num = np.zeros(end)
        self.known = np.full(end, values is not None)
        if values is not None:
            for path in self.paths:
                if np.iscomplexobj(values[path]):  # no form refers to its elements
                    continue
                x = np.asarray(values[path], np.float64)
                self.num[self.starts[path] : self.starts[path] + x.size] = x.ravel()
        self.source = np.full(end, -1, np.int64)
        self.scale, self.shift = np.ones(end), np.zeros(end)
        self.kernels: list[Refs] = []
        self.pseudos: list[Pseudo] = []
        self._trail: list[Any] = []
        self._users = np.zeros(1, np.int64)  # of the other side's elements: how many of this side's they are

    def refs(self, path: str) -> np.ndarray:
        """Returns the numbers of a leaf's elements, in its shape."""
        shape = self.shapes[path]
        return self.starts[path] + np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)

    def path_of(self, ref: int) -> str:
        """Returns the leaf that an element is of; empty for a pseudo leaf."""
        if not 0 <= ref < self.count:
            return ""
        starts = np.array(list(self.starts.values()))
        sizes = np.array([int(np.prod(s)) for s in self.shapes.values()])
        return self.paths[int(np.flatnonzero((starts <= ref) & (ref < starts + sizes))[0])]

    def pseudo(self, value: int, shape: tuple[int, ...], reciprocal: bool = False) -> np.ndarray:
        """Returns the numbers of the elements of a new pseudo leaf."""
        size = int(np.prod(shape))
        refs = self.end + np.arange(size, dtype=np.int64).reshape(shape)
        self.end += size
        if self.end > self.num.size:
            more = max(size, self.num.size)
            self.num = np.concatenate([self.num, np.zeros(more)])
            self.known = np.concatenate([self.known, np.zeros(more, bool)])
            self.source = np.concatenate([self.source, np.full(more, -1, np.int64)])
            self.scale = np.concatenate([self.scale, np.ones(more)])
            self.shift = np.concatenate([self.shift, np.zeros(more)])
        self.pseudos.append(Pseudo(value, refs, reciprocal))
        return refs

    def number(self, refs: Refs) -> np.ndarray | None:
        """Returns the numbers of elements; None if some are not known."""
        inside = np.where(refs.ref < 0, 0, refs.ref)
        if not np.all(self.known[inside] | (refs.ref < 0)):
            return None
        return np.where(refs.ref < 0, refs.shift, self.num[inside] * refs.scale + refs.shift)

    def assign(
        self, ref: np.ndarray, source: np.ndarray, scale: np.ndarray, shift: np.ndarray, num: np.ndarray
    ) -> None:
        """Says what elements are; all arguments are one-dimensional.

        Raises:
          Conflict: Some of them are known to be something else.
        """
        scale, shift = np.broadcast_to(scale, ref.shape), np.broadcast_to(shift, ref.shape)
        new = np.unique(ref[~self.known[ref]])
        fresh = ~self.known[ref]
        self.source[ref[fresh]] = source[fresh]
        self.scale[ref[fresh]] = scale[fresh]
        self.shift[ref[fresh]] = shift[fresh]
        self.num[ref[fresh]] = num[fresh]
        self.known[new] = True
        self._use(new, 1)
        self._trail.append(new)
        same = self.source[ref] == source
        with np.errstate(invalid="ignore"):  # what is no number is never near
            near = np.abs(self.num[ref] - num) <= 1e-6 * np.maximum(np.abs(num), 1e-3)
        if not np.all(same & near):
            raise Conflict

    def are_taken(self, source: np.ndarray) -> np.ndarray:
        """Returns which of some source elements, numbers from 0 on, some element is."""
        inside = source < self._users.size
        return inside & (self._users[np.where(inside, source, 0)] > 0)

    def _use(self, elements: np.ndarray, more: int) -> None:
        """Counts elements as users of the source elements that they are, or no longer."""
        used = self.source[elements]
        used = used[used >= 0]
        if used.size and used.max() >= self._users.size:
            wider = np.zeros(2 * int(used.max()) + 16, np.int64)
            wider[: self._users.size] = self._users
            self._users = wider
        np.add.at(self._users, used, more)

    def solved(self, pseudo: Pseudo) -> None:
        """Marks a pseudo leaf as solved."""
        pseudo.solved = True
        self._trail.append(pseudo)

    def mark(self) -> int:
        """Returns the point to which `undo` goes back."""
        return len(self._trail)

    def since(self, mark: int, until: int) -> np.ndarray:
        """Returns the elements that were assigned between two marks."""
        parts = [x for x in self._trail[mark:until] if not isinstance(x, Pseudo)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def undo(self, mark: int) -> None:
        """Forgets what was said since."""
        while len(self._trail) > mark:
            last = self._trail.pop()
            if isinstance(last, Pseudo):
                last.solved = False
            else:
                self.known[last] = False
                self._use(last, -1)
