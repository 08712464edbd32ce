"""Conventions: how each framework stores each layer, as mappings to one canonical form, and their composition.

`bridges/conventions/<framework>.toml` is an ordinary mapping whose target is the canonical form: `kernel`, `bias`,
`scale`, `embedding`, running statistics `mean` and `var`, in one layout for all frameworks. n files join any two of n
frameworks: the way through the canonical form is composed here into direct rules, before any model is looked at.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
from collections.abc import Sequence

from bridges.core._errors import MappingError, hint
from bridges.mapping._mapping import Mapping, Part
from bridges.mapping._ops import Op
from bridges.mapping._rule import Agree, LayerRow, Rule
from bridges.mapping._template import Template

_FOLDER = "bridges.conventions"


def frameworks() -> list[str]:
    """Returns the frameworks that have a convention file."""
    files = importlib.resources.files(_FOLDER).iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


@functools.cache
def conventions(src: str, dst: str) -> Mapping:
    """Returns the mapping with the shipped layer conventions between two frameworks.

    Args:
      src: `'haiku'` or `'linen'`.
      dst: The same; may be equal to `src`.

    Raises:
      MappingError: There is no convention file for one of them.

    >>> [row.type for part in conventions('haiku', 'linen').parts for row in part.layers][:2]
    ['Linear', 'Conv']
    """
    rows = []
    for name in (src, dst):
        if name not in frameworks():
            raise MappingError(
                f"There are no conventions for {name!r}.{hint(name, frameworks())} There are {frameworks()}."
            )
        text = importlib.resources.files(_FOLDER).joinpath(f"{name}.toml").read_text("utf-8")
        rows.append({row.type: row for part in Mapping.loads(text).parts for row in part.layers})
    join = _same if src == dst else _compose
    return Mapping((Part(layers=tuple(join(row, rows[1][name]) for name, row in rows[0].items() if name in rows[1])),))


def _same(a: LayerRow, b: LayerRow) -> LayerRow:
    rules = tuple(
        dataclasses.replace(r, dst=r.src, ops=(), value=None, reason="", dst_rank=r.src_rank) for r in a.rules
    )
    return LayerRow(a.type, a.src, a.src, rules, tuple(Agree(x.name, x.src, x.src, x.effect) for x in a.agree))


def _compose(a: LayerRow, b: LayerRow) -> LayerRow:
    """Returns the row from a's source to b's source, through the canonical form that is the target of both."""
    back = [rule.inverse for rule in b.rules]
    rules = [rule for rule in a.rules if not rule.dst] + [rule for rule in back if not rule.src]
    for rule in (r for r in a.rules if r.dst):
        whole = [r for r in back if r.src == rule.dst]
        parts = [r for t in rule.dst for r in back if r.src == (t,) and len(r.dst) == 1]
        if whole:
            rules.append(_through([rule], whole))
        elif len(parts) == len(rule.dst):
            rules.append(_through([rule], parts))
    for rule in (r for r in back if len(r.src) > 1):
        parts = [r for t in rule.src for r in a.rules if r.dst == (t,) and len(r.src) == 1]
        if len(parts) == len(rule.src):
            rules.append(_through(parts, [rule]))
    there = {x.name: x for x in b.agree}
    agree = [
        Agree(x.name, x.src, there[x.name].src, x.effect or there[x.name].effect) for x in a.agree if x.name in there
    ]
    return LayerRow(a.type, a.src, b.src, tuple(rules), tuple(agree))


def _through(first: Sequence[Rule], then: Sequence[Rule]) -> Rule:
    src: list[Template] = [t for r in first for t in r.src]
    dst: list[Template] = [t for r in then for t in r.dst]
    return Rule(
        tuple(src),
        tuple(dst),
        _ops(first) + _ops(then),
        reason=" ".join(filter(None, (r.reason for r in (*first, *then)))),
        optional=all(r.optional for r in first) or all(r.optional for r in then),
        src_rank=first[0].src_rank if len(src) == 1 else (),
        dst_rank=then[0].dst_rank if len(dst) == 1 else (),
    )


def _ops(rules: Sequence[Rule]) -> tuple[Op, ...]:
    """Returns the ops of rules that run side by side, one array each, as ops on the list of those arrays."""
    if len(rules) == 1:
        return rules[0].ops
    ops = []
    for part, rule in enumerate(rules):
        for op in rule.ops:
            if not hasattr(op, "part"):
                raise MappingError(f"The convention rule {rule} cannot stand beside others: {op} takes several arrays.")
            ops.append(dataclasses.replace(op, part=part))  # type: ignore[call-arg]
    return tuple(ops)
