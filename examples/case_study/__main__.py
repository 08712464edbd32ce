"""Runs every step of the migration from one Haiku checkpoint, and compares the losses; exits with 1 if they differ.

    python examples/case_study [--steps 30] [--png FILE]

Each step is a package of its own, the code base as it is after that commit. A run of `step0_haiku` leaves a checkpoint,
and each program goes on from it: parameters, counts, the optimizer's state, the random key and the number of the step.
"""

import argparse
import contextlib
import importlib
import io
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

from converters import cli

FOLDER = pathlib.Path(__file__).parent
STEPS = sorted(folder.name for folder in FOLDER.glob("step*") if (folder / "train.py").exists())
BEFORE = 10  # steps of the Haiku run that leaves the checkpoint

# Of a loss. From the third step on attention and layer norm add up in another order, an ulp (1.2e-7) for each loss, and
# training carries that on; thirty steps give 2e-7 here, and another machine's compiler may order sums its own way.
TOLERANCE = 5e-6


def bridges(command: str, old: pathlib.Path, new: pathlib.Path, *more: str) -> str:
    """Returns what `bridges COMMAND OLD NEW` says, with the old model, the new one and the mapping between them."""
    models = ["--from-model", "step4_native.old_model:forward", "--into", "step4_native.model:LanguageModel"]
    inputs = ["--input", "int32[2,32]<96", "--input", "is_training=false"]
    mapping = ["--mapping", str(FOLDER / "step4_native" / "mapping.toml")]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = cli.main([command, str(old), str(new), *models, *mapping, *inputs, *more])
    if status:
        raise RuntimeError(f"bridges {command}: exit status {status}\n{said.getvalue()}")
    return said.getvalue()


def package(step: str) -> Any:
    """Returns the training program of a step."""
    return importlib.import_module(f"{step}.train")


def begin(folder: pathlib.Path, **config: Any) -> pathlib.Path:
    """Returns the checkpoint that the Haiku program leaves."""
    haiku = package(STEPS[0])
    haiku.train(haiku.Config(**config), BEFORE, save=folder / "old.pkl")
    return folder / "old.pkl"


def resume(step: str, old: pathlib.Path, steps: int, **config: Any) -> tuple[list[float], list[float]]:
    """Returns the losses of a step's program from the old checkpoint on; it leaves its own beside it, `left_by_<step>`."""
    if step.startswith("step5"):
        old, pickled = old.with_suffix(".orbax"), old
        if not old.exists():
            bridges("convert", pickled, old)
    program = package(step)
    return program.train(program.Config(**config), steps, restore=old, save=old.with_name(f"left_by_{step}"))


def difference(wanted: Any, found: Any) -> float:
    """Returns the largest relative difference of two curves, or inf where one has no value."""
    wanted, found = (np.concatenate(list(map(np.asarray, curves))) for curves in (wanted, found))
    if wanted.shape != found.shape or not (np.isfinite(wanted).all() and np.isfinite(found).all()):
        return float("inf")
    return float(np.max(np.abs(found / wanted - 1), initial=0))


def plot(curves: dict[str, tuple[list[float], list[float]]], file: pathlib.Path) -> None:
    """Draws the curves one over the other, and how far each is from the first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    first = np.asarray(curves[STEPS[0]][0])
    x = np.arange(BEFORE, BEFORE + len(first))
    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(8, 5.5), height_ratios=[2, 1], layout="constrained")
    for i, (step, (losses, _)) in enumerate(curves.items()):
        above.plot(x, losses, label=step, linewidth=2 * (len(curves) - i), alpha=0.7)
        below.plot(x, np.abs(np.asarray(losses) / first - 1), label=step)
    above.set(ylabel="loss", title="Six programs, one curve")
    below.set(xlabel="step", ylabel="relative difference", yscale="symlog", ylim=(0, 1e-4))
    below.set_yscale("symlog", linthresh=1e-7)
    below.axhline(TOLERANCE, color="black", linestyle=":", label="allowed")
    above.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def main(args: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python examples/case_study", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="of each program, after the checkpoint")
    parser.add_argument("--png", type=pathlib.Path, help="where a picture of the curves goes")
    given = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        old = begin(pathlib.Path(folder))
        curves = {step: resume(step, old, given.steps) for step in STEPS}
        verdict = bridges("verify", old, old.with_suffix(".orbax"), "--optimizer", "adamw").splitlines()[0]
    worst = 0.0
    for step, found in curves.items():
        worst = max(worst, differs := difference(curves[STEPS[0]], found))
        print(f"{step:14} loss {found[0][0]:.4f} … {found[0][-1]:.4f}   differs by {differs:.1e}")
    print(f"the converted checkpoint, {verdict}")
    if given.png:
        plot(curves, given.png)
    print("one curve" if worst <= TOLERANCE else f"NOT one curve: more than {TOLERANCE}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
