"""What an import costs, and the command line's answer to `--help`: whole processes, in turn."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

from benchmarks.paired import paired
from benchmarks.table import Table, rows


def measure(quick: bool = False) -> Table:
    """Returns the table."""
    imports = {
        "import jax": run("import jax"),
        "import bridges": run("import bridges"),
        "import bridges, its core": run("import bridges; bridges.Module"),
        "import bridges, every public name": run("import bridges as br; [getattr(br, n) for n in br.__all__]"),
        "bridges --help": run("import sys; sys.argv = ['bridges', '--help']; from converters.cli import main; main()"),
        "python": run("pass"),
    }
    timings = paired(imports, rounds=3 if quick else 11, number=1)
    found = rows("a process", timings)
    extra = timings["import bridges, its core"].seconds.median - timings["import jax"].seconds.median
    return Table(
        "startup",
        "Imports and `bridges --help`",
        "`import bridges` 0.2 s over `import jax`; `bridges --help` 0.3 s",
        tuple(found),
        (
            f"`import bridges` alone does not import JAX; with its core it takes {extra:+.3f} s over `import jax`."
            f" `bridges --help` took {timings['bridges --help'].seconds.median:.3f} s, of which Python itself"
            f" {timings['python'].seconds.median:.3f} s.",
            "Every public name loads Haiku, Flax and Optax.",
        ),
    )


def run(code: str) -> Callable[[], None]:
    """Returns a call that runs a program in a new process."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}

    def call() -> None:
        subprocess.run([sys.executable, "-c", code], env=env, check=True, stdout=subprocess.DEVNULL)

    return call
