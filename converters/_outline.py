"""An outline of a checkpoint as text: modules indented, shapes and sizes in columns, numbered siblings folded.

`linear_0` … `linear_11` with the same leaves below become one line, `linear_{0..11}`. Siblings are in natural order: 10
comes after 9. What it does not do: read an array.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from bridges.core._flat import split

_NUMBER = re.compile(r"(.*?)(0|[1-9][0-9]*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
FOLD = 3  # that many alike are worth folding


@dataclasses.dataclass(frozen=True)
class Line:
    """A leaf of an outline.

    Attributes:
      path: Its path, of escaped segments.
      what: Its dtype and shape, or what else it is.
      kind: The name of its kind; empty where nobody knows.
      nbytes: Its size in bytes.
    """

    path: str
    what: str
    kind: str = ""
    nbytes: int = 0


@dataclasses.dataclass
class _Node:
    line: Line | None = None
    children: dict[str, _Node] = dataclasses.field(default_factory=dict)
    note: str = ""
    nbytes: int = 0
    leaves: int = 0
    alike: tuple[object, ...] = ()  # equal for nodes that may be folded into one


def size(nbytes: float) -> str:
    """Returns a number of bytes in three digits and a unit of powers of ten.

    >>> size(0), size(999), size(1234567), size(5 * 10**9)
    ('0 B', '999 B', '1.23 MB', '5.00 GB')
    """
    value, unit = float(nbytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def printable(name: str) -> str:
    r"""Returns a name from a file without characters that steer a terminal.

    >>> printable('w\x1b[2J')
    'w\\x1b[2J'
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), name)


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [
        (0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part) for part in re.split("([0-9]+)", name)
    ]


def _grow(lines: Iterable[Line], notes: Mapping[str, str]) -> _Node:
    root = _Node()
    for line in lines:
        node = root
        for segment in split(line.path):
            node = node.children.setdefault(segment, _Node())
        node.line = line
    for path, note in notes.items():
        found: _Node | None = root
        for segment in split(path):
            found = found.children.get(segment) if found else None
        if found:
            found.note = note
    _measure(root)
    return root


def _measure(root: _Node) -> None:
    """Fills in sizes and likenesses, children first, without recursion: a file may nest deeply."""
    order, stack = [], [root]
    while stack:
        order.append(node := stack.pop())
        stack += node.children.values()
    known: dict[tuple[object, ...], int] = {}
    for node in reversed(order):
        node.children = dict(sorted(node.children.items(), key=lambda item: _natural(item[0])))
        node.nbytes = sum(c.nbytes for c in node.children.values()) + (node.line.nbytes if node.line else 0)
        node.leaves = sum(c.leaves for c in node.children.values()) + (node.line is not None)
        own = (node.line.what, node.line.kind) if node.line else ()
        key = (own, node.note, *((name, *child.alike) for name, child in node.children.items()))
        node.alike = (known.setdefault(key, len(known)),)


def _folded(children: Mapping[str, _Node]) -> list[tuple[str, int, _Node]]:
    """Returns name, count and node of each child, runs of consecutive numbers that are alike as one."""
    out: list[tuple[str, int, _Node]] = []
    items = list(children.items())
    at = 0
    while at < len(items):
        name, node = items[at]
        end = at + 1
        if first := _NUMBER.fullmatch(name):
            number = int(first[2])
            while (
                end < len(items)
                and (other := _NUMBER.fullmatch(items[end][0])) is not None
                and (other[1], int(other[2])) == (first[1], number + end - at)
                and items[end][1].alike == node.alike
            ):
                end += 1
            if end - at >= FOLD:
                out.append((f"{printable(first[1])}{{{number}..{number + end - at - 1}}}", end - at, node))
                at = end
                continue
        out.append((printable(name), 1, node))
        at += 1
    return out


def outline(
    lines: Sequence[Line], notes: Mapping[str, str] | None = None, depth: int | None = None, fold: bool = True
) -> str:
    """Returns the outline.

    Args:
      lines: The leaves.
      notes: Remarks on modules (which layer one looks like), by path.
      depth: How many levels to show; what lies deeper is counted.
      fold: Whether to fold numbered siblings that are alike.

    >>> print(outline([Line(f'net/linear_{i}/w', 'float32[4,4]', 'Param', 64) for i in range(12)]))
    net               768 B
      linear_{0..11}  12 x 64 B
        w             float32[4,4]  Param
    """
    rows: list[tuple[str, str, str]] = []
    stack: list[tuple[str, int, _Node, int]] = [("", 1, _grow(lines, notes or {}), -1)]
    while stack:
        name, count, node, level = stack.pop()
        deeper = bool(node.children) and (depth is None or level + 1 < depth)
        if level >= 0:
            times = f"{count} x " if count > 1 else ""
            if node.line is not None:
                rows.append(("  " * level + name, times + printable(node.line.what), node.line.kind))
            if node.children:
                total = size(node.nbytes)
                inside = "" if deeper else f"{node.leaves} arrays, "
                if node.line is None:
                    rows.append(("  " * level + name, f"{times}{inside}{total}", node.note))
        if deeper:
            parts = _folded(node.children) if fold else [(printable(n), 1, c) for n, c in node.children.items()]
            stack += [(n, c, child, level + 1) for n, c, child in reversed(parts)]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    return "\n".join(f"{a.ljust(widths[0])}  {b.ljust(widths[1])}  {c}".rstrip() for a, b, c in rows)
