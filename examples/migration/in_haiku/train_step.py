"""A training step with dropout and Adam, in Haiku."""

# region define
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import optax


def forward(x, key=None):
    x = jax.nn.relu(hk.Linear(32)(x))
    if key is not None:
        x = hk.dropout(key, 0.5, x)
    return hk.Linear(10)(x)


# endregion


# region create
class TrainingState(NamedTuple):
    params: hk.Params
    opt_state: optax.OptState


model = hk.without_apply_rng(hk.transform(forward))
tx = optax.adam(1e-2)


def create(seed):
    params = model.init(jax.random.key(seed), jnp.ones((1, 64)))
    return TrainingState(params, tx.init(params))


# endregion


# region step
@jax.jit
def train_step(state, key, x, labels):
    def loss_fn(params):
        logits = model.apply(params, x, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainingState(params, opt_state), loss


# endregion


# region train_state
from flax.training.train_state import TrainState


def create_train_state(seed):
    params = model.init(jax.random.key(seed), jnp.ones((1, 64)))
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx)


@jax.jit
def train_step_of_train_state(state, key, x, labels):
    def loss_fn(params):
        logits = state.apply_fn(params, x, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


# endregion
