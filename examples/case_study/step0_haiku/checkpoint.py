"""Checkpoints: the whole training state, pickled."""

import pathlib
import pickle
from typing import Any

import jax
import numpy as np


def save(file: pathlib.Path, ts: dict[str, Any]) -> None:
    with file.open("wb") as stream:
        pickle.dump(jax.tree.map(np.asarray, ts), stream)


def restore(file: pathlib.Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return pickle.load(stream)
