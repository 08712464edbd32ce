"""Checkpoints: model, optimizer and the key of dropout, in Orbax."""

import pathlib

import jax
import orbax.checkpoint as ocp
from flax import nnx

from .updater import Updater


def tree(updater: Updater) -> dict:
    return {
        "model": nnx.state(updater.model),
        "optimizer": nnx.state(updater.optimizer),
        "rng": jax.random.key_data(updater.rngs.default.key[...]),
    }


def save(folder: pathlib.Path, updater: Updater) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), tree(updater))


def restore(folder: pathlib.Path, updater: Updater) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(folder.absolute(), tree(updater))
    nnx.update(updater.model, saved["model"])
    nnx.update(updater.optimizer, saved["optimizer"])
    updater.rngs = nnx.Rngs(saved["rng"])
    updater.rngs.default.count[...] = updater.optimizer.step[...]
