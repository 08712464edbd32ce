"""InferredMapping: a mapping that was found from two models, with what is known of every leaf and of what is missing.

It is a `Mapping` like any other; its text carries the evidence as comments. What it lacks it lists: a plan made with a
partial mapping raises until the user has added the rest.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping as Table
from collections.abc import Sequence
from typing import Any

import jax

from bridges._infer._found import Evidence, Parting, Unplaced
from bridges.core._errors import BridgeError
from bridges.mapping._mapping import Mapping

_NUMBER = re.compile("[0-9]+")


@dataclasses.dataclass(frozen=True)
class Verified:
    """How far both models are apart with the mapping found, as parts of the largest value; in float64 where they run in it.

    Attributes:
      dtype: The precision.
      outputs: The outputs, on new random variables.
      gradients: The gradients with respect to the source's variables; those of the target pulled back through the plan.
      leaves: The same for each of the source's variables, as a part of its own largest gradient; NaN where it has none.
      no_gradients: Why JAX takes none of a model, if so; they are NaN then, and the outputs are all that was compared.
    """

    dtype: str
    outputs: float
    gradients: float
    leaves: Table[str, float] = dataclasses.field(default_factory=dict, repr=False)
    no_gradients: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain data, without the leaves."""
        return {"dtype": self.dtype, "outputs": self.outputs, "gradients": self.gradients}

    def __str__(self) -> str:
        outputs, gradients = (f"to {x:.0e}" if x else "exactly" for x in (self.outputs, self.gradients))
        if self.no_gradients:
            return f"outputs agree {outputs} in {self.dtype}; JAX takes no gradients: {self.no_gradients}"
        return f"outputs agree {outputs} and gradients {gradients} in {self.dtype}"


@dataclasses.dataclass(frozen=True, eq=False)
class InferredMapping(Mapping):
    """A mapping between two models, found by what they compute; see `bridges.infer_mapping`.

    Attributes:
      parts: As of any `Mapping`.
      text: Its TOML, with the evidence as comments.
      evidence: By target path, for each leaf that is placed.
      unplaced: Target leaves that are not, with the candidates and the reason.
      unused: Source leaves that the source reads and that went nowhere.
      dropped: Source leaves that the source does not read when it is evaluated.
      verified: How far outputs and gradients are apart; None for a partial mapping.
      parting: Where the two models part, or the search stopped; None if they are the same function.
      notes: What else is worth a word: hyperparameters that only training shows.
      seconds: How long each stage took.
    """

    text: str = ""
    evidence: Table[str, Evidence] = dataclasses.field(default_factory=dict)
    unplaced: tuple[Unplaced, ...] = ()
    unused: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    verified: Verified | None = None
    parting: Parting | None = None
    notes: tuple[str, ...] = ()
    seconds: Table[str, float] = dataclasses.field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return self.parts == other.parts if isinstance(other, Mapping) else NotImplemented

    __hash__ = Mapping.__hash__

    @property
    def complete(self) -> bool:
        """Whether every leaf is placed and the models are the same function, which was verified."""
        return not self.unplaced and not self.unused and self.parting is None and self.verified is not None

    def dumps(self) -> str:
        """Returns the mapping as TOML, with the evidence as comments."""
        return self.text

    def __str__(self) -> str:
        """Returns what was found, for a person."""
        total = len(self.evidence) + len(self.unplaced)
        kinds: dict[str, int] = {}
        for evidence in self.evidence.values():
            kinds[evidence.kind] = kinds.get(evidence.kind, 0) + 1
        how = ", ".join(f"{n} by {kind}" for kind, n in kinds.items())
        lines = [f"{len(self.evidence)} of {total} leaves placed{f' ({how})' * bool(how)}"]
        if self.verified:
            lines[0] += f"; {self.verified}"
        if self.parting:
            lines.append(str_parting(self.parting))
        return "\n".join([*lines, *open_lines(self.unplaced, self.unused), *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Returns what was found as plain data, which JSON can hold: no number where there is none, or no finite one."""
        return _finite(
            {
                "mapping": self.text,
                "complete": self.complete,
                "placed": {path: dataclasses.asdict(evidence) for path, evidence in self.evidence.items()},
                "unplaced": [dataclasses.asdict(leaf) for leaf in self.unplaced],
                "unused": list(self.unused),
                "dropped": list(self.dropped),
                "parting": dataclasses.asdict(self.parting) if self.parting else None,
                "verified": self.verified.to_dict() if self.verified else None,
                "notes": list(self.notes),
                "seconds": dict(self.seconds),
            }
        )


def _finite(plain: Any) -> Any:
    return jax.tree.map(lambda x: None if isinstance(x, float) and not math.isfinite(x) else x, plain)


def open_lines(unplaced: Sequence[Unplaced], unused: Sequence[str]) -> list[str]:
    """Returns a line for each leaf that is open, why, and what it might be; those alike but for numbers in one."""
    alike: dict[tuple[str, str], list[str]] = {}
    for leaf in unplaced:
        alike.setdefault((_NUMBER.sub("#", leaf.path), leaf.reason), []).append(_unplaced(leaf))
    for path in unused:
        text = f"{path!r} of the source went nowhere: add a rule, or `drop` it"
        alike.setdefault((_NUMBER.sub("#", path), ""), []).append(text)
    more = " (and {} more like it)"
    return [texts[0] + more.format(len(texts) - 1) * (len(texts) > 1) for texts in alike.values()]


def _unplaced(leaf: Unplaced) -> str:
    part = f" ({100 * leaf.part:.0f} % of it is known)" if leaf.part else ""
    candidates = f"; it might be {', '.join(map(repr, leaf.candidates[:4]))}" if leaf.candidates else ""
    return f"{leaf.path!r} is not placed{part}: {leaf.reason}{candidates}"


def str_parting(parting: Parting) -> str:
    """Returns a line that says where the models part, or the search stopped."""
    places = [place for place in (parting.src_place, parting.dst_place) if place]
    where = " / ".join(dict.fromkeys(places))
    at = f" at {where}" if where else ""
    if parting.certain:
        return f"The models part{at}: {parting.text}."
    return f"The search stops{at}: {parting.text}. The models part there, or it could not follow them."


class DifferentModelsError(BridgeError, ValueError):
    """Two models do not compute the same, whatever their variables: the text says where they part.

    Attributes:
      mapping: What could be placed all the same: an `InferredMapping` that is partial, or not verified.
      parting: Where they part.
    """

    def __init__(self, text: str, mapping: InferredMapping):
        super().__init__(text)
        self.mapping = mapping
        self.parting = mapping.parting
