"""Trains a language model on characters; `--help` has the options."""

import argparse
import pathlib

import numpy as np

from . import checkpoint
from .config import DEFAULT, Config
from .data import Dataset
from .updater import Updater


def train(
    config: Config, steps: int, restore: pathlib.Path | None = None, save: pathlib.Path | None = None
) -> tuple[list[float], list[float]]:
    """Returns the losses, and those held out; goes on from a checkpoint, and leaves one, where they are named."""
    dataset, updater = Dataset(config), Updater(config)
    if restore:
        checkpoint.restore(restore, updater)
    losses, held_out = [], []
    start = int(updater.optimizer.step[...])
    for step in range(start, start + steps):
        losses.append(float(updater.update(dataset.batch("train", step))))
        if (step + 1) % config.eval_every == 0:
            batches = [dataset.batch("eval", i) for i in range(config.eval_batches)]
            held_out.append(float(np.mean([updater.evaluate(batch) for batch in batches])))
            print(f"step {step + 1:4d}  loss {losses[-1]:.4f}  held out {held_out[-1]:.4f}")
    if save:
        checkpoint.save(save, updater)
    return losses, held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--restore", type=pathlib.Path, help="a checkpoint to go on from")
    parser.add_argument("--save", type=pathlib.Path, help="where the last state goes")
    given = parser.parse_args()
    train(DEFAULT, given.steps, given.restore, given.save)


if __name__ == "__main__":
    main()
