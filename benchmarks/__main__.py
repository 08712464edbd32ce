"""Runs the benchmarks and prints one page: `make bench`, or

    python -m benchmarks [NAME ...] [--quick] [--json FILE] [--keep]

`--keep` writes what was measured into this folder: `results.json`, the pictures, and the tables in `README.md`. Each
benchmark runs in a process of its own.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

NAMES = ("programs", "dispatch", "dispatch_nnx", "tracing", "first", "memory", "checkpoints", "inference", "startup")
FOLDER = pathlib.Path(__file__).parent
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"


def main() -> None:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="few sizes and rounds: does everything run?")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    parser.add_argument("--keep", action="store_true", help="write results.json, pictures and README.md here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one(args.names[0], args.quick, pathlib.Path(args.one))
    unknown = set(args.names) - set(NAMES)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    results: dict[str, Any] = {"machine": machine(), "quick": args.quick, "tables": {}}
    if args.keep and args.names and (FOLDER / "results.json").exists():
        results["tables"] = json.loads((FOLDER / "results.json").read_text("utf-8"))["tables"]
    print(f"# Benchmarks\n\n{results['machine']}\n", flush=True)
    failed = []
    for name in args.names or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "table.json"
            command = [
                sys.executable,
                "-m",
                "benchmarks",
                name,
                "--one",
                str(out),
                *(["--quick"] if args.quick else []),
            ]
            if subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=False).returncode:
                failed.append(name)
                continue
            results["tables"][name] = json.loads(out.read_text("utf-8"))
        print(results["tables"][name]["markdown"], flush=True)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    if args.keep:
        keep(results)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def one(name: str, quick: bool, out: pathlib.Path) -> None:
    """Runs one benchmark, in this process, and writes what it found."""
    from benchmarks.plots import plot

    table = importlib.import_module(f"benchmarks.{name}").measure(quick)
    pictures = [] if quick else plot(table, FOLDER)
    found = {
        **table.to_dict(),
        "markdown": table.markdown(),
        "pictures": [path.name for path in pictures],
        "measured": datetime.date.today().isoformat(),
        "load": round(os.getloadavg()[0], 1),
    }
    out.write_text(json.dumps(found), "utf-8")


def keep(results: dict[str, Any]) -> None:
    """Writes the figures, and the tables into the README."""
    (FOLDER / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    parts = [f"{results['machine']}\n"]
    for name in NAMES:
        if table := results["tables"].get(name):
            pictures = "".join(f"\n![cost against size]({picture})\n" for picture in table["pictures"])
            parts.append(f"{table['markdown']}{pictures}\nMeasured {table['measured']}, load {table['load']}.\n")
    page = FOLDER / "README.md"
    text = page.read_text("utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(before + BEGIN + "\n" + "\n".join(parts) + "\n" + END + after, "utf-8")


def machine() -> str:
    """Returns what ran: cores, memory, versions."""
    from importlib.metadata import version

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("jax", "flax", "dm-haiku", "ninjax", "orbax-checkpoint")
    )
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{os.cpu_count()} cores, {memory:.0f} GiB; Python {python}, {versions}; on the CPU."


if __name__ == "__main__":
    main()
