"""Value: what is known of one value of a graph: its numbers, the keys of its elements, what leaves it is made of.

Invariant: a value has numbers or a form, or both; one that has numbers and depends on data has keys, or they follow from
its numbers (`keys_of`). A step that needs numbers of a value without them is `Stuck`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from bridges._infer._form import Form
from bridges._infer._keys import of_number


@dataclasses.dataclass(frozen=True)
class Value:
    """A value.

    Attributes:
      shape: Its shape.
      data: Whether it depends on an input.
      num: Its numbers, if they are known.
      gid: The keys of its elements, if it is data and known.
      form: What it is made of, if leaves take part in that and it is not too much.
      private: Whether its keys are of no value of the source.
    """

    shape: tuple[int, ...]
    data: bool
    num: np.ndarray | None = None
    gid: np.ndarray | None = None
    form: Form | None = None
    private: bool = False


class Stuck(Exception):
    """A step needs the numbers of a value whose leaves are not known yet."""

    def __init__(self, step: int, values: Sequence[int]):
        super().__init__(step)
        self.step, self.values = step, tuple(values)


def form_of(value: Value) -> Form:
    """Returns the form of a value: of one without leaves, the known value itself."""
    if value.form is not None:
        return value.form
    assert value.num is not None
    if not value.data:
        return Form(const=value.num)
    return Form(atoms=((keys_of(value), value.num),))


def keys_of(value: Value) -> np.ndarray:
    """Returns the keys of a known value; those of a constant are made of its numbers."""
    if value.gid is not None:
        return value.gid
    return of_number(value.num)
