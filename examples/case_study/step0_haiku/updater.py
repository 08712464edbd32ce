"""The training step, and everything that it changes."""

import dataclasses
import functools
from typing import Any

import haiku as hk
import jax
import numpy as np
import optax

from .config import Config
from .data import Batch
from .model import forward


def make_optimizer(config: Config) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.warmup_steps, config.decay_steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(schedule, b2=0.95, weight_decay=config.weight_decay),
    )


@dataclasses.dataclass(frozen=True)
class Updater:
    """Pure functions from a state to the next; the state is a dictionary, which the caller keeps."""

    config: Config

    @functools.cached_property
    def net(self) -> hk.TransformedWithState:
        return hk.transform_with_state(functools.partial(forward, config=self.config))

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        return make_optimizer(self.config)

    def init(self, batch: Batch) -> dict[str, Any]:
        rng = jax.random.PRNGKey(self.config.seed)
        params, state = jax.jit(self.net.init)(rng, batch.tokens)
        opt_state = self.optimizer.init(params)
        return {"step": np.array(0), "rng": rng, "params": params, "state": state, "opt_state": opt_state}

    def loss(
        self, params: hk.Params, state: hk.State, rng: Any, batch: Batch, is_training: bool
    ) -> tuple[jax.Array, hk.State]:
        logits, state = self.net.apply(params, state, rng, batch.tokens, is_training)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets).mean(), state

    @functools.partial(jax.jit, static_argnums=0)
    def update(self, ts: dict[str, Any], batch: Batch) -> tuple[dict[str, Any], jax.Array]:
        """Returns the next state, and the loss before it."""
        rng = jax.random.fold_in(ts["rng"], ts["step"])
        (loss, state), grads = jax.value_and_grad(self.loss, has_aux=True)(ts["params"], ts["state"], rng, batch, True)
        updates, opt_state = self.optimizer.update(grads, ts["opt_state"], ts["params"])
        params = optax.apply_updates(ts["params"], updates)
        new = {"step": ts["step"] + 1, "params": params, "state": state, "opt_state": opt_state}
        return ts | new, loss

    @functools.partial(jax.jit, static_argnums=0)
    def evaluate(self, ts: dict[str, Any], batch: Batch) -> jax.Array:
        """Returns the loss without dropout."""
        return self.loss(ts["params"], ts["state"], None, batch, False)[0]
