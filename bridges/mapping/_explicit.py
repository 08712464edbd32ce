"""The first round of planning: explicit rules, drops and fills, found by an index of their segments.

Rules are never applied in turn, so that a renaming a -> b beside b -> c is one simultaneous renaming.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

from bridges.core._errors import MappingError
from bridges.mapping._draft import Draft, Match
from bridges.mapping._rule import Rule
from bridges.mapping._template import Index


def match_rules(draft: Draft) -> None:
    """Matches rules, drops and fills; of two that want one leaf, the one of the earlier part wins."""
    _Explicit(draft).explicit()


class _Explicit:
    def __init__(self, draft: Draft):
        self.draft = draft

    def explicit(self) -> None:
        """Matches rules, drops and fills; of two that want one leaf, the one of the earlier part wins."""
        rules = [(level, rule) for level, part in enumerate(self.draft.mapping.parts) for rule in part.rules]
        indexes: tuple[Index[tuple[int, int]], Index[tuple[int, int]]] = (Index(), Index())
        for n, (_, rule) in enumerate(rules):
            for slot, template in enumerate(rule.src):
                indexes[0].add(template, (n, slot))
            if rule.dst and (not rule.src or rule.indices[1]):
                indexes[1].add(rule.dst[0], (n, 0))
        # (rule, values of the variables of both ends) -> slot -> (the number that only this end has, path)
        groups: tuple[dict[Any, Any], dict[Any, Any]] = ({}, {})
        for end in (0, 1):
            for path, value in self.draft.ends[end].items():
                for (n, slot), values in indexes[end].match(path):
                    rule = rules[n][1]
                    ranks = rule.dst_rank if end else rule.src_rank
                    if ranks and len(value.shape) not in ranks:
                        continue
                    if not rule.src or not rule.dst:
                        key: Any = (n, path)
                        number = None
                    else:
                        number = rule.indices[end]
                        key = (n, tuple(sorted((k, v) for k, v in values.items() if k != number)))
                    slots = groups[end].setdefault(key, {})
                    slots.setdefault(slot, []).append((values[number] if number else 0, path))
        used: set[int] = set()
        found: list[Match] = []
        for (n, values), slots in groups[0].items():
            used.add(n)
            level, rule = rules[n]
            match = self.instance(rule, dict(values) if rule.dst else {}, slots, groups[1].get((n, values), {}), level)
            found += [match] if match else []
        for (n, path), _ in groups[1].items():
            if not rules[n][1].src:
                used.add(n)
                found.append(Match(rules[n][1], (), (path,), "fill", rules[n][0]))
        self.take(found)
        for n, (_, rule) in enumerate(rules):
            if n not in used and not rule.optional:
                end = 0 if rule.src else 1
                near = self.draft.near((rule.src or rule.dst)[0].text, self.draft.ends[end])
                self.draft.problems.append(
                    f"rule {rule} is unused: no entry of the {('source', 'target')[end]} matches.{near}"
                )

    def instance(self, rule: Rule, values: dict[str, Any], slots: Any, there: Any, level: int) -> Match | None:
        """Returns the rule's match for these values of its variables."""
        lacking = [rule.src[slot].format(values) for slot in range(len(rule.src)) if slot not in slots]
        if lacking:
            self.draft.explained[0].update(path for pairs in slots.values() for _, path in pairs)
            near = self.draft.near(lacking[0], self.draft.ends[0])
            self.draft.problems.append(
                f"rule {rule} also needs {', '.join(map(repr, lacking))}, which the source lacks.{near}"
            )
            return None
        ends: list[tuple[str, ...]] = []
        indices = rule.indices if rule.dst else (None, None)
        for number, given in zip(indices, (slots, there), strict=True):
            if not number:
                ends.append(())
                continue
            pairs = sorted(given.get(0, ()))
            numbers = [n for n, _ in pairs]
            if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
                self.draft.problems.append(f"rule {rule}: the numbers {{{number}}} have gaps: {numbers}")
            ends.append(tuple(path for _, path in pairs))
        sources = ends[0] if indices[0] else tuple(slots[slot][0][1] for slot in range(len(rule.src)))
        try:
            targets = ends[1] if indices[1] else tuple(t.format(values) for t in rule.dst)
        except MappingError as err:
            self.draft.problems.append(f"rule {rule} cannot place {sources[0]!r}: {err}")
            return None
        if rule.dst and not targets:
            self.draft.problems.append(
                f"rule {rule}: the target has no entry for it.{self.draft.near(rule.dst[0].text, self.draft.ends[1])}"
            )
            self.draft.explained[0].update(sources)
            return None
        return Match(rule, sources, targets, "rule" if rule.dst else "drop", level)

    def take(self, found: Iterable[Match]) -> None:
        """Adds matches, unless an earlier part's match has their leaves; reports conflicts."""
        wanted: dict[str, list[Match]] = collections.defaultdict(list)
        found = list(found)
        for match in found:
            for path in match.sources:
                wanted[path].append(match)
        beaten: set[int] = set()
        for path, matches in wanted.items():
            if len(matches) > 1:
                first = min(m.level for m in matches)
                best = [m for m in matches if m.level == first]
                beaten.update(id(m) for m in matches if m.level > first)
                if len({m.outcome for m in best}) > 1:
                    rules = " and ".join(str(m.rule) for m in best)
                    self.draft.problems.append(
                        f"{path!r} is matched by {rules}, which differ. Make one of them narrower, or say which goes before"
                        " the other: first | second."
                    )
                beaten.update(id(m) for m in best[1:])
        for match in found:
            if id(match) not in beaten:
                self.draft.add(match)
            elif any(id(m) in beaten and all(o is m for o in wanted[p]) for m in (match,) for p in match.sources):
                self.draft.problems.append(
                    f"rule {match.rule} is overridden for some of its sources {match.sources} only"
                )
