"""Rule, LayerRow: what a mapping is made of. Frozen data with an exact inverse and a plain-data form.

A `Rule` joins entries of the two ends. A `LayerRow` is the set of rules for one type of layer, all relative to the
layer's own path `{m:module}`, with the hyperparameters in which both ends must agree.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bridges.core._errors import MappingError, hint
from bridges.mapping._ops import Op, op_from_dict
from bridges.mapping._template import Template


def frozen(value: Any) -> Any:
    """Returns a constant as plain hashable data: arrays and lists become nested tuples."""
    if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__array__"):
        array = np.asarray(value)
        value = (array if array.dtype.kind in "biu" else array.astype(np.float64)).tolist()
    return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value


def thawed(value: Any) -> Any:
    """Returns the constant with lists for tuples, as TOML and JSON want it."""
    return [thawed(v) for v in value] if isinstance(value, tuple) else value


def check_keys(what: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises a MappingError for a key that is not known."""
    if not isinstance(given, Mapping):
        raise MappingError(f"{what} is a table, not {given!r}.")
    for key in given:
        if key not in known:
            raise MappingError(f"{what} has no key {key!r}.{hint(key, known)} It has {', '.join(known)}.")


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
      optional: Whether the rule may be left without a match.
      src_rank, dst_rank: The rule is only for entries of these ranks; empty for any.
    """

    src: tuple[Template, ...]
    dst: tuple[Template, ...]
    ops: tuple[Op, ...] = ()
    value: Any = None
    reason: str = ""
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
        for key in ("reason", "optional"):
            if getattr(self, key):
                out[key] = getattr(self, key)
        for key in ("src_rank", "dst_rank"):
            if getattr(self, key):
                out[key] = list(getattr(self, key))
        return out

    def __str__(self) -> str:
        ends = [" + ".join(t.text for t in end) or "nothing" for end in (self.src, self.dst)]
        return f"'{ends[0]} -> {ends[1]}'"


_MANY = {"source": ("stack", "concat", "pick"), "target": ("unstack", "split", "copy")}


@dataclasses.dataclass(frozen=True)
class Hyper:
    """Where one end keeps a hyperparameter: its name there and its default, or the one value that it always has.

    `form` names how the framework writes it (see `bridges.mapping._agree`).
    """

    name: str = ""
    default: Any = None
    value: Any = None
    form: str = ""

    @classmethod
    def of(cls, given: Any) -> Hyper | None:
        """Returns the hyperparameter of its plain data: its name, or a table."""
        if given is None or isinstance(given, Hyper):
            return given
        given = {"name": given} if isinstance(given, str) else given
        check_keys("A hyperparameter", given, [f.name for f in dataclasses.fields(cls)])
        return cls(**{key: frozen(value) for key, value in given.items()})

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain data."""
        items = ((f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self))
        return {key: thawed(value) for key, value, default in items if value != default or value is False}


@dataclasses.dataclass(frozen=True)
class Agree:
    """A hyperparameter in which both ends must agree, and what happens if they do not."""

    name: str
    src: Hyper | None = None
    dst: Hyper | None = None
    effect: str = ""

    @property
    def inverse(self) -> Agree:
        """The same with the ends swapped."""
        return dataclasses.replace(self, src=self.dst, dst=self.src)


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """How one type of layer is stored at both ends.

    Attributes:
      type: The name of the layer, whatever the framework: `Linear`, `BatchNorm`.
      src: The types that a `bridges.core.Spec` may give it at the source: `haiku.Linear`.
      dst: The same for the target.
      rules: Every template has exactly one variable, `{m:module}`: the path of the layer.
      agree: The hyperparameters to compare.
    """

    type: str
    src: tuple[str, ...] = ()
    dst: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    agree: tuple[Agree, ...] = ()

    def __post_init__(self) -> None:
        for rule in self.rules:
            for template in (*rule.src, *rule.dst):
                if template.domains != {"m": "module"}:
                    raise MappingError(
                        f"Layer {self.type}: {template.text!r} must have exactly one variable, {{m:module}}, its path."
                    )

    @property
    def inverse(self) -> LayerRow:
        """The same with the ends swapped."""
        rules, agree = tuple(r.inverse for r in self.rules), tuple(a.inverse for a in self.agree)
        return LayerRow(self.type, self.dst, self.src, rules, agree)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> LayerRow:
        """Returns the row of its plain data."""
        check_keys("A layer", given, [f.name for f in dataclasses.fields(cls)])
        if "type" not in given:
            raise MappingError("A layer needs a type.")
        agree = []
        for name, entry in given.get("agree", {}).items():
            check_keys(f"agree.{name}", entry, ("src", "dst", "effect"))
            agree.append(Agree(name, Hyper.of(entry.get("src")), Hyper.of(entry.get("dst")), entry.get("effect", "")))
        src, dst = ((t,) if isinstance(t, str) else tuple(t) for t in (given.get("src", ()), given.get("dst", ())))
        return cls(given["type"], src, dst, tuple(map(Rule.of, given.get("rules", ()))), tuple(agree))

    def to_dict(self) -> dict[str, Any]:
        """Returns the row as plain data."""
        out: dict[str, Any] = {"type": self.type}
        for key in ("src", "dst"):
            if getattr(self, key):
                out[key] = list(getattr(self, key))
        if self.rules:
            out["rules"] = [rule.to_dict() for rule in self.rules]
        if self.agree:
            out["agree"] = {
                a.name: {
                    **({"src": a.src.to_dict()} if a.src else {}),
                    **({"dst": a.dst.to_dict()} if a.dst else {}),
                    **({"effect": a.effect} if a.effect else {}),
                }
                for a in self.agree
            }
        return out
