"""LayerRow: how one type of layer is stored at both ends. Frozen data with an exact inverse and a plain-data form.

Its rules are relative to the layer's own path `{m:module}`; beside them are the hyperparameters in which both ends must
agree.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from bridges.core._errors import MappingError
from bridges.core._spec import Layer
from bridges.mapping._data import check_keys, frozen, thawed
from bridges.mapping._hyper import Agree, Hyper
from bridges.mapping._rule import Rule

_AUTO = re.compile("_(0|[1-9][0-9]*)$")  # the number of an automatic name
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
