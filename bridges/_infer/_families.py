"""Families: joints that are alike but for numbers in their paths, as one rule with numbers: `linear_{i:int}` for twelve.

As `bridges.mapping._generalise` does for lines of modules, for rules with several entries at an end.

Invariant: read back, a rule joins exactly the given entries, as given; joints that follow no rule stay rules of their own.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from bridges._infer._decode import Joint
from bridges.core._errors import MappingError
from bridges.mapping._generalise import Shape, Slot, families, literal, taken
from bridges.mapping._op import Op
from bridges.mapping._rule import Rule
from bridges.mapping._template import Index, Template

_NAMES = "ijklmnop"


@dataclasses.dataclass(frozen=True)
class Family:
    """Joints that one rule says.

    Attributes:
      src, dst: Templates of the rule.
      ops: Its ops.
      joints: What it joins.
    """

    src: tuple[str, ...]
    dst: tuple[str, ...]
    ops: tuple[Op, ...]
    joints: tuple[Joint, ...]


def grouped(joints: Sequence[Joint], others: tuple[Iterable[str], Iterable[str]] = ((), ())) -> list[Family]:
    """Returns the joints as rules, in the order of the first joint of each.

    Args:
      joints: No entry is in two of them.
      others: Further paths of the source and the target, which no rule must match.
    """
    everywhere = [{p for j in joints for p in _ends(j)[end]} | set(others[end]) for end in (0, 1)]
    known = [families(everywhere[end]) for end in (0, 1)]
    groups: dict[object, list[tuple[int, list[list[list[Slot]]]]]] = collections.defaultdict(list)
    shapes: dict[object, list[list[Shape]]] = {}
    for n, joint in enumerate(joints):
        parts = [[taken(path, known[end]) for path in _ends(joint)[end]] for end in (0, 1)]
        key: object = (joint.ops, joint.tied, *(tuple(shape for shape, _ in part) for part in parts))
        shapes[key] = [[shape for shape, _ in part] for part in parts]
        groups[key].append((n, [[slots for _, slots in part] for part in parts]))
    found: list[tuple[int, Family]] = []
    for key, members in groups.items():
        here = [joints[n] for n, _ in members]
        made = _family(shapes[key], here, [slots for _, slots in members], everywhere) if len(here) > 1 else None
        if made is not None:
            found.append((members[0][0], made))
            continue
        for n, slots in members:
            src, dst = map(_literals, _ends(joints[n]))
            alone = _stacked(shapes[key], joints[n], slots, everywhere)
            found.append((n, alone or Family(src, dst, joints[n].ops, (joints[n],))))
    return [family for _, family in sorted(found, key=lambda pair: pair[0])]


def _ends(joint: Joint) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return joint.sources, joint.targets


def _literals(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(literal, paths))


def _family(
    shapes: list[list[Shape]], joints: list[Joint], slots: list[list[list[list[Slot]]]], everywhere: list[set[str]]
) -> Family | None:
    """Returns the rule of all joints, None where their numbers do not go together."""
    flat = [[path for end in member for path in end] for member in slots]
    columns = [[[row[p][k][1] for row in flat] for k in range(len(flat[0][p]))] for p in range(len(flat[0]))]
    moving = [[k for k, column in enumerate(path) if len(set(column)) > 1] for path in columns]
    bases: list[list[int]] = []  # one for each number: those of its first place
    for k in moving[0]:
        if all(_gap(columns[0][k], base) is None for base in bases):
            bases.append(columns[0][k])
    if not bases or len(bases) > len(_NAMES):
        return None
    found: list[
        dict[int, tuple[int, int]]
    ] = []  # for each path: slot -> which number, and how much above its first place
    for path, mine in zip(moving, columns, strict=True):
        gaps = {k: [(n, _gap(mine[k], base)) for n, base in enumerate(bases)] for k in path}
        fits = {k: [(n, gap) for n, gap in all_ if gap is not None] for k, all_ in gaps.items()}
        if not all(fits.values()) or {n for ((n, _),) in fits.values()} != set(range(len(bases))):
            return None
        found.append({k: one for k, (one,) in fits.items()})
    least = [min(gap for path in found for n, gap in path.values() if n == m) for m in range(len(bases))]
    fields = [{k: (_NAMES[n], gap - least[n]) for k, (n, gap) in path.items()} for path in found]
    texts = [
        _template(shape, row, at)
        for shape, row, at in zip([s for end in shapes for s in end], flat[0], fields, strict=True)
    ]
    count = len(shapes[0])
    return _said(tuple(texts[:count]), tuple(texts[count:]), joints, everywhere)


def _gap(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Returns by how much all of a are above b; None if not all by the same."""
    gaps = {x - y for x, y in zip(a, b, strict=True)}
    return gaps.pop() if len(gaps) == 1 else None


def _stacked(
    shapes: list[list[Shape]], joint: Joint, slots: list[list[list[Slot]]], everywhere: list[set[str]]
) -> Family | None:
    """Returns the rule of one joint of which one end is a numbered family, in order: `layer_{i:int}` to a stack."""
    for end in (0, 1):
        if len(shapes[end]) < 2 or len(shapes[1 - end]) > 1 or len(set(shapes[end])) > 1:
            continue
        columns = [[row[k][1] for row in slots[end]] for k in range(len(slots[end][0]))]
        moving = [k for k, column in enumerate(columns) if len(set(column)) > 1]
        if len(moving) != 1 or columns[moving[0]] != sorted(columns[moving[0]]):
            continue
        least = columns[moving[0]][0]
        text = _template(shapes[end][0], slots[end][0], {moving[0]: ("i", least)})
        one, other = (text,), _literals(_ends(joint)[1 - end])
        made = _said(one, other, [joint], everywhere) if end == 0 else _said(other, one, [joint], everywhere)
        if made is not None:
            return made
    return None


def _template(shape: Shape, slots: Sequence[Slot], fields: dict[int, tuple[str, int]]) -> str:
    text = literal(shape[0])
    for k, ((kind, number), after) in enumerate(zip(slots, shape[1:], strict=True)):
        if k in fields:
            name, shift = fields[k]
            text += f"{{{name}{f'+{shift}' if shift else ''}:{kind}}}"
        else:
            text += str(number) if kind == "int" else f"_{number}" if number else ""
        text += literal(after)
    return text


def _said(src: tuple[str, ...], dst: tuple[str, ...], joints: list[Joint], everywhere: list[set[str]]) -> Family | None:
    """Returns the rule if it is one, and matches exactly the paths of its joints, in their places."""
    try:
        Rule.of({"src": list(src), "dst": list(dst), "ops": list(joints[0].ops)})
        for end, texts in enumerate((src, dst)):
            many = len(joints) == 1 and len(texts) == 1 < len(_ends(joints[0])[end])
            for at, text in enumerate(texts):
                index: Index[None] = Index()
                index.add(Template(text), None)
                matched = {path for path in everywhere[end] if index.match(path)}
                mine = set(_ends(joints[0])[end]) if many else {_ends(joint)[end][at] for joint in joints}
                if matched != mine:
                    return None
    except MappingError:
        return None
    return Family(src, dst, joints[0].ops, tuple(joints))
