"""Checkpoints: the whole training state, pickled, with the trees of the Haiku program.

They are read and written as they were, so that a run can go from any commit of the migration to any other.
"""

import functools
import pathlib
import pickle

import jax
import numpy as np
from flax import nnx

import bridges as br
from bridges import haiku_adapter, nnx_adapter

from . import old_model
from .updater import Updater

MAPPING = br.Mapping.load(pathlib.Path(__file__).with_name("mapping.toml"))


def specs(updater: Updater) -> tuple[br.Spec, br.Spec]:
    """Returns what an old checkpoint holds, and what the model does."""
    config = updater.config
    tokens = jax.ShapeDtypeStruct((1, config.sequence_length), np.int32)
    old = haiku_adapter.spec(functools.partial(old_model.forward, config=config), tokens)
    return old, nnx_adapter.spec(updater.model, tokens)


def save(file: pathlib.Path, updater: Updater) -> None:
    model, optimizer = updater.model, updater.optimizer
    old, new = specs(updater)
    plan = MAPPING.plan(old, new)
    params, state = haiku_adapter.unflatten(plan.inverse(nnx_adapter.flatten(model)), old)
    back = MAPPING.inverse.plan(new, old)
    opt_state = back.optimizer(optimizer.opt_state, nnx.state(model, nnx.Param), params)
    rng = jax.random.key_data(updater.rngs.default.key[...])
    step = optimizer.step[...].astype(np.int32)
    ts = {"step": step, "rng": rng, "params": params, "state": state, "opt_state": opt_state}
    with file.open("wb") as stream:
        pickle.dump(jax.tree.map(np.asarray, ts), stream)


def restore(file: pathlib.Path, updater: Updater) -> None:
    model, optimizer = updater.model, updater.optimizer
    with file.open("rb") as stream:
        ts = pickle.load(stream)
    plan = MAPPING.plan(*specs(updater))
    entries = plan.forward(haiku_adapter.flatten(ts["params"], ts["state"]))
    nnx.update(model, nnx_adapter.unflatten(nnx_adapter.flatten(model) | entries, model))
    opt_state = plan.optimizer(ts["opt_state"], ts["params"], nnx.state(model, nnx.Param))
    nnx.update(optimizer, nnx_adapter.optimizer_state(opt_state, optimizer, step=int(ts["step"])))
    updater.rngs = nnx.Rngs(jax.numpy.asarray(ts["rng"]))
    updater.rngs.default.count[...] = ts["step"].astype(np.uint32)
