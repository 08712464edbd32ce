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
from importlib.resources.abc import Traversable
from typing import Any

from bridges.core._errors import MappingError, hint
from bridges.mapping._each import Cast, Each, Reshape
from bridges.mapping._hyper import Agree
from bridges.mapping._lists import Concat, Copy, Lead, Pick, Reorder, Split, Sum
from bridges.mapping._mapping import Mapping, Part
from bridges.mapping._op import Op
from bridges.mapping._row import LayerRow
from bridges.mapping._rule import Rule
from bridges.mapping._template import Template


def _folder() -> Traversable:
    # Not files("bridges.conventions"): a module of this name would hide the function `bridges.conventions`.
    return importlib.resources.files("bridges") / "conventions"


def frameworks() -> list[str]:
    """Returns the frameworks that have a convention file."""
    files = _folder().iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


@functools.cache
def conventions(src: str, dst: str) -> Mapping:
    """Returns the mapping with the shipped layer conventions between two frameworks.

    Args:
      src: `'haiku'`, `'linen'` or `'nnx'`.
      dst: The same; may be equal to `src`.

    Raises:
      MappingError: There is no convention file for one of them.

    >>> [row.type for part in conventions('haiku', 'linen').parts for row in part.layers][:2]
    ['Linear', 'Conv']
    """
    ends = [_rows(src)]
    ends.append(ends[0] if src == dst else _rows(dst))
    rows = []
    for name, here in ends[0].items():
        for a in here:
            for b in ends[1].get(name, ()):
                if a.rules and b.rules:
                    rows.append(_same(a) if a is b else compose(a, b))
                elif src != dst:
                    rows.append(
                        LayerRow(
                            name, a.src, b.src, refuse=a.refuse or b.refuse, src_when=a.src_when, dst_when=b.src_when
                        )
                    )
    if src != dst:
        known = {t for row in rows for t in (*row.src, *row.dst) if not row.refuse and row.rules}
        for end, other in ((0, dst), (1, src)):
            lonely = [row for name, here in ends[end].items() if name not in ends[1 - end] for row in here]
            rows += [_refused(row, end, other) for row in lonely if row.src_when or not known.intersection(row.src)]
    return Mapping((Part(layers=tuple(rows)),))


def _rows(framework: str) -> dict[str, list[LayerRow]]:
    """Returns the rows of a convention file by type; a type has several where it is stored in several ways."""
    if framework not in frameworks():
        raise MappingError(
            f"There are no conventions for {framework!r}.{hint(framework, frameworks())} There are {frameworks()}."
        )
    text = _folder().joinpath(f"{framework}.toml").read_text("utf-8")
    rows: dict[str, list[LayerRow]] = {}
    for row in (row for part in Mapping.loads(text).parts for row in part.layers):
        rows.setdefault(row.type, []).append(row)
    return rows


def _refused(row: LayerRow, end: int, other: str) -> LayerRow:
    remedy = "give a module of your own the same entries and say so under [modules], or write rules"
    reason = row.refuse or f"{other} has no such layer: {remedy}"
    if end:
        return LayerRow(row.type, dst=row.src, refuse=reason, dst_when=row.src_when)
    return LayerRow(row.type, row.src, refuse=reason, src_when=row.src_when)


def _same(a: LayerRow) -> LayerRow:
    rules = tuple(
        Rule(r.src, r.src, optional=r.optional, src_rank=r.src_rank, dst_rank=r.src_rank) for r in a.rules if r.src
    )
    agree = tuple(dataclasses.replace(x, dst=x.src) for x in a.agree)
    return dataclasses.replace(
        a,
        dst=a.src,
        rules=rules,
        agree=agree,
        dst_when=a.src_when,
        dst_named=a.src_named,
        dst_only_named=a.src_only_named,
    )


