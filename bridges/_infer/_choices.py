"""Choices: which of several meetings of the source each meeting of the target was taken for, in order, and the way back.

A choice that turns out wrong is taken back with everything that was said since. Where a search gave up, the choices with
which it first came that far are made again: they are forced until the place is passed.

Invariant: the leaves hold exactly what the choices that are made say, in their order.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from bridges._infer._form import Form
from bridges._infer._leaves import Leaves
from bridges._infer._source import Entry

HORIZON = 24  # choices that are looked back to

Place = tuple[int, int]  # a step and one of its outputs
Option = tuple[Form, Entry, np.ndarray]  # a form of the target, a meeting, and which of its elements each element is


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
    rest: Iterator[Option]
    code: int
    entry: Entry
    tried: frozenset[int]

    @property
    def place(self) -> Place:
        return self.step, self.out


class Choices:
    """The choices that are made, and those that are to be made in a certain way.

    Attributes:
      made: In order.
    """

    def __init__(self, leaves: Leaves):
        self.made: list[Choice] = []
        self._leaves = leaves
        self._resumed: dict[Place, tuple[Iterator[Option], frozenset[int]]] = {}
        self._forced: dict[Place, int] = {}
        self._pinned: dict[Place, int] = {}

    @property
    def forced(self) -> bool:
        """Whether some choices must give what they gave before."""
        return bool(self._forced)

    def force(self, codes: Iterable[tuple[int, int, int]]) -> None:
        """Sets what choices must give: step, output and hash of each."""
        self._forced = {(step, out): code for step, out, code in codes}

    def is_settled(self, place: Place) -> bool:
        """Whether a choice is to be made at a place, whatever else could be done there."""
        return place in self._forced or place in self._resumed

    def resumed(self, place: Place) -> tuple[Iterator[Option], frozenset[int]] | None:
        """Returns the options that are left at a place where a choice was taken back, and those that were tried."""
        if place not in self._resumed:
            return None
        self._pinned = {}
        return self._resumed.pop(place)

    def forced_at(self, place: Place) -> int | None:
        """Returns what a choice must give."""
        return self._forced.get(place)

    def wanted(self, place: Place) -> int | None:
        """Returns what a choice must give, or gave before an earlier one at the same step was taken back."""
        return self._forced.get(place, self._pinned.get(place))

    def codes(self) -> list[tuple[int, int, int]]:
        """Returns step, output and hash of each."""
        return [(c.step, c.out, c.code) for c in self.made]

    def forget_plans(self) -> None:
        """Lets every choice from here on be made afresh."""
        self._forced, self._resumed, self._pinned = {}, {}, {}

    def taken_back(self, step: int) -> None:
        """Takes back the choices from a step on."""
        k = next((k for k, c in enumerate(self.made) if c.step >= step), len(self.made))
        if k < len(self.made):
            self._leaves.undo(self.made[k].mark)
            del self.made[k:]

    def back(self, upstream: set[int]) -> int | None:
        """Takes back the last choice at one of some steps that has an alternative; returns where to go on, or None."""
        count = 0
        while self.made:
            k = len(self.made) - 1
            while k >= 0 and self.made[k].step not in upstream:
                k -= 1
            if k < 0 or count > HORIZON:
                return None
            choice = self.made[k]
            count += 1
            self._leaves.undo(choice.mark)
            del self.made[k:]
            self._resumed = {(choice.step, choice.out): (choice.rest, choice.tried)}
            if self._peek(choice):
                self._pinned = {(c.step, c.out): c.code for c in self.made if c.step == choice.step}
                self.taken_back(choice.step)
                return choice.step
        return None

    def _peek(self, choice: Choice) -> bool:
        rest, tried = self._resumed[choice.step, choice.out]
        for option in rest:
            if result(option) not in tried:
                self._resumed[choice.step, choice.out] = (itertools.chain([option], rest), tried)
                return True
        self._resumed = {}
        return False

    def restored(self, wanted: list[tuple[int, int, int]], otherwise: int) -> int:
        """Takes back what differs from the wanted choices, which are forced from then on; returns where to go on."""
        now = [(c.step, c.out, c.code) for c in self.made]
        self._resumed, self._forced = {}, {}
        if now == wanted:
            return otherwise
        same = sum(1 for _ in itertools.takewhile(lambda p: p[0] == p[1], zip(now, wanted, strict=False)))
        restart = min([c.step for c in self.made[same:]] + [s for s, _, _ in wanted[same:]])
        self.taken_back(restart)
        self._forced = {(s, o): n for s, o, n in wanted}
        return restart


def result(option: Option) -> int:
    """Returns a hash of the value that an option gives."""
    _, entry, found = option
    return hash(entry.gid.ravel()[found].tobytes())
