"""What a benchmark gives: a table of rows, one a case and contender, as Markdown and as plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks.paired import Spread, Timing

UNITS = frozenset({"layer", "layers", "entry", "entries", "leaves", "MiB"})


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender in one case.

    Attributes:
      case: Such as '100 leaves'.
      contender: Who runs.
      seconds: For one call.
      ratio: Over the case's first contender; None for that one.
      size: The case as a number, for plots of cost against size.
      more: Other columns, by title.
      bound: What the ratio is to keep, None where there is no bound.
    """

    case: str
    contender: str
    seconds: Spread | None = None
    ratio: Spread | None = None
    size: float | None = None
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bound: float | None = None

    @property
    def kept(self) -> str:
        """Whether the bound is kept: by the median, or within the quartiles."""
        if self.bound is None or self.ratio is None:
            return ""
        return "yes" if self.ratio.median <= self.bound else "within spread" if self.ratio.low <= self.bound else "no"

    @property
    def unit(self) -> str:
        """What the sizes of the case count, such as 'leaves'."""
        return next((word for word in self.case.replace(",", "").split() if word in UNITS), "")

    @property
    def series(self) -> str:
        """What the case measures apart from its size: 'rename' of 'rename, 100 leaves', 'Haiku' of '10 Haiku layers'."""
        words = [word for word in self.case.split(", ") if not UNITS.intersection(word.split())]
        inside = [word for word in self.case.split() if word.isalpha() and word not in UNITS]
        return ", ".join(words) or " ".join(inside)


@dataclasses.dataclass(frozen=True)
class Table:
    """A benchmark's result.

    Attributes:
      name: Of the file that measures it.
      title: What is measured, against whom.
      bound: What is to be reached, in words.
      rows: The rows.
      notes: What else was found: floors, what could not be measured.
    """

    name: str
    title: str
    bound: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Returns the table for a page."""
        more = list(dict.fromkeys(key for row in self.rows for key in row.more))
        bounded = any(row.bound is not None for row in self.rows)
        timed = any(row.seconds is not None for row in self.rows)
        head = [
            "case",
            "contender",
            *(["median (quartiles)", "ratio (quartiles)"] if timed else []),
            *more,
            *(["kept"] if bounded else []),
        ]
        lines = [f"## {self.title}", "", f"Bound: {self.bound}", "", "| " + " | ".join(head) + " |"]
        lines.append("|---" * len(head) + "|")
        for row in self.rows:
            cells = [row.case, row.contender]
            if timed:
                cells += [shown(row.seconds, seconds), shown(row.ratio, lambda x: f"{x:.2f}")]
            cells += [str(row.more.get(key, "")) for key in more]
            lines.append("| " + " | ".join([*cells, *([row.kept] if bounded else [])]) + " |")
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Returns the table as plain data."""
        return {
            **dataclasses.asdict(self),
            "rows": [{**dataclasses.asdict(row), "kept": row.kept} for row in self.rows],
        }


def rows(
    case: str,
    timings: Mapping[str, Timing],
    size: float | None = None,
    bounds: Mapping[str, float] | None = None,
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Row]:
    """Returns the rows of one case; the first contender is what the others are compared with."""
    first = next(iter(timings))
    return [
        Row(
            case,
            name,
            timing.seconds,
            None if name == first else timing.ratio,
            size,
            (more or {}).get(name, {}),
            (bounds or {}).get(name),
        )
        for name, timing in timings.items()
    ]


def grouped(found: Iterable[Row]) -> dict[str, list[Row]]:
    """Returns the rows that have a time and a size by their series, of those that have several sizes."""
    groups: dict[str, list[Row]] = {}
    for row in found:
        if row.size is not None and row.seconds is not None:
            groups.setdefault(row.series, []).append(row)
    return {name: rows for name, rows in groups.items() if len({row.size for row in rows}) > 1}


def growth(found: Iterable[Row]) -> list[str]:
    """Returns notes on how costs grow: the slope between a contender's two largest sizes, on logarithmic scales."""
    notes = []
    for name, group in grouped(found).items():
        last, before = sorted({row.size for row in group}, reverse=True)[:2]
        times = {(row.contender, row.size): row.seconds.median for row in group}
        slopes = [
            f"{who} {math.log(times[who, last] / times[who, before]) / math.log(last / before):.2f}"
            for who in dict.fromkeys(row.contender for row in group)
            if {(who, last), (who, before)} <= times.keys()
        ]
        said = f"seconds grow from {before:,} to {last:,} {group[-1].unit} as their number to the power of"
        notes.append(f"{f'{name}: {said}' if name else said.capitalize()}: {', '.join(slopes)}.")
    return notes


def shown(spread: Spread | None, text: Callable[[float], str]) -> str:
    """Returns `median (low-high)`."""
    return "" if spread is None else f"{text(spread.median)} ({text(spread.low)}-{text(spread.high)})"


def seconds(x: float) -> str:
    """Returns a time with its unit.

    >>> seconds(0.0000123), seconds(0.5), seconds(75)
    ('12.3 us', '500 ms', '75 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if x >= size or unit == "us":
            return f"{x / size:.3g} {unit}"
    raise AssertionError
