"""Draft: a plan while it is made. What is matched so far, what is explained, every problem found.

The rounds of planning (`_explicit`, `_layers`) write into one draft; `_planner` makes a plan of it, or one error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from bridges.core._errors import MappingError, hint
from bridges.core._kind import RngState, kind_type
from bridges.core._spec import Spec
from bridges.mapping._each import Cast
from bridges.mapping._mapping import Mapping
from bridges.mapping._op import Abstract, Op, shapes, signature
from bridges.mapping._plan import Item, constant
from bridges.mapping._resolve import resolve
from bridges.mapping._rule import Rule
from bridges.mapping._template import Template
from bridges.mapping._unrolled import Unrolled


@dataclasses.dataclass(frozen=True)
class Match:
    """One instance of a rule: these sources become these targets."""

    rule: Rule
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    how: str
    level: int = 0

    @property
    def outcome(self) -> Any:
        return self.sources, self.targets, self.rule.ops, self.rule.value


class Draft:
    """What is known of a plan while it is made.

    Attributes:
      mapping, src, dst: What the plan is for.
      ends: Path -> abstract entry, of either end.
      unrolled: Either end with its stacks taken apart; `ends` then has the entries, and matches are those, of single copies.
      tied: Whether an entry of one end stands for several of the other.
      matches: In the order found.
      sources, targets: Path -> the match that it is in.
      problems: Texts, all of which are reported.
      explained: Leaves of either end that a problem already names.
      notes, placements: As in the plan.
    """

    def __init__(self, mapping: Mapping, src: Spec, dst: Spec):
        self.mapping, self.src, self.dst = mapping, src, dst
        self.ends: tuple[dict[str, Abstract], dict[str, Abstract]] = dict(src.entries), dict(dst.entries)
        self.unrolled = tuple(Unrolled(spec, spec.entries, spec.entries, (), []) for spec in (src, dst))
        self.tied = False
        self.problems: list[str] = []
        self.explained: tuple[set[str], set[str]] = (set(), set())
        self.notes: list[tuple[str, str]] = []
        self.matches: list[Match] = []
        self.sources: dict[str, Match] = {}
        self.targets: dict[str, Match] = {}
        self.placements: list[tuple[str, str, str]] = []
        self._resolved: dict[Any, tuple[tuple[Abstract, ...], ...]] = {}

    def unroll(self, declared: Sequence[Sequence[Sequence[tuple[Template, int]]]]) -> None:
        """Takes apart the stacks of both ends, with what lines of the mapping say of either, as `indexed` has it."""
        taken = self.sources, self.targets
        self.unrolled = tuple(
            Unrolled(
                spec,
                self.ends[end],
                {*taken[end], *(p for p in self.ends[end] if self.random(end, p))},
                declared[end],
                self.problems,
            )
            for end, spec in enumerate((self.src, self.dst))
        )
        self.ends = dict(self.unrolled[0].entries), dict(self.unrolled[1].entries)

    def entry(self, end: int, path: str) -> Abstract:
        """Returns the abstract entry, or copy in an entry, at the path."""
        found = self.ends[end].get(path)
        return found if found is not None else (self.src, self.dst)[end].entries[path]

    def add(self, match: Match, tied: bool = False) -> None:
        """Adds a match whose sources are free, if its targets are there and free; where these are `tied`, in any case."""
        for path in match.targets:
            if path not in self.ends[1]:
                origin = f"{' + '.join(map(repr, match.sources))} goes to" if match.sources else "a fill writes"
                self.problems.append(
                    f"{origin} {path!r} ({match.how}), which the target does not have.{self.near(path, self.ends[1])}"
                )
                self.explained[0].update(match.sources)
                return
            other = self.targets.get(path)
            if other is not None and not tied:
                ends = [" + ".join(map(repr, m.sources)) or "a fill" for m in (other, match)]
                self.problems.append(
                    f"{path!r} is the target of {ends[0]} ({other.how}) and of {ends[1]} ({match.how})"
                )
                self.explained[0].update(match.sources)
                return
        self.matches.append(match)
        self.sources.update(dict.fromkeys(match.sources, match))
        self.targets.update(dict.fromkeys(match.targets, match))

    def whole(self, end: int, path: str) -> str:
        """Returns the path of the entry itself, for that of a copy in it."""
        copy = self.unrolled[end].copies.get(path)
        return copy.path if copy else path

    def random(self, end: int, path: str) -> bool:
        """Whether the entry is random state: a key, or how often it was drawn from."""
        kind = (self.src, self.dst)[end].entries.kind(self.whole(end, path))
        return kind is not None and issubclass(kind_type(kind), RngState)

    def near(self, path: str, others: Iterable[str]) -> str:
        """Returns a hint; only for the first problems, since looking for near names takes time."""
        return hint(path, others) if len(self.problems) < 10 else ""

    def stages(
        self, ops: tuple[Op, ...], ins: list[Abstract], outs: list[Abstract]
    ) -> tuple[tuple[Abstract, ...], ...]:
        """Returns `resolve(ops, ins, outs)`, worked out once for all leaves of the same shapes."""
        key = ops, tuple(signature(ins)), tuple(signature(outs))
        if key not in self._resolved:
            self._resolved[key] = resolve(ops, ins, outs)
        return self._resolved[key]

    def item(self, match: Match) -> Item | None:
        """Returns the match as an item of the plan, its shapes checked."""
        ins, outs = [self.entry(0, p) for p in match.sources], [self.entry(1, p) for p in match.targets]
        ops = match.rule.ops
        if (
            ins
            and outs
            and any(t.match(self.whole(1, match.targets[0])) is not None for p in self.mapping.parts for t in p.cast)
        ):
            ops = (Cast(str(outs[0].dtype)), *ops) if ins[0].dtype != outs[0].dtype else ops
        names = f"{' + '.join(map(repr, match.sources)) or 'fill'} -> {' + '.join(map(repr, match.targets)) or 'drop'}"
        try:
            stages = self.stages(ops, ins, outs) if ins and outs else (tuple(ins), tuple(outs))
            for spec in () if match.rule.value is None else (*ins, *outs):
                constant(match.rule.value, spec)
        except MappingError as err:
            dtypes = {x.dtype for x in (*ins, *outs)}
            remedy = (
                " A change of dtype must be said: name the target under `cast`, or add the op cast."
                if len(dtypes) > 1 and ins and outs
                else ""
            )
            self.problems.append(f"{names} ({match.how}): {shapes(ins)} does not fit {shapes(outs)}: {err}.{remedy}")
            return None
        return Item(
            match.sources, match.targets, ops, stages, match.how, match.rule.value, match.rule.reason, match.rule.resume
        )
