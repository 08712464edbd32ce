"""Fuse: matches of single copies, put together into matches of the entries that the two ends really have.

Planning matches each copy in a stack by itself (`_unrolled`). Copies that live in one entry at either end must be
converted together. Matches that share an entry become one, whose ops are

    fold, concat or stack     the copies of each of a layer's entries, along one first axis
    permute                   in the target's order
    over                      what the layer's rule does, for each copy
    split or unstack, unfold  into the target's entries

each left out where there is nothing for it to do: a stack that is a stack at the other end too is only renamed. Entries
that are tied at one end only (one source for two targets, or the reverse) are fused in the same way, behind a `copy`
or before a `pick`.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

from bridges.core._errors import MappingError
from bridges.mapping._draft import Draft, Match
from bridges.mapping._lists import Concat, Copy, Pick, Stack, Unstack
from bridges.mapping._op import Op
from bridges.mapping._over import Fold, Over, Permute


def fused(draft: Draft) -> list[Match]:
    """Returns the matches of the draft, over the entries of its two specs."""
    if not any(end.copies for end in draft.unrolled) and not draft.tied:
        return draft.matches
    matches = []
    for group in _groups(draft):
        whole = not any(m.sources and m.sources[0] in draft.unrolled[0].copies for m in group)
        whole = whole and not any(t in draft.unrolled[1].copies for m in group for t in m.targets)
        if len(group) == 1 and whole:
            matches += group
            continue
        if any(draft.item(match) is None for match in group):
            continue  # it is reported for the copy that does not fit
        try:
            found = _Fusion(draft, group).match()
        except MappingError as err:
            names = list(dict.fromkeys(path for m in group for path in _whole(draft, m)[0]))
            draft.problems.append(f"{', '.join(map(repr, names))}: {err}")
            continue
        matches += [found] if found else []
    return matches


def _whole(draft: Draft, match: Match) -> tuple[list[str], list[str]]:
    """Returns the entries that a match's sources and targets are, or are copies in."""
    return [draft.whole(0, p) for p in match.sources], [draft.whole(1, p) for p in match.targets]


def _groups(draft: Draft) -> list[list[Match]]:
    """Returns the matches, those together that share an entry."""
    leader = list(range(len(draft.matches)))

    def find(n: int) -> int:
        while leader[n] != n:
            leader[n] = leader[leader[n]]
            n = leader[n]
        return n

    seen: dict[tuple[int, str], int] = {}
    for n, match in enumerate(draft.matches):
        for end, paths in enumerate(_whole(draft, match)):
            for path in paths:
                other = seen.setdefault((end, path), n)
                a, b = sorted((find(n), find(other)))
                leader[b] = a
    groups: dict[int, list[Match]] = collections.defaultdict(list)
    for n, match in enumerate(draft.matches):
        groups[find(n)].append(match)
    return list(groups.values())


