"""File to file: every format to every format, seconds over `cp`, peak memory over the largest leaf.

    python benchmarks/files.py [--mib 512] [--leaf 64] [--write docs/files-table.md]

Each conversion runs in a process of its own that has converted a tiny file in the same formats before, so that no import
is measured. What is read lies in the page cache, for `cp` as well. `cp` does not wait for the disk, a conversion does
(fsync, without which a file that was renamed into place may be empty after a power failure): the table has both, and
`cp` followed by `sync` beside them. Memory is the highest resident size above that before, mapped pages of files included.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

NAMES = {"npz": "a.npz", "safetensors": "a.safetensors", "pickle": "a.pkl", "msgpack": "a.msgpack", "orbax": "a"}
CHILD = """
import json, os, pathlib, sys, time
import converters

source, target, manifest, wait = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3] == "1", sys.argv[4] == "1"
if not wait:
    os.fsync = lambda handle: None

def status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

small = pathlib.Path(sys.argv[5])
converters.convert(small / source.name, small / target.name, manifest=manifest, overwrite=True)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before, began, cpu = status("VmRSS"), time.perf_counter(), time.process_time()
converters.convert(source, target, manifest=manifest, overwrite=True)
took, cpu = time.perf_counter() - began, time.process_time() - cpu
print(json.dumps({"seconds": took, "cpu": cpu, "peak": status("VmHWM") - before}))
"""


def main() -> None:
    """Prints the tables, and writes them to a file if told to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--leaf", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DIR")) as folder:
        text = measured(pathlib.Path(folder), args.mib, args.leaf, args.repeat)
    print(text)
    if args.write:
        pathlib.Path(args.write).write_text(text + "\n", "utf-8")


def measured(folder: pathlib.Path, mib: int, leaf: int, repeat: int) -> str:
    """Returns the tables as Markdown."""
    return report(*compared(folder, mib, leaf, repeat), mib, leaf)


def compared(
    folder: pathlib.Path, mib: int, leaf: int, repeat: int
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, tuple[float, float, float]]]:
    """Returns the figures of every conversion, by source and target format, and what `cp` took of each source."""
    import numpy as np

    import converters

    rng = np.random.default_rng(0)

    def tree(count: int, rows: int) -> dict[str, object]:
        arrays = {f"layer_{i}": {"kernel": rng.random((rows, 1024), np.float32)} for i in range(count)}
        return {"params": arrays}

    small = folder / "small"
    small.mkdir()
    whole, few = tree(mib // leaf, leaf * 256), tree(2, 4)
    for name in NAMES.values():
        converters.save(folder / name, whole)
        converters.save(small / name, few)
    del whole
    subprocess.run(["sync"], check=True)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    copies: dict[str, tuple[float, float, float]] = {}
    for src, name in NAMES.items():
        copies[src] = copied(folder / name, folder / "copy", repeat)
        for dst, target in NAMES.items():
            out = folder / f"out-{target}"
            (small / out.name).parent.mkdir(exist_ok=True)
            found = [run(folder / name, out, small, True, True) for _ in range(repeat)]
            bare = [run(folder / name, out, small, False, False) for _ in range(repeat)]
            rows.setdefault(src, {})[dst] = {
                "all": min(f["seconds"] for f in found) / copies[src][0],
                "synced": min(f["seconds"] for f in found) / copies[src][1],
                "bare": min(f["seconds"] for f in bare) / copies[src][0],
                "peak": max(f["peak"] for f in found) / (leaf << 20),
                "cpu": min(f["cpu"] for f in found) / copies[src][2],
                "cpu bare": min(f["cpu"] for f in bare) / copies[src][2],
            }
    return rows, copies


def copied(source: pathlib.Path, target: pathlib.Path, repeat: int) -> tuple[float, float, float]:
    """Returns the seconds of `cp`, of `cp` and a sync, and of processor time of `cp`."""
    took = []
    for _ in range(repeat + 1):
        subprocess.run(["rm", "-rf", str(target)], check=True)
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(["cp", "-r", str(source), str(target)], check=True)
        first, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        subprocess.run(["sync", *(str(p) for p in [target, *target.rglob("*")] if p.is_file())], check=True)
        took.append((first, time.perf_counter() - began, cpu))
    subprocess.run(["rm", "-rf", str(target)], check=True)
    return min(t[0] for t in took), min(t[1] for t in took), min(t[2] for t in took)


def run(
    source: pathlib.Path, target: pathlib.Path, small: pathlib.Path, manifest: bool, wait: bool
) -> dict[str, float]:
    """Returns what one conversion took."""
    arguments = [str(source), str(target), str(int(manifest)), str(int(wait)), str(small)]
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def report(
    rows: dict[str, dict[str, dict[str, float]]], copies: dict[str, tuple[float, float, float]], mib: int, leaf: int
) -> str:
    """Returns the tables of what was measured."""
    load = os.getloadavg()[0]
    lines = [
        "# Format by format",
        "",
        f"{mib} MiB in leaves of {leaf} MiB, by `benchmarks/files.py`, on {os.cpu_count()} cores at a load of {load:.1f}"
        " in its last minute (its own is about 1). Rows: from; columns: to.",
        "",
    ]
    titles = {
        "all": "Seconds over `cp`, with the manifest and its checksums, and waiting for the disk",
        "synced": "The same over `cp` and `sync`, which waits for the disk as well",
        "bare": "Seconds over `cp`, without the manifest, and not waiting for the disk (as `cp` does not)",
        "cpu": "Processor time over that of `cp`, with the manifest (its checksums are taken in threads of their own)",
        "cpu bare": "Processor time over that of `cp`, without the manifest",
        "peak": "Peak memory over the largest leaf, with the manifest",
    }
    for key, title in titles.items():
        lines += [f"## {title}", "", "| | " + " | ".join(NAMES) + " |", "|---" * (len(NAMES) + 1) + "|"]
        lines += [f"| {src} | " + " | ".join(f"{rows[src][dst][key]:.2f}" for dst in NAMES) + " |" for src in NAMES]
        lines.append("")
    seconds = ", ".join(f"{src} {a:.2f} s ({b:.2f} s with `sync`)" for src, (a, b, _) in copies.items())
    return "\n".join([*lines, f"`cp` itself: {seconds}."])


if __name__ == "__main__":
    main()