def compose(a: LayerRow, b: LayerRow) -> LayerRow:
    """Returns the row from a's source to b's source, through the canonical form that is the target of both.

    Rules that share canonical entries are joined: those of `a` side by side, the entries in the order that `b` wants
    them in, and those of `b` backwards. A rule some of whose canonical entries the other end has not is left out.
    """
    back = [rule.inverse for rule in b.rules]
    rules = [rule for rule in a.rules if not rule.dst] + [rule for rule in back if not rule.src]
    there = [rule for rule in a.rules if rule.dst]
    back = [rule for rule in back if rule.src]
    while True:  # leave out what the other end cannot complete
        have, wanted = {t for r in there for t in r.dst}, {t for r in back for t in r.src}
        kept = [r for r in there if wanted.issuperset(r.dst)], [r for r in back if have.issuperset(r.src)]
        if (len(kept[0]), len(kept[1])) == (len(there), len(back)):
            break
        there, back = kept
    while there:
        first: list[Rule] = [there.pop(0)]
        then: list[Rule] = []
        while True:  # all that shares an entry with what was found
            more = [r for r in back if {t for f in first for t in f.dst}.intersection(r.src)]
            then, back = then + more, [r for r in back if r not in more]
            also = [r for r in there if {t for f in then for t in f.src}.intersection(r.dst)]
            first, there = first + also, [r for r in there if r not in also]
            if not also:
                break
        rules.append(_through(first, then))
    theirs = {x.name: x for x in b.agree}
    agree = [
        dataclasses.replace(x, dst=theirs[x.name].src, **_told(x, theirs[x.name])) for x in a.agree if x.name in theirs
    ]
    return dataclasses.replace(
        a,
        dst=b.src,
        rules=tuple(rules),
        agree=tuple(agree),
        refuse="",
        dst_when=b.src_when,
        dst_named=b.src_named,
        dst_only_named=b.src_only_named,
    )


def _told(a: Agree, b: Agree) -> dict[str, Any]:
    return {key: getattr(a, key) or getattr(b, key) for key in ("effect", "remedy", "note")}


def _through(first: Sequence[Rule], then: Sequence[Rule]) -> Rule:
    src: list[Template] = [t for r in first for t in r.src]
    dst: list[Template] = [t for r in then for t in r.dst]
    made, wanted = [t for r in first for t in r.dst], [t for r in then for t in r.src]
    between: tuple[Op, ...] = () if made == wanted else (Reorder(tuple(made.index(t) for t in wanted)),)
    texts = {
        key: " ".join(dict.fromkeys(filter(None, (getattr(r, key) for r in (*first, *then)))))
        for key in ("reason", "resume", "refuse")
    }
    ops = _simplified(_ops(first) + between + _ops(then)) if src and dst else ()
    value = next((r.value for r in (*first, *then) if r.value is not None), None)
    if value is not None and any(r.ops for r in (*first, *then)):
        raise MappingError(f"The convention rule {[*first, *then][0]} writes a constant, which no op may change.")
    return Rule(
        tuple(src),
        tuple(dst),
        ops,
        value=value,
        optional=all(r.optional for r in first) or all(r.optional for r in then),
        src_rank=first[0].src_rank if len(src) == 1 else (),
        dst_rank=then[0].dst_rank if len(dst) == 1 else (),
        **texts,
    )


def _simplified(ops: Sequence[Op]) -> tuple[Op, ...]:
    """Returns the ops with those gone that undo one another, and reshapes in a row made one."""
    done: list[Op] = []
    for op in ops:
        last = done[-1] if done else None
        if isinstance(op, Reshape) and isinstance(last, Reshape) and op.part == last.part:
            done[-1] = op
        elif last is not None and op == last.inverse and not isinstance(op, (Reshape, Pick, Copy, Sum, Lead, Cast)):
            done.pop()
        else:
            done.append(op)
    return tuple(done)


def _ops(rules: Sequence[Rule]) -> tuple[Op, ...]:
    """Returns the ops of rules that run side by side as ops on the list of all their arrays."""
    if len(rules) == 1:
        return rules[0].ops
    if all(rule.ops == rules[0].ops for rule in rules) and all(_apart(op) for op in rules[0].ops):
        return rules[0].ops
    ops: list[Op] = []
    for part, rule in enumerate(rules):
        for op in rule.ops:
            if not isinstance(op, Each) or len(rule.src) > 1:
                raise MappingError(f"The convention rule {rule} cannot stand beside others: {op} takes several arrays.")
            ops.append(op.on(part))
    return tuple(ops)


def _apart(op: Op) -> bool:
    """Whether the op does to several groups of arrays what it does to each of them."""
    return op.parts is not None if isinstance(op, (Split, Concat)) else isinstance(op, Each) and op.part is None
