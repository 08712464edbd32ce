"""File to file, every pair of formats, at several sizes: `files.py` run at each."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Iterator

from benchmarks import files
from benchmarks.paired import Spread
from benchmarks.table import Row, Table


def measure(quick: bool = False) -> Table:
    """Returns the table."""
    return Table(
        "checkpoints",
        "File to file",
        "1.5 x `cp`; peak memory 2 x the largest leaf",
        tuple(rows(quick)),
        (
            "A ratio is over `cp` followed by `sync`, as a conversion waits for the disk too; the columns beside it: over a"
            " `cp` that does not wait, without the manifest and not waiting either; processor time over that of `cp`.",
            "What JAX and the disk cost: the manifest's checksums and msgpack's, npz's and Orbax's own encodings are read"
            " and written by one or two threads; `cp` copies inside of the kernel.",
        ),
    )


def rows(quick: bool) -> Iterator[Row]:
    """Yields a row a pair of formats and size."""
    for mib, leaf in ((64, 16),) if quick else ((100, 25), (1024, 64), (4096, 256)):
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DIR")) as folder:
            found, copies = files.compared(pathlib.Path(folder), mib, leaf, 1 if mib > 1024 or quick else 2)
        for src, targets in found.items():
            yield Row(f"{mib} MiB {src}", "cp + sync", once(copies[src][1]), size=mib)
            for dst, cell in targets.items():
                yield Row(
                    f"{mib} MiB {src}",
                    f"to {dst}",
                    once(cell["synced"] * copies[src][1]),
                    once(cell["synced"]),
                    mib,
                    {
                        "over cp alone": f"{cell['all']:.2f}",
                        "bare, over cp": f"{cell['bare']:.2f}",
                        "processor": f"{cell['cpu']:.2f}",
                        "peak / largest leaf": f"{cell['peak']:.2f}",
                    },
                    1.5,
                )


def once(value: float) -> Spread:
    """Returns a figure of which the best of few runs is all there is."""
    return Spread(value, value, value)
