"""Found: what the engine says of two networks: for every element of a target leaf, the source element that it is.

Invariant: an element is placed only by evidence that is named. What could not be placed is listed, with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# How a leaf was placed.
VALUES = "values"  # a value that depends on it equals one of the source
STRUCTURE = "structure"  # some of its elements by values, the others by continuing their layout; or by its siblings
CONSTANT = "constant"  # the source has no such leaf; a number stands for it


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Why a target leaf is what it is said to be.

    Attributes:
      kind: `VALUES`, `STRUCTURE` or `CONSTANT`.
      src_place: Where in the source (scope and operation) the value that was matched is made.
      dst_place: The same in the target.
      error: How far the two networks' next common values are apart, as a part of the largest; NaN if there is none.
      confirmed: How many later values of the target that depend on the leaf are values of the source.
      text: A sentence, for what the fields do not say: 'interchangeable with …', 'the output does not depend on it'.
    """

    kind: str
    src_place: str = ""
    dst_place: str = ""
    error: float = float("nan")
    confirmed: int = 0
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Which source elements a target leaf consists of: `target = source * scale + shift`, element by element.

    Attributes:
      source: int [leaf's shape]: an index into `Found.sources`; -1 for a constant (the shift).
      element: int [leaf's shape]: a flat index into that source leaf; 0 for a constant.
      scale: float64 [leaf's shape].
      shift: float64 [leaf's shape].
      evidence: Why.
    """

    source: np.ndarray
    element: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    evidence: Evidence

    def value(self, leaves: list[np.ndarray]) -> np.ndarray:
        """Returns the target leaf for the values of `Found.sources`, in float64."""
        first = int(self.source.flat[0]) if self.source.size else -1
        if first >= 0 and np.all(self.source == first):
            return _wide(leaves[first]).ravel()[self.element] * self.scale + self.shift
        kind = np.result_type(np.float64, *[_wide(leaves[i]) for i in np.unique(self.source[self.source >= 0])])
        out = np.array(self.shift, kind)
        for i in np.unique(self.source[self.source >= 0]):
            here = self.source == i
            taken = _wide(leaves[i]).ravel()[self.element[here]]
            out[here] = taken * self.scale[here] + self.shift[here]
        return out


def _wide(x: Any) -> np.ndarray:
    return np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64)


@dataclasses.dataclass(frozen=True)
class Unplaced:
    """A target leaf that has no origin, or only a part of it.

    Attributes:
      path: The leaf.
      reason: Why it could not be placed.
      candidates: Source leaves that it might be, the likeliest first.
      part: How much of it is known, from 0 to 1.
    """

    path: str
    reason: str
    candidates: tuple[str, ...] = ()
    part: float = 0.0


@dataclasses.dataclass(frozen=True)
class Parting:
    """The first place where the two networks part, or where the search could not follow them.

    Attributes:
      src_place, dst_place: Scope and operation at either side; empty where a side has none.
      text: What differs, as far as it is known ('the constant 1e-05 in the source is 0.001 in the target').
      certain: Whether it is known that the networks differ: every leaf is placed and outputs differ, or what differs was
        tried. If not, equal networks may have come this far as well.
    """

    src_place: str
    dst_place: str
    text: str
    certain: bool = False


@dataclasses.dataclass(frozen=True)
class Found:
    """The engine's result.

    Attributes:
      sources: The paths of the source's leaves, which `Origin.source` indexes.
      origins: By target path; only leaves of which every element is placed.
      unplaced: The other target leaves.
      unused: Source leaves of which no element went anywhere.
      parting: Where the networks part; None if their outputs agree.
      error: The largest difference of the outputs as a part of the largest value, on values drawn anew for this check;
        infinite if they could not be compared.
      seconds: By stage.
    """

    sources: tuple[str, ...]
    origins: Mapping[str, Origin]
    unplaced: tuple[Unplaced, ...]
    unused: tuple[str, ...]
    parting: Parting | None
    error: float
    seconds: Mapping[str, float]

    @property
    def complete(self) -> bool:
        """Whether every target leaf is placed and the outputs agree."""
        return not self.unplaced and self.parting is None


@dataclasses.dataclass(frozen=True)
class Network:
    """One side: a function of flat variables and flat inputs.

    Attributes:
      run: `run(variables by path, inputs by path) -> output tree`. It must be a function of them alone: random draws with
        a fixed key are constants, and dropout is inactive.
      variables: `jax.ShapeDtypeStruct` by path (arrays are taken as such).
      inputs: Arrays by path. Both sides have the same paths; real values may be replaced by random ones.
    """

    run: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
    variables: Mapping[str, Any]
    inputs: Mapping[str, Any]


Progress = Callable[[int, int, str], None]  # steps done, of how many, and where
