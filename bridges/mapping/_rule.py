"""Rule, LayerRow: what a mapping is made of. Frozen data with an exact inverse and a plain-data form.

A `Rule` joins entries of the two ends. A `LayerRow` is the set of rules for one type of layer, all relative to the
layer's own path `{m:module}`, with the hyperparameters in which both ends must agree.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np

from bridges.core._errors import MappingError, hint
from bridges.core._spec import Layer
from bridges.mapping._op import Op
from bridges.mapping._ops import op_from_dict
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


_AUTO = re.compile("_(0|[1-9][0-9]*)$")  # the number of an automatic name


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


@dataclasses.dataclass(frozen=True)
class Hyper:
    """Where one end keeps a hyperparameter: its name there and its default, or the one value that it always has.

    `form` names how the framework writes it (see `bridges.mapping._agree`); of padding, `window` names the kernel's size,
    dilation and stride.
    """

    name: str = ""
    default: Any = None
    value: Any = None
    form: str = ""
    window: tuple[str, ...] = ()

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
    """A hyperparameter in which both ends must agree, and what happens if they do not.

    Attributes:
      name: What it is called in errors, whatever the framework.
      src, dst: Where each end keeps it; None: it is not compared.
      effect: What a difference does.
      remedy: What to do, where it is not to pass the source's value at the target.
      note: A difference is no error, only noted in the plan.
    """

    name: str
    src: Hyper | None = None
    dst: Hyper | None = None
    effect: str = ""
    remedy: str = ""
    note: bool = False

    @property
    def inverse(self) -> Agree:
        """The same with the ends swapped."""
        return dataclasses.replace(self, src=self.dst, dst=self.src)


_RELATIONS: dict[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne,
    "!>": operator.le,
    "=": operator.eq,
    ">": operator.gt,
}


def holds(when: Sequence[tuple[str, Any]], layer: Layer) -> bool:
    """Whether a layer has these hyperparameters; one that it does not report is taken to be as wanted.

    A wanted value `'=other'`, `'!=other'`, `'>other'` or `'!>other'` compares with the hyperparameter `other` of the same
    layer; true and false ask whether there is one at all.

    >>> holds([('value_size', '>key_size')], Layer('', {'value_size': 3, 'key_size': 2}))
    True
    """
    have = layer.hyperparameters
    for name, wanted in when:
        if name not in have:
            continue
        value = frozen(have[name])
        sign = next((s for s in _RELATIONS if isinstance(wanted, str) and wanted.startswith(s)), None)
        if sign is not None:
            other = have.get(wanted.removeprefix(sign))
            if other is None or not _RELATIONS[sign](value, other):
                return False
        elif (bool(value) if isinstance(wanted, bool) else value) != wanted:
            return False
    return True


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """How one type of layer is stored at both ends.

    Attributes:
      type: The name of the layer, whatever the framework: `Linear`, `BatchNorm`.
      src: The types that a `bridges.core.Spec` may give it at the source: `haiku.Linear`.
      dst: The same for the target.
      rules: Every template has exactly one variable, `{m:module}`: the path of the layer.
      agree: The hyperparameters to compare.
      refuse: Why layers of this type have no counterpart at the other end. The row then has types at one end only.
      src_when, dst_when: Hyperparameters that a layer has if the row is for it (see `holds`); of two rows of one type,
        this decides.
      src_named, dst_named: Automatic names: where a spec does not tell types, modules called so are of this row.
      src_only_named, dst_only_named: The same, and modules called otherwise are not.
    """

    type: str
    src: tuple[str, ...] = ()
    dst: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    agree: tuple[Agree, ...] = ()
    refuse: str = ""
    src_when: tuple[tuple[str, Any], ...] = ()
    dst_when: tuple[tuple[str, Any], ...] = ()
    src_named: tuple[str, ...] = ()
    dst_named: tuple[str, ...] = ()
    src_only_named: tuple[str, ...] = ()
    dst_only_named: tuple[str, ...] = ()

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
        return dataclasses.replace(
            self,
            src=self.dst,
            dst=self.src,
            rules=tuple(r.inverse for r in self.rules),
            agree=tuple(a.inverse for a in self.agree),
            src_when=self.dst_when,
            dst_when=self.src_when,
            src_named=self.dst_named,
            dst_named=self.src_named,
            src_only_named=self.dst_only_named,
            dst_only_named=self.src_only_named,
        )

    def applies(self, side: str, layer: Layer | None, module: str, known: Container[str]) -> bool:
        """Whether the row is for this layer.

        Args:
          side: `'src'` or `'dst'`.
          layer: What the spec says; None where it does not know the layer.
          module: Its path.
          known: The automatic names of all rows.
        """
        types, when = (self.src, self.src_when) if side == "src" else (self.dst, self.dst_when)
        if layer is None:
            named, only = self.names(side)
            name = _AUTO.sub("", module.rpartition("/")[2])
            return name in (*named, *only) or (not only and name not in known)
        return layer.type in types and holds(when, layer)

    def names(self, side: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The automatic names of its modules, and those without which a module is none of it."""
        return (self.src_named, self.src_only_named) if side == "src" else (self.dst_named, self.dst_only_named)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> LayerRow:
        """Returns the row of its plain data."""
        check_keys("A layer", given, [f.name for f in dataclasses.fields(cls)])
        if "type" not in given:
            raise MappingError("A layer needs a type.")
        tables: dict[str, Any] = dict.fromkeys(("agree", "src_when", "dst_when"), Mapping)
        names = dict.fromkeys(
            ("src", "dst", "src_named", "dst_named", "src_only_named", "dst_only_named"), (str, list, tuple)
        )
        for key, kind in {**tables, **names, "rules": (list, tuple)}.items():
            if key in given and not isinstance(given[key], kind):
                raise MappingError(f"`{key}` of the layer {given['type']} has another form than {given[key]!r:.60}.")
        agree = []
        for name, entry in given.get("agree", {}).items():
            check_keys(f"agree.{name}", entry, [f.name for f in dataclasses.fields(Agree)][1:])
            ends = {end: Hyper.of(entry[end]) for end in ("src", "dst") if end in entry}
            agree.append(Agree(name, **{**entry, **ends}))
        texts: dict[str, Any] = {
            key: (given[key],) if isinstance(given[key], str) else tuple(given[key])
            for key in ("src", "dst", "src_named", "dst_named", "src_only_named", "dst_only_named")
            if key in given
        }
        whens: dict[str, Any] = {
            key: tuple((n, frozen(v)) for n, v in given.get(key, {}).items()) for key in ("src_when", "dst_when")
        }
        rules = tuple(map(Rule.of, given.get("rules", ())))
        row = cls(given["type"], rules=rules, agree=tuple(agree), refuse=given.get("refuse", ""))
        return dataclasses.replace(row, **whens, **texts)

    def to_dict(self) -> dict[str, Any]:
        """Returns the row as plain data."""
        out: dict[str, Any] = {"type": self.type}
        for key in ("src", "dst", "src_named", "dst_named", "src_only_named", "dst_only_named"):
            if getattr(self, key):
                out[key] = list(getattr(self, key))
        for key in ("src_when", "dst_when"):
            if getattr(self, key):
                out[key] = {name: thawed(value) for name, value in getattr(self, key)}
        if self.refuse:
            out["refuse"] = self.refuse
        if self.rules:
            out["rules"] = [rule.to_dict() for rule in self.rules]
        if self.agree:
            out["agree"] = {
                a.name: {
                    **({"src": a.src.to_dict()} if a.src else {}),
                    **({"dst": a.dst.to_dict()} if a.dst else {}),
                    **{key: getattr(a, key) for key in ("effect", "remedy", "note") if getattr(a, key)},
                }
                for a in self.agree
            }
        return out