@dataclasses.dataclass(frozen=True)
class _Side:
    """One end of a fusion: for each of a layer's entries, the pieces that hold its copies, one after the other.

    Attributes:
      pieces: For each entry of the layer, the pieces, and the axes along which each holds copies (none for a single one).
      counts: How many copies each piece holds; the same for each entry of the layer.
    """

    pieces: tuple[tuple[tuple[str, tuple[int, ...]], ...], ...]
    counts: tuple[int, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(path for pieces in self.pieces for path, _ in pieces)

    @property
    def single(self) -> bool:
        """Whether every copy is an entry of its own."""
        return not any(axes for pieces in self.pieces for _, axes in pieces)

    def joined(self) -> list[Op]:
        """Returns the ops that put each entry's copies along one first axis."""
        if self.single:
            return [Stack(0, len(self.counts) if len(self.pieces) > 1 else None)]
        axes = [axes for pieces in self.pieces for _, axes in pieces]
        folds: list[Op] = [Fold(a, n) for n, a in enumerate(axes) if a != (0,)]
        if len(folds) == len(axes) and len(set(axes)) == 1:
            folds = [Fold(axes[0])]
        return [*folds, Concat(0, self.counts)] if len(self.counts) > 1 else folds


class _Fusion:
    """Matches that share entries, all of one rule."""

    def __init__(self, draft: Draft, group: Sequence[Match]):
        self.draft, self.group = draft, list(group)
        self.rule = group[0].rule
        self.rows = [m.sources for m in group], [m.targets for m in group]

    def match(self) -> Match | None:
        """Returns the match over whole entries; None where some copies have no counterpart, which is reported as such.

        Raises:
          MappingError: The copies cannot be converted together; the text says why.
        """
        if not (self.complete(0) and self.complete(1)):
            return None
        how = ", ".join(dict.fromkeys(m.how for m in self.group))
        if not self.rule.src or not self.rule.dst:
            ends = [tuple(dict.fromkeys(p for m in self.group for p in _whole(self.draft, m)[end])) for end in (0, 1)]
            return Match(self.rule, ends[0], ends[1], how)
        different = next((m for m in self.group if m.rule.ops != self.rule.ops), None)
        if different is not None:
            a, b = self.group[0], different
            raise MappingError(
                f"copies of one stack are converted differently: {a.sources[0]!r} ({a.how}) and {b.sources[0]!r} ({b.how})"
            )
        rows = [list(dict.fromkeys(rows)) for rows in self.rows]
        if len(rows[0]) == len(rows[1]) == len(self.group):
            return self.stacked(how)
        if len(rows[0]) == 1:
            return self.tied(0, how)
        if len(rows[1]) == 1:
            return self.tied(1, how)
        raise MappingError("several entries are tied with one another; write explicit rules with `copy` or `pick`")

    def stacked(self, how: str) -> Match:
        """Returns the match where each copy has one counterpart."""
        orders = [self.order(0), self.order(1)]
        sides = [self.side(0, orders[0]), self.side(1, orders[1])]
        for mine, other in ((0, 1), (1, 0)):  # in the order of one end, if that suits the other
            if orders[0] != orders[1] and (side := self.side(mine, orders[other])) is not None:
                orders[mine], sides[mine] = orders[other], side
        src, dst = sides
        if src is None or dst is None:
            raise MappingError("the entries of one layer are stacked in different ways")
        turned: list[Op] = []
        if orders[0] != orders[1]:
            turned = [Permute(tuple(orders[0].index(n) for n in orders[1]))]
        ops = [*src.joined(), *turned, *self.over(), *(op.inverse for op in reversed(dst.joined()))]
        if not turned and not self.rule.ops and src.joined() == dst.joined():
            ops = []
        return self.made(src.paths, ops, dst.paths, how)

    def tied(self, end: int, how: str) -> Match:
        """Returns the match of one entry at this end with several at the other."""
        row, count = self.rows[end][0], len(self.group)
        if any(path in self.draft.unrolled[end].copies for path in row):
            raise MappingError("one copy of a stack is tied with several entries; write explicit rules")
        order = self.order(1 - end)
        side = self.side(1 - end, order)
        if side is None:
            raise MappingError("the entries of one layer are stacked in different ways")
        there = side.joined()
        if side.single and not self.rule.ops:
            ops: list[Op] = [Copy(count, True)] if end == 0 else [Pick(count, True)]
        elif end == 0:
            ops = [Copy(count, True), Stack(0, count), *self.over(), *(op.inverse for op in reversed(there))]
        else:
            ops = [*there, *self.over(), Unstack(0, count), Pick(count, True)]
        one, several = row[0], ", ".join(repr(r[0]) for r in self.rows[1 - end])
        resume = f"{one!r} is one entry at one end and {several} at the other, where they train apart from then on"
        ends = (row, side.paths) if end == 0 else (side.paths, row)
        return self.made(ends[0], ops, ends[1], how, resume)

    def made(self, src: tuple[str, ...], ops: Sequence[Op], dst: tuple[str, ...], how: str, resume: str = "") -> Match:
        texts = " ".join(filter(None, (self.rule.resume, resume)))
        return Match(dataclasses.replace(self.rule, ops=tuple(ops), resume=texts), src, dst, how)

    def over(self) -> list[Op]:
        return [Over(self.rule.ops)] if self.rule.ops else []

    def complete(self, end: int) -> bool:
        """Whether all copies in the entries of this end are in the group."""
        unrolled = self.draft.unrolled[end]
        found: dict[str, set[int]] = collections.defaultdict(set)
        for path in (p for row in self.rows[end] for p in row if p in unrolled.copies):
            copy = unrolled.copies[path]
            found[copy.path].add(copy.number)
        return all(len(numbers) == unrolled.places[path].count for path, numbers in found.items())

    def order(self, end: int) -> list[int]:
        """Returns the matches in the order of this end: entry by entry, copy by copy."""
        copies = self.draft.unrolled[end].copies
        first: dict[str, int] = {}
        keys = []
        for n, row in enumerate(self.rows[end]):
            path, number = (copies[row[0]].path, copies[row[0]].number) if row[0] in copies else (row[0], 0)
            keys.append((first.setdefault(path, n), number))
        return sorted(range(len(keys)), key=keys.__getitem__)

    def side(self, end: int, order: Sequence[int]) -> _Side | None:
        """Returns this end with the matches in this order; None if its entries do not hold the copies in it."""
        unrolled = self.draft.unrolled[end]
        slots: list[tuple[tuple[str, tuple[int, ...]], ...]] = []
        counts: set[tuple[int, ...]] = set()
        for slot in range(len(self.rows[end][0])):
            runs: list[tuple[str, tuple[int, ...], int]] = []
            for path in (self.rows[end][n][slot] for n in order):
                copy = unrolled.copies.get(path)
                if copy is None:
                    runs.append((path, (), 1))
                elif runs and runs[-1][0] == copy.path and copy.number == runs[-1][2]:
                    runs[-1] = (*runs[-1][:2], copy.number + 1)
                elif copy.number == 0:
                    runs.append((copy.path, unrolled.places[copy.path].axes, 1))
                else:
                    return None
            slots.append(tuple((path, axes) for path, axes, _ in runs))
            counts.add(tuple(count for *_, count in runs))
        if len(counts) > 1 or any(len(set(slot)) < len(slot) for slot in slots):
            return None
        return _Side(tuple(slots), counts.pop())
