"""Mutable state: running statistics of BatchNorm, in Linen."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, training):
        x = nn.Dense(self.features)(x)
        norm = nn.BatchNorm(momentum=0.9)
        x = norm(x, use_running_average=not training)
        return jax.nn.relu(x)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        x = Block(32)(x, training)
        return nn.Dense(10)(x)


# endregion


# region create
model = Model()


def create(seed):
    key, x = jax.random.key(seed), jnp.ones((1, 64))
    variables = model.init(key, x, training=False)
    return variables["params"], variables["batch_stats"]


# endregion


# region look
params, batch_stats = create(0)
assert params["Block_0"]["BatchNorm_0"]["scale"].shape == (32,)
assert batch_stats["Block_0"]["BatchNorm_0"]["mean"].shape == (32,)
# endregion


# region call
def predict(params, batch_stats, x):
    variables = {"params": params, "batch_stats": batch_stats}
    return model.apply(variables, x, training=False)


# endregion


# region step
@jax.jit
def train_step(params, batch_stats, x, labels):
    def loss_fn(params):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, new = model.apply(variables, x, training=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), new["batch_stats"]

    grads, new_stats = jax.grad(loss_fn, has_aux=True)(params)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    return params, new_stats


# endregion


# region train_state
from typing import Any

from flax.training import train_state


class TrainState(train_state.TrainState):
    batch_stats: Any


def create_train_state(params, batch_stats):
    kept = {"params": params, "batch_stats": batch_stats}
    return TrainState.create(apply_fn=model.apply, tx=optax.sgd(0.1), **kept)


@jax.jit
def train_step_of_train_state(state, x, labels):
    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        mutable = ["batch_stats"]
        logits, new = state.apply_fn(variables, x, training=True, mutable=mutable)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), new["batch_stats"]

    grads, new = jax.grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=new)


# endregion
