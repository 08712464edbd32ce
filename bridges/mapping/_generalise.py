"""Generalise: from pairs of paths to the fewest lines with numbers that say the same, `linear_{i:int}` for twelve of them.

Invariant: read back, the lines pair exactly the given paths, as given. Pairs that follow no rule stay lines of their own.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Sequence

from bridges.core._errors import MappingError
from bridges.mapping._template import Index, Template

_NUMBER = re.compile(r"(?<![0-9])(0|[1-9][0-9]*)(?![0-9])", re.ASCII)
_AUTO = re.compile(r"(.+?)_([1-9][0-9]*)", re.DOTALL | re.ASCII)
_NAMES = "ijklmnop"
Slot = tuple[str, int]  # 'int' or 'auto', and the number
Shape = tuple[str, ...]  # a path with its numbers taken out
_Member = tuple[int, tuple[list[Slot], list[Slot]]]  # which pair, and its numbers at both ends


def generalise(
    pairs: Sequence[tuple[str, str]], others: Iterable[str] = (), targets: Iterable[str] | None = None
) -> list[tuple[str, str]]:
    """Returns lines of template texts `(source, target)`.

    Args:
      pairs: Paths of the source and the target; each path of the source once.
      others: Paths of the source that must not be matched.
      targets: All paths of the target. If given, a line may match a path that another line pairs, where what it would pair
        that one with is none of them: such a line is not meant there (`linear_{i:int}`, and `linear_11` is `out`).

    >>> generalise([('mlp/~/linear_0', 'Dense_0'), ('mlp/~/linear_1', 'Dense_1'), ('head', 'out')])
    [('mlp/~/linear_{i:int}', 'Dense_{i:int}'), ('head', 'out')]
    >>> generalise([('net/linear', 'layers/0'), ('net/linear_1', 'layers/2'), ('net/linear_2', 'layers/4')])
    [('net/linear', 'layers/0'), ('net/linear_1', 'layers/2'), ('net/linear_2', 'layers/4')]
    """
    known = [families(pair[end] for pair in pairs) for end in (0, 1)]
    groups: dict[tuple[Shape, Shape], list[_Member]] = collections.defaultdict(list)
    for n, pair in enumerate(pairs):
        (a, x), (b, y) = (taken(path, family) for path, family in zip(pair, known, strict=True))
        groups[a, b].append((n, (x, y)))
    lines: list[tuple[int, str, str]] = []
    there = None if targets is None else set(targets)
    for shapes, members in groups.items():
        found = _line(shapes, members) if len(members) > 1 else None
        here = [pairs[n] for n, _ in members]
        if found and _says(found, here, [p for p, _ in pairs if p not in dict(here)], others, there):
            lines.append((members[0][0], *found))
        else:
            lines += [(n, literal(pairs[n][0]), literal(pairs[n][1])) for n, _ in members]
    return [(a, b) for _, a, b in sorted(lines)]


def literal(text: str) -> str:
    """Returns the template that stands for this text only."""
    return text.replace("{", "{{").replace("}", "}}")


def families(paths: Iterable[str]) -> set[tuple[str, str]]:
    """Returns (path above, name) of the automatic names, whose first is written without a number."""
    found: set[tuple[str, str]] = set()
    numbered: set[tuple[str, str]] = set()
    for path in paths:
        above = ""
        for segment in path.split("/"):
            auto = _AUTO.fullmatch(segment)
            numbered.update({(above, auto[1])} if auto else ())
            found.add((above, segment))
            above = f"{above}/{_NUMBER.sub('#', auto[1] if auto else segment)}"
    return found & numbered


def taken(path: str, families: set[tuple[str, str]]) -> tuple[Shape, list[Slot]]:
    """Returns the path's texts around its numbers, and the numbers."""
    texts, slots, above = [""], [], ""
    for at, segment in enumerate(path.split("/")):
        texts[-1] += "/" * (at > 0)
        auto = _AUTO.fullmatch(segment)
        base = auto[1] if auto else segment
        is_auto = (above, base) in families
        last = 0
        body = base if is_auto else segment
        for number in _NUMBER.finditer(body):
            texts[-1] += body[last : number.start()]
            slots.append(("int", int(number[0])))
            texts.append("")
            last = number.end()
        texts[-1] += body[last:]
        if is_auto:
            slots.append(("auto", int(auto[2]) if auto else 0))
            texts.append("")
        above = f"{above}/{_NUMBER.sub('#', base)}"
    return tuple(texts), slots


def _line(shapes: tuple[Shape, Shape], members: list[_Member]) -> tuple[str, str] | None:
    """Returns the templates that pair all members, or None where their numbers do not go together."""
    columns = [[[slots[end][k][1] for _, slots in members] for k in range(len(members[0][1][end]))] for end in (0, 1)]
    fields: list[dict[int, tuple[str, int]]] = [{}, {}]  # slot -> name and what is added to the number
    used: dict[
        int, tuple[str, int]
    ] = {}  # slot of the source -> name and how much lower its values are than the target's
    for k, there in enumerate(columns[1]):
        if len(set(there)) == 1:
            continue
        for s, here in enumerate(columns[0]):
            gaps = {b - a for a, b in zip(here, there, strict=True)}
            if len(gaps) == 1 and len(set(here)) > 1 and s not in used and len(used) < len(_NAMES):
                gap = gaps.pop()
                name = _NAMES[len(used)]
                used[s] = (name, gap)
                fields[0][s], fields[1][k] = (name, max(0, -gap)), (name, max(0, gap))
                break
        else:
            return None
    if any(len(set(here)) > 1 and s not in used for s, here in enumerate(columns[0])):
        return None
    ends = []
    for end in (0, 1):
        slots = members[0][1][end]
        text = literal(shapes[end][0])
        for k, after in enumerate(shapes[end][1:]):
            kind, number = slots[k]
            if k in fields[end]:
                name, shift = fields[end][k]
                text += f"{{{name}{f'+{shift}' if shift else ''}:{kind}}}"
            else:
                text += str(number) if kind == "int" else f"_{number}" if number else ""
            text += literal(after)
        ends.append(text)
    return ends[0], ends[1]


def _says(
    line: tuple[str, str],
    pairs: Sequence[tuple[str, str]],
    elsewhere: Iterable[str],
    others: Iterable[str],
    targets: set[str] | None,
) -> bool:
    """Whether the line pairs these as given, and matches nothing else."""
    try:
        src, dst = map(Template, line)
        index: Index[None] = Index()
        index.add(src, None)
        if any(index.match(path) for path in others):
            return False
        matched = [values for path in elsewhere for _, values in index.match(path)]
        if any(targets is None or dst.format(values) in targets for values in matched):
            return False
        return all((values := src.match(a)) is not None and dst.format(values) == b for a, b in pairs)
    except MappingError:
        return False
