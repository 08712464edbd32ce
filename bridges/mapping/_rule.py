"""Rule: entries of the two ends that it joins, and the ops between them. Frozen data, with an exact inverse."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from bridges.core._errors import MappingError
from bridges.mapping._data import check_keys, frozen, thawed
from bridges.mapping._op import Op
from bridges.mapping._ops import op_from_dict
from bridges.mapping._template import Template


def _templates(value: Any) -> tuple[Template, ...]:
    texts = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(t if isinstance(t, Template) else Template(t) for t in texts)


def _plain(templates: tuple[Template, ...]) -> Any:
    return templates[0].text if len(templates) == 1 else [t.text for t in templates]


def _ranks(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Entries of the source, the ops, the entries of the target. It has no direction: `inverse` swaps the ends.

    Attributes:
      src: Templates of the source entries; several are handed to the ops in this order. None: the target has entries
        that the source lacks (`fill`).
      dst: As `src`, for the target. None: the source has entries that the target lacks (`drop`).
      ops: From the source's arrays to the target's.
      value: Of a `fill` or a `drop`: what to write at the end that has the entry. A drop without one cannot go back.
      reason: Of a `drop`: what is lost with it, for the plan's verdict.
      resume: What continued training does otherwise at the two ends, whichever way; the verdict is for evaluation only.
      refuse: Of a `drop` in a layer row: why it cannot be made, unless the user names the entry under `drop`.
      optional: Whether the rule may be left without a match.
      src_rank, dst_rank: The rule is only for entries of these ranks; empty for any.
    """

    src: tuple[Template, ...]
    dst: tuple[Template, ...]
    ops: tuple[Op, ...] = ()
    value: Any = None
    reason: str = ""
    resume: str = ""
    refuse: str = ""
    optional: bool = False
    src_rank: tuple[int, ...] = ()
    dst_rank: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.src and not self.dst:
            raise MappingError("A rule has neither a source nor a target.")
        if not self.src or not self.dst:
            return
        indices = self.indices
        if None not in indices:
            raise MappingError(f"Rule {self}: only one end can have a number that the other lacks.")
        for end, index in zip(("source", "target"), indices, strict=True):
            if index is not None and not any(op.name in _MANY[end] for op in self.ops):
                raise MappingError(
                    f"Rule {self}: {{{index}}} is only in the {end}, so one instance has many {end}s. Say how with the"
                    f" op {' or '.join(_MANY[end])}, or write the variable at both ends."
                )

    @functools.cached_property
    def indices(self) -> tuple[str | None, str | None]:
        """The number that only the source has (its entries are stacked), and the one that only the target has."""
        ends = []
        for mine, other, end in ((self.src, self.dst, "source"), (self.dst, self.src, "target")):
            there = other[0].domains if other else {}
            here = mine[0].domains if mine else {}
            for template in (*mine[1:], *other[1:]):
                expected = here if template in mine else there
                if template.domains != expected:
                    raise MappingError(f"Rule {self}: all templates of one end must have the same variables.")
            extra = [name for name in here if name not in there] if other else []
            for name in here:
                if name in there and here[name] != there[name]:
                    raise MappingError(
                        f"Rule {self}: {{{name}}} is a {here[name]} in the {end} and a {there[name]} at the other end."
                        " Write the same kind at both ends (int and auto are both numbers)."
                    )
            if len(extra) > 1 or any(here[name] != "number" for name in extra) or (extra and len(mine) > 1):
                raise MappingError(
                    f"Rule {self}: {', '.join(extra)} of the {end} is not at the other end, so the rule cannot be inverted."
                )
            ends.append(extra[0] if extra else None)
        return ends[0], ends[1]

    @property
    def inverse(self) -> Rule:
        """The rule with its ends swapped; a drop becomes a fill."""
        return dataclasses.replace(
            self,
            src=self.dst,
            dst=self.src,
            ops=tuple(op.inverse for op in reversed(self.ops)),
            src_rank=self.dst_rank,
            dst_rank=self.src_rank,
        )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Rule:
        """Returns the rule of its plain data."""
        known = [f.name for f in dataclasses.fields(cls)]
        check_keys("A rule", given, known)
        args = dict(given)
        ops = args.get("ops", ())
        return cls(
            src=_templates(args.get("src", ())),
            dst=_templates(args.get("dst", ())),
            ops=tuple(
                o if isinstance(o, Op) else op_from_dict(o) for o in (ops if isinstance(ops, (list, tuple)) else [ops])
            ),
            value=frozen(args.get("value")),
            reason=args.get("reason", ""),
            resume=args.get("resume", ""),
            refuse=args.get("refuse", ""),
            optional=bool(args.get("optional", False)),
            src_rank=_ranks(args.get("src_rank", ())),
            dst_rank=_ranks(args.get("dst_rank", ())),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the rule as plain data."""
        out: dict[str, Any] = {}
        if self.src:
            out["src"] = _plain(self.src)
        if self.dst:
            out["dst"] = _plain(self.dst)
        if self.ops:
            out["ops"] = [op.to_dict() for op in self.ops]
        if self.value is not None:
            out["value"] = thawed(self.value)
        for key in ("reason", "resume", "refuse", "optional"):
            if getattr(self, key):
                out[key] = getattr(self, key)
        for key in ("src_rank", "dst_rank"):
            if getattr(self, key):
                out[key] = list(getattr(self, key))
        return out

    def __str__(self) -> str:
        ends = [" + ".join(t.text for t in end) or "nothing" for end in (self.src, self.dst)]
        return f"'{ends[0]} -> {ends[1]}'"


_MANY = {"source": ("stack", "concat", "pick", "sum"), "target": ("unstack", "split", "copy", "lead")}
