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
    found, notes = [], []
    for mib, leaf in ((64, 16),) if quick else ((100, 25), (1024, 64), (4096, 256)):
        repeat = 1 if quick else 2
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DIR")) as name:
            folder = pathlib.Path(name)
            found += rows(mib, *files.compared(folder, mib, leaf, 1 if mib > 1024 else repeat))
            floors = ", ".join(f"{way} {ratio:.2f}" for way, ratio in files.floors(folder, mib, repeat).items())
        notes.append(f"Floors at {mib} MiB, over `cp`, of bytes that are mapped in a Python process and: {floors}.")
    return Table(
        "checkpoints",
        "File to file",
        "1.5 x `cp`, held against `cp` and `sync` (see below); peak memory 2 x the largest leaf",
        tuple(found),
        (
            "The bound is held against `cp` followed by `sync`, which the ratio is over: a conversion waits for the disk, or"
            " a power failure could leave an empty file under a name that held a checkpoint, and `cp` does not wait. Over a"
            " `cp` that does not wait are the columns beside it: the whole conversion; the same without the manifest and not"
            " waiting either; and a script that loads, renames and saves with the formats' own libraries, which checks"
            " nothing and does not wait.",
            "`cp` copies inside of the kernel, so that no byte passes through a process. A conversion sums every byte once"
            " (the manifest's CRC-32, which is the one that npz keeps of an array too), and files up to 256 MiB once more by"
            " SHA-256. On two cores both run beside the writing, and the disk is waited for meanwhile: a pair keeps the"
            " bound where the disk is slower than the sums, and cannot where it is faster. The last of the floors is that of"
            " any conversion with a manifest, SHA-256 left out.",
            "An Orbax checkpoint is written by TensorStore, in chunks of 2 MiB with an index of them, and its directory has"
            " some dozens of small files that are waited for; one that is read is summed twice, its files and its arrays,"
            " since chunks are no arrays. These pairs have the most to do beyond the floor.",
            *notes,
        ),
    )


def rows(
    mib: int, found: dict[str, dict[str, dict[str, float]]], copies: dict[str, tuple[float, float, float]]
) -> Iterator[Row]:
    """Yields a row a pair of formats."""
    for src, targets in found.items():
        yield Row(f"{mib} MiB {src}", "cp + sync", once(copies[src][1]), size=mib)
        for dst, cell in targets.items():
            yield Row(
                f"{mib} MiB {src}",
                f"to {dst}",
                once(cell["seconds"]),
                once(cell["synced"]),
                mib,
                {
                    "over cp": f"{cell['all']:.2f}",
                    "bare, over cp": f"{cell['bare']:.2f}",
                    "script, over cp": f"{cell['script']:.2f}",
                    "processor": f"{cell['cpu']:.2f}",
                    "peak / leaf": f"{cell['peak']:.2f}",
                    "script's peak / leaf": f"{cell['peak script']:.2f}",
                },
                1.5,
            )


def once(value: float) -> Spread:
    """Returns a figure of which the best of few runs is all there is."""
    return Spread(value, value, value)
