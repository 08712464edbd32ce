"""Plots of cost against size, one PNG a benchmark that has sizes."""

from __future__ import annotations

import itertools
import pathlib
import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.table import Table, grouped

MARKERS = "os^vD*PpXh<>"


def plot(table: Table, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the pictures of a table; returns their paths."""
    written = []
    for name, rows in grouped(table.rows).items():
        fig, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        for marker, contender in zip(
            itertools.cycle(MARKERS), dict.fromkeys(row.contender for row in rows), strict=False
        ):
            points = sorted((row.size, row.seconds) for row in rows if row.contender == contender)
            sizes, spreads = [p[0] for p in points], [p[1] for p in points]
            axes.plot(sizes, [s.median for s in spreads], marker=marker, label=contender)
            axes.fill_between(sizes, [s.low for s in spreads], [s.high for s in spreads], alpha=0.15)
        title = f"{table.title}: {name}" if name else table.title
        axes.set(xscale="log", yscale="log", xlabel=rows[-1].unit, ylabel="seconds", title=title)
        axes.grid(True, which="both", alpha=0.2)
        axes.legend(fontsize=8)
        path = folder / f"{'-'.join([table.name, *re.findall('[a-z0-9]+', name.lower())])}.png"
        fig.savefig(path, dpi=110)
        plt.close(fig)
        written.append(path)
    return written
