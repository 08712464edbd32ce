"""Mapping: a mapping between two variable trees as data, with no direction, that can be joined, dumped and loaded.

A mapping is a sequence of parts; a part earlier in the sequence goes before the later ones wherever both have something
to say about a leaf. Within one part two rules that send a leaf to different places are an error.

What it does not do: look at a model. `Mapping.plan` does that, with two specs.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tomllib
from collections.abc import Iterable
from collections.abc import Mapping as Table
from typing import TYPE_CHECKING, Any

from bridges.core._errors import MappingError
from bridges.core._spec import Spec
from bridges.mapping import _toml
from bridges.mapping._data import check_keys
from bridges.mapping._row import LayerRow
from bridges.mapping._rule import Rule
from bridges.mapping._template import Template

if TYPE_CHECKING:
    from bridges.mapping._plan import Plan

_KEYS = ("extends", "modules", "rules", "drop", "fill", "cast", "accept", "layers", "otherwise")
# (has a source, has a target, has a value) of the rules under each key
_ENDS = {
    "rules": [(True, True, False)],
    "drop": [(True, False, False), (True, False, True)],
    "fill": [(False, True, True)],
}


def _stack_hint(src: Template, dst: Template) -> str:
    """Returns a hint if the line may have meant a stack."""
    for few, many in ((src, dst), (dst, src)):
        extra = [name for name in many.domains if name not in few.domains]
        if len(extra) == 1 and many.domains[extra[0]] == "number" and not few.domains.keys() - many.domains.keys():
            return f" If {few.text!r} holds them stacked, write its index: '{few.text}/[{{{extra[0]}:int}}]'."
    return ""


@dataclasses.dataclass(frozen=True)
class Part:
    """The contents of one mapping file; see docs/mapping.md.

    Attributes:
      modules: Pairs of module-path templates (without the collection): where modules went. Several with one source are a
        line that names several targets.
      rules: Explicit rules, drops and fills.
      cast: Templates of target entries whose dtype may change.
      accept: Pairs of a target module's template and a hyperparameter in which the ends may differ.
      layers: How layers are stored.
    """

    modules: tuple[tuple[Template, Template], ...] = ()
    rules: tuple[Rule, ...] = ()
    cast: tuple[Template, ...] = ()
    accept: tuple[tuple[Template, str], ...] = ()
    layers: tuple[LayerRow, ...] = ()

    def __post_init__(self) -> None:
        for src, dst in self.modules:
            if src.domains != dst.domains:
                raise MappingError(
                    f"[modules] {src.text!r} = {dst.text!r}: both ends must have the same variables, of the same kinds."
                    + _stack_hint(src, dst)
                )

    @property
    def inverse(self) -> Part:
        """The part with its ends swapped. `cast` and `accept` name target paths, and must be written anew."""
        if self.cast or self.accept:
            raise MappingError("A mapping with `cast` or `accept` names its target's paths and has no inverse as data.")
        modules = tuple((dst, src) for src, dst in self.modules)
        return Part(modules, tuple(r.inverse for r in self.rules), layers=tuple(r.inverse for r in self.layers))

    def to_dict(self) -> dict[str, Any]:
        """Returns the part as plain data."""
        out: dict[str, Any] = {}
        if self.cast:
            out["cast"] = [t.text for t in self.cast]
        if self.modules:
            lines: dict[str, list[str]] = {}
            for src, dst in self.modules:
                lines.setdefault(src.text, []).append(dst.text)
            out["modules"] = {src: dsts[0] if len(dsts) == 1 else dsts for src, dsts in lines.items()}
        accept: dict[str, list[str]] = {}
        for template, name in self.accept:
            accept.setdefault(template.text, []).append(name)
        if accept:
            out["accept"] = accept
        kinds: dict[str, list[dict[str, Any]]] = {"rules": [], "drop": [], "fill": []}
        for rule in self.rules:
            kinds["rules" if rule.src and rule.dst else "drop" if rule.src else "fill"].append(rule.to_dict())
        out.update({key: rows for key, rows in kinds.items() if rows})
        if self.layers:
            out["layers"] = [row.to_dict() for row in self.layers]
        return out


def _part(given: Table[str, Any]) -> Part:
    rules = [Rule.of(rule) for rule in given.get("rules", ())]
    drops = [Rule.of({"src": d} if isinstance(d, (str, Template)) else d) for d in given.get("drop", ())]
    fill = given.get("fill", ())
    fills = [
        Rule.of(f) for f in ([{"dst": p, "value": v} for p, v in fill.items()] if isinstance(fill, Table) else fill)
    ]
    for key, rows, wants in (
        ("rules", rules, "src and dst"),
        ("drop", drops, "src and no dst"),
        ("fill", fills, "dst, a value and no src"),
    ):
        for rule in rows:
            have = (bool(rule.src), bool(rule.dst), rule.value is not None)
            if have not in _ENDS[key]:
                raise MappingError(f"Rule {rule} under `{key}` needs {wants}.")
    rules += drops + fills
    return Part(
        modules=tuple(
            (Template(src), Template(dst))
            for src, goals in given.get("modules", {}).items()
            for dst in ([goals] if isinstance(goals, str) else goals)
        ),
        rules=tuple(rules),
        cast=tuple(map(Template, given.get("cast", ()))),
        accept=tuple((Template(m), name) for m, names in given.get("accept", {}).items() for name in names),
        layers=tuple(map(LayerRow.of, given.get("layers", ()))),
    )


@dataclasses.dataclass(frozen=True)
class Mapping:
    """How the variables of one model become those of another, as data with no direction.

    Attributes:
      parts: The first goes before the others.

    >>> m = Mapping.loads('''
    ... [modules]
    ... "mlp/~/linear_{i:int}" = "Dense_{i:int}"
    ... ''')
    >>> Mapping.loads(m.dumps()) == m
    True
    """

    parts: tuple[Part, ...] = ()

    @classmethod
    def of(cls, given: Mapping | Table[str, Any] | str | os.PathLike[str] | None = None, **sections: Any) -> Mapping:
        """Returns the mapping of plain data: the keys of the TOML form.

        Args:
          given: A dict with `modules`, `rules`, `drop`, `fill`, `cast`, `accept`, `layers`, `extends`, `otherwise`; or the
            path of a TOML file; or a mapping, which stays as it is.
          **sections: The same as keywords; they go before a file or a mapping. Values under `fill` may be arrays.

        Raises:
          MappingError: A key, template or op is malformed, or this is no mapping.

        >>> m = Mapping.of(modules={'net/linear': 'Dense_0'}, drop=['params/old'], fill={'params/new': 0.0})
        """
        if isinstance(given, (str, os.PathLike)):
            given = cls.load(given)
        if isinstance(given, Mapping):
            return cls._of(sections, None) | given if sections else given
        if not isinstance(given, Table | None):
            raise MappingError(
                f"A mapping is wanted, not a {type(given).__name__}: a Mapping, a dict, or the path of a TOML file."
            )
        return cls._of({**(given or {}), **sections}, None)

    @classmethod
    def _of(cls, given: Table[str, Any], folder: pathlib.Path | None, above: tuple[pathlib.Path, ...] = ()) -> Mapping:
        check_keys("A mapping", given, _KEYS)
        _check_forms(given)
        part = _part({k: v for k, v in given.items() if k not in ("extends", "otherwise")})
        parts: tuple[Part, ...] = (part,) if part != Part() else ()
        for row in given.get("otherwise", ()):
            parts += cls._of(row, folder, above).parts
        for name in given.get("extends", ()):
            parts += cls._extended(name, folder, above).parts
        return cls(parts)

    @classmethod
    def _extended(cls, name: str, folder: pathlib.Path | None, above: tuple[pathlib.Path, ...]) -> Mapping:
        if name.startswith("conventions:"):
            from bridges.mapping._conventions import conventions

            ends = [end.strip() for end in name.removeprefix("conventions:").split("->")]
            if len(ends) == 2:
                return conventions(*ends)
            raise MappingError(f"extends {name!r}: write 'conventions:haiku->linen'.")
        if folder is None:
            raise MappingError(f"extends {name!r}: a mapping that is not loaded from a file has no folder to look in.")
        if (folder / name).resolve() in above:
            raise MappingError(f"extends {name!r}: it is one of the files that extend it, so that there is no end.")
        try:
            return cls._load(folder / name, above)
        except OSError as err:
            raise MappingError(f"extends {name!r}: {folder / name} cannot be read: {err.strerror}.") from err

    @classmethod
    def loads(cls, text: str) -> Mapping:
        """Returns the mapping of a TOML text; the inverse of `dumps`."""
        return cls._of(_read(text, "This text"), None)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Mapping:
        """Returns the mapping of a TOML file. What it `extends` is looked for beside it, and comes after it."""
        return cls._load(pathlib.Path(path), ())

    @classmethod
    def _load(cls, file: pathlib.Path, above: tuple[pathlib.Path, ...]) -> Mapping:
        try:
            text = file.read_text("utf-8")
        except UnicodeDecodeError as err:
            raise MappingError(f"{file} is not TOML, which is UTF-8: {err}") from err
        table = _read(text, str(file))
        try:
            return cls._of(table, file.parent, (*above, file.resolve()))
        except MappingError as err:
            raise MappingError(f"{file}: {err}") from err

    def dumps(self) -> str:
        """Returns the mapping as TOML; `extends` is written out in full."""
        first, *rest = [part.to_dict() for part in self.parts] or [{}]
        return _toml.dumps({**first, **({"otherwise": rest} if rest else {})}, frozenset({"otherwise"}))

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Writes the mapping to a TOML file."""
        pathlib.Path(path).write_text(self.dumps(), "utf-8")

    def __or__(self, other: Mapping) -> Mapping:
        """Returns both mappings; where they disagree about a leaf, this one decides."""
        return Mapping(self.parts + other.parts) if isinstance(other, Mapping) else NotImplemented

    @property
    def inverse(self) -> Mapping:
        """The mapping with its ends swapped (a plan needs none: it has `forward` and `inverse`)."""
        return Mapping(tuple(part.inverse for part in self.parts))

    def plan(self, src: Spec | Table[str, Any], dst: Spec | Table[str, Any]) -> Plan:
        """Returns how every leaf of `src` becomes the leaves of `dst`, with nothing read yet.

        Args:
          src: The source's `Spec`, `State` or a plain dict from path to array or `jax.ShapeDtypeStruct`.
          dst: The same for the target.

        Raises:
          MappingError: Every problem found, with nearest names: rules without a match, leaves without a rule at either
            end, ambiguous rules, two sources for one target, differing shapes, dtypes or hyperparameters.
        """
        from bridges.mapping._planner import make_plan

        return make_plan(self, Spec.of(src), Spec.of(dst))


