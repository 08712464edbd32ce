"""Outcome: what `infer_mapping` found for a pair, held against the truth, leaf by leaf."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import jax
import numpy as np

import bridges as br
from bridges.core._errors import MappingError
from bridges.core._state import State
from bridges.infer import DifferentModelsError, InferredMapping, infer_mapping
from tests.pairs.ends import End, Entries, randomised
from tests.pairs.near_misses import PARTIAL, PARTS, SAME, Miss
from tests.pairs.pair import Pair, distance

# An offset (a forget bias) rounds once in float32; everything else that a mapping does to a leaf is exact.
ROUNDING = 1e-6
OUTPUTS = 1e-5  # of float32, and sums in another order


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One row of the table.

    Attributes:
      name, about: Of the pair.
      frameworks: Of source and target.
      leaves: Of the target.
      placed: Those of them that got values.
      wrong: Those that got other values than the truth gives; leaves that no output depends on do not count.
      unused: Source leaves that are left over.
      outputs, gradients: How far apart they are in the proof that comes with the mapping; None without one.
      seconds: What `infer_mapping` took, all included.
      says: What it says, where the mapping is not complete.
    """

    name: str
    about: str
    frameworks: tuple[str, str]
    leaves: int
    placed: int
    wrong: tuple[str, ...]
    unused: tuple[str, ...]
    outputs: float | None
    gradients: float | None
    seconds: float
    says: str = ""

    @property
    def verified(self) -> bool:
        return self.outputs is not None and not self.says

    @classmethod
    def of(cls, pair: Pair) -> Outcome:
        """Returns what is found for a pair."""
        began = time.perf_counter()
        mapping, says = inferred(pair.source, pair.target, pair.inputs)
        seconds = time.perf_counter() - began
        entries = randomised(pair.src.shapes, 1, np.float32)
        made = forward(mapping, pair.src, pair.dst, entries)
        truth = jax.tree.map(np.asarray, pair.truth(entries))
        wrong = [p for p, x in made.items() if not pair.is_free(p) and distance([truth[p]], [x]) > ROUNDING]
        proof = mapping.verified
        return cls(
            pair.name, pair.about, (pair.src.framework, pair.dst.framework), len(pair.dst.shapes), len(made),
            tuple(wrong), mapping.unused, proof and proof.outputs, proof and proof.gradients, seconds, says,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found of a near miss.

    Attributes:
      found: `'same'`, `'parts'` or `'partial'`.
      right: Whether that is as it should be: the verdict, what the text names, and outputs where the two are the same.
      seconds: What `infer_mapping` took.
      says: What it says, where the mapping is not complete.
    """

    found: str
    right: bool
    seconds: float
    says: str

    @classmethod
    def of(cls, miss: Miss) -> Verdict:
        """Returns what is found of a near miss."""
        began = time.perf_counter()
        mapping, says = inferred(miss.source, miss.target, miss.inputs)
        seconds = time.perf_counter() - began
        if says:
            found = PARTS if mapping.parting else PARTIAL
            return cls(found, found in miss.verdicts and bool(re.search(miss.says, says)), seconds, says)
        with jax.enable_x64(False):
            src, dst = End.of(miss.source, miss.inputs), End.of(miss.target, miss.inputs)
            entries = randomised(src.shapes, 5, np.float32)
            outs = src.run(entries, *miss.inputs), dst.run(forward(mapping, src, dst, entries), *miss.inputs)
        return cls(SAME, SAME in miss.verdicts and distance(*outs) < OUTPUTS, seconds, "")


def inferred(source: Any, target: Any, inputs: tuple[Any, ...]) -> tuple[InferredMapping, str]:
    """Returns the mapping that is found, and what is said of it if it is not complete."""
    try:
        mapping = infer_mapping(source, target, *inputs)
    except DifferentModelsError as err:
        return err.mapping, str(err)
    return mapping, "" if mapping.complete else str(mapping)


def forward(mapping: InferredMapping, src: End, dst: End, entries: Entries) -> dict[str, Any]:
    """Returns the target entries that a mapping, partial or not, makes of the source's."""
    missing = {leaf.path for leaf in mapping.unplaced}
    shapes = State({p: x for p, x in dst.shapes.items() if p not in missing}, getattr(dst.spec, "declared", None))
    if not isinstance(dst.spec, dict | State):
        entries_of = State({p: x for p, x in dst.spec.entries.items() if p not in missing}, dst.spec.entries.declared)
        shapes = dataclasses.replace(dst.spec, entries=entries_of)
    left = {p: x for p, x in src.shapes.items() if p in mapping.unused}
    for _ in range(2):
        rest = br.Mapping.of(drop=[p.replace("{", "{{").replace("}", "}}") for p in left])
        try:
            return dict(((rest | mapping) if left else mapping).plan(src.spec, shapes).forward(entries))
        except MappingError as err:  # a source leaf of which a part goes to a target leaf that is not placed
            more = {p for p in src.shapes if f"source {p!r} " in str(err)} - set(left)
            if not mapping.unplaced or not more:
                raise
            left |= dict.fromkeys(more)
    raise AssertionError(f"{sorted(left)} have no rule, and are dropped")
