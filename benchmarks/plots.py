"""Plots of cost against size, one PNG a benchmark that has sizes."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.table import Row, Table

# The cases of a benchmark that belong into one picture: what stands before the comma of a case, or nothing.
MARKERS = "os^vD*Pp"


def plot(table: Table, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the pictures of a table; returns their paths."""
    groups: dict[str, list[Row]] = {}
    for row in table.rows:
        if row.size is not None and row.seconds is not None:
            groups.setdefault(_group(row), []).append(row)
    written = []
    for name, rows in groups.items():
        if len({row.size for row in rows}) < 2:
            continue
        fig, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        for marker, contender in zip(MARKERS, dict.fromkeys(row.contender for row in rows), strict=False):
            points = sorted((row.size, row.seconds) for row in rows if row.contender == contender)
            sizes, spreads = [p[0] for p in points], [p[1] for p in points]
            axes.plot(sizes, [s.median for s in spreads], marker=marker, label=contender)
            axes.fill_between(sizes, [s.low for s in spreads], [s.high for s in spreads], alpha=0.15)
        title = f"{table.title}: {name}" if name else table.title
        axes.set(xscale="log", yscale="log", xlabel=_unit(rows), ylabel="seconds", title=title)
        axes.grid(True, which="both", alpha=0.2)
        axes.legend(fontsize=8)
        path = folder / f"{table.name}{name and '-' + name.replace(' ', '-').lower()}.png"
        fig.savefig(path, dpi=110)
        plt.close(fig)
        written.append(path)
    return written


def _group(row: Row) -> str:
    """Returns which picture a row belongs to: the words of its case that are no size."""
    words = [word for word in row.case.split(", ") if not word[0].isdigit()]
    inside = [w for w in row.case.split() if w.isalpha() and w not in ("layers", "entry", "entries", "leaves", "MiB")]
    return words[0] if words else " ".join(inside)


def _unit(rows: Sequence[Row]) -> str:
    return next(
        word
        for word in rows[0].case.replace(",", "").split()
        if word in ("layers", "entry", "entries", "leaves", "MiB")
    )