def _read(text: str, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as err:
        raise MappingError(f"{what} is not TOML: {err}") from err


# What each key holds, and how that is said: kinds of its elements, for a table of its values.
_ROWS = (Table, Template, Rule, LayerRow)
_FORMS: dict[str, tuple[tuple[type, ...], tuple[type, ...] | None, str]] = {
    "extends": ((str,), None, "a list of names of files: extends = ['base.toml']"),
    "otherwise": (_ROWS, None, "a list of tables"),
    "modules": ((), (str, Template, list, tuple), "a table from module to module: [modules] old = 'new'"),
    "rules": (_ROWS, None, "a list of tables: [[rules]]"),
    "drop": ((str, *_ROWS), None, "a list of paths: drop = ['params/old']"),
    "fill": (_ROWS, (object,), "a table from path to value: [fill] 'params/new' = 0.0"),
    "cast": ((str, Template), None, "a list of paths: cast = ['params/head/w']"),
    "accept": ((), (list, tuple, set, frozenset), "a table of lists of names: [accept] norm = ['epsilon']"),
    "layers": (_ROWS, None, "a list of tables: [[layers]]"),
}


def _check_forms(given: Table[str, Any]) -> None:
    for key, value in given.items():
        elements, values, text = _FORMS[key]
        if isinstance(value, Table):
            good = values is not None and all(isinstance(one, values) for one in value.values())
        else:
            good = bool(elements) and isinstance(value, Iterable) and not isinstance(value, (str, bytes))
            good = good and all(isinstance(one, elements) for one in value)
        if not good:
            raise MappingError(f"`{key}` is {text}; it was {value!r:.60}.")
