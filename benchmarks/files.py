"""File to file: every format to every format, seconds over `cp`, peak memory over the largest leaf, against scripts.

    python -m benchmarks.files [--mib 512] [--leaf 64] [--write docs/files-table.md]

Each conversion runs in a process of its own that has converted a tiny file in the same formats before, so that no import
is measured. What is read lies in the page cache, for `cp` as well. Nothing stands where the target is to be: its removal
would be measured too. `cp` takes its turn in every round of a pair, since a disk is not always equally fast. It does not
wait for the disk, a conversion does (fsync, without which a file that was renamed into place may be empty after a power
failure): the table has both, and `cp` followed by `sync` beside them. Memory is the highest resident size above that
before, mapped pages of files included.

A script loads the file with the format's own library, renames the arrays and saves them with the other format's own
library: `numpy.load` and `savez`, `safetensors.numpy`, `pickle`, `flax.serialization`, `orbax.checkpoint`. It waits for no
disk and checks nothing. Conversions rename as it does. The floors are the same bytes, mapped and written again, in Python
with nothing else done; with one CRC-32 of them, taken by a thread beside the writing, as a conversion takes it; with waiting
for the disk; and with both, which is over `cp` and `sync`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import json
import mmap
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
import zlib

import numpy as np

NAMES = {"npz": "a.npz", "safetensors": "a.safetensors", "pickle": "a.pkl", "msgpack": "a.msgpack", "orbax": "a"}
RENAMING = {"rules": [{"src": "params/{layer}/kernel", "dst": "params/{layer}/weight"}]}
WAYS = ("whole", "bare", "script")


def main() -> None:
    """Prints the tables, and writes them to a file if told to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--leaf", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--write")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return print(json.dumps(child(args.child[0], *map(pathlib.Path, args.child[1:]))))
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
        for dst, target in NAMES.items():
            out = folder / f"out-{target}"
            found, plain = [], []
            for _ in range(repeat):
                plain.append(copied(folder / name, folder / "copy"))
                found.append({way: run(way, folder / name, out, small) for way in WAYS})
            alone = fastest(plain)
            copies[src] = fastest([alone, copies.get(src, alone)])

            def best(way: str, what: str, found: list[dict[str, dict[str, float]]] = found) -> float:
                return min(turn[way][what] for turn in found)

            rows.setdefault(src, {})[dst] = {
                "seconds": best("whole", "seconds"),
                "all": best("whole", "seconds") / alone[0],
                "synced": best("whole", "seconds") / alone[1],
                "bare": best("bare", "seconds") / alone[0],
                "script": best("script", "seconds") / alone[0],
                "peak": max(turn["whole"]["peak"] for turn in found) / (leaf << 20),
                "peak script": min(turn["script"]["peak"] for turn in found) / (leaf << 20),
                "cpu": best("whole", "cpu") / alone[2],
                "cpu bare": best("bare", "cpu") / alone[2],
            }
    return rows, copies


def floors(folder: pathlib.Path, mib: int, repeat: int) -> dict[str, float]:
    """Returns the seconds of writing so many bytes that are mapped from a file: over `cp`, the last over `cp` and `sync`."""
    source, target = folder / "bytes", folder / "bytes-again"
    with source.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    subprocess.run(["sync"], check=True)
    ways = {"written": "", "with CRC-32": "c", "waited for": "w", "with both, over `cp` and `sync`": "cw"}
    took: dict[str, list[float]] = {name: [] for name in ways}
    copies = []
    for _ in range(repeat + 1):
        copies.append(copied(source, target))
        for name, what in ways.items():
            began = time.perf_counter()
            _written(source, target, "c" in what, "w" in what)
            took[name].append(time.perf_counter() - began)
            target.unlink()
    source.unlink()
    alone = fastest(copies)
    return {name: min(times) / alone[ways[name] == "cw"] for name, times in took.items()}


def _written(source: pathlib.Path, target: pathlib.Path, summed: bool, waited: bool) -> None:
    from converters.formats._output import output  # sends what was written to the disk on its way, and waits at the end

    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    with source.open("rb") as old, output(target) if waited else target.open("xb", 0) as new:
        array = np.frombuffer(mmap.mmap(old.fileno(), 0, flags, mmap.PROT_READ), np.uint8)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            parts = np.array_split(array, array.size >> 20)
            if summed:
                pool.submit(functools.reduce, lambda crc, part: zlib.crc32(part, crc), parts, 0)
            for part in parts:
                new.write(part.data)


def copied(source: pathlib.Path, target: pathlib.Path) -> tuple[float, float, float]:
    """Returns the seconds of `cp`, of `cp` and a sync, and of processor time of `cp`."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    first, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    subprocess.run(["sync", *(str(p) for p in [target, *target.rglob("*")] if p.is_file())], check=True)
    both = time.perf_counter() - began
    subprocess.run(["rm", "-rf", str(target)], check=True)
    return first, both, cpu


def fastest(times: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Returns the least of each figure."""
    return min(t[0] for t in times), min(t[1] for t in times), min(t[2] for t in times)


def run(way: str, source: pathlib.Path, target: pathlib.Path, small: pathlib.Path) -> dict[str, float]:
    """Returns what one conversion took, in one of `WAYS`: as it is, without manifest and waiting, and by a script."""
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "benchmarks.files", "--child", way, str(source), str(target), str(small)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    subprocess.run(["rm", "-rf", str(target), f"{target}.manifest.json"], check=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def child(way: str, source: pathlib.Path, target: pathlib.Path, small: pathlib.Path) -> dict[str, float]:
    """Converts in this process: a tiny file, and the one that is measured."""

    def convert(source: pathlib.Path, target: pathlib.Path) -> None:
        if way == "script":
            return scripts.convert(source, target)
        converters.convert(source, target, mapping=RENAMING, to="flat", manifest=way == "whole", overwrite=True)

    if way == "script":
        from benchmarks import scripts
    else:
        import converters
    if way == "bare":
        os.fsync = lambda handle: None
    convert(small / source.name, small / target.name)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before, began, cpu = status("VmRSS"), time.perf_counter(), time.process_time()
    convert(source, target)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"seconds": took, "cpu": cpu, "peak": status("VmHWM") - before}


def status(name: str) -> int:
    """Returns a figure of this process in bytes, such as VmRSS."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


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
        "script": "Seconds over `cp` of a script: the formats' own libraries, neither checking nor waiting",
        "peak": "Peak memory over the largest leaf, with the manifest",
        "peak script": "Peak memory over the largest leaf, of the script",
    }
    for key, title in titles.items():
        lines += [f"## {title}", "", "| | " + " | ".join(NAMES) + " |", "|---" * (len(NAMES) + 1) + "|"]
        lines += [f"| {src} | " + " | ".join(f"{rows[src][dst][key]:.2f}" for dst in NAMES) + " |" for src in NAMES]
        lines.append("")
    seconds = ", ".join(f"{src} {a:.2f} s ({b:.2f} s with `sync`)" for src, (a, b, _) in copies.items())
    return "\n".join([*lines, f"`cp` itself: {seconds}."])


if __name__ == "__main__":
    main()
