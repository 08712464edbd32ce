"""Mutable state: running statistics of BatchNorm, in Haiku."""

# region define
import haiku as hk
import jax
import jax.numpy as jnp
import optax


class Block(hk.Module):
    def __init__(self, features, name=None):
        super().__init__(name=name)
        self.features = features

    def __call__(self, x, training):
        x = hk.Linear(self.features)(x)
        norm = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)
        x = norm(x, is_training=training)
        return jax.nn.relu(x)


class Model(hk.Module):
    def __call__(self, x, training):
        x = Block(32)(x, training)
        return hk.Linear(10)(x)


# endregion


# region create
def forward(x, training):
    return Model()(x, training)


model = hk.without_apply_rng(hk.transform_with_state(forward))


def create(seed):
    key, x = jax.random.key(seed), jnp.ones((1, 64))
    return model.init(key, x, training=True)  # False would not make the averages


# endregion


# region look
params, state = create(0)
assert params["model/block/batch_norm"]["scale"].shape == (1, 32)
assert state["model/block/batch_norm/~/mean_ema"]["average"].shape == (1, 32)
# endregion


# region call
def predict(params, state, x):
    logits, _ = model.apply(params, state, x, training=False)
    return logits


# endregion


# region step
@jax.jit
def train_step(params, state, x, labels):
    def loss_fn(params):
        logits, new_state = model.apply(params, state, x, training=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), new_state

    grads, new_state = jax.grad(loss_fn, has_aux=True)(params)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    return params, new_state


# endregion


# region train_state
from flax.training import train_state


class TrainState(train_state.TrainState):
    state: hk.MutableState


def create_train_state(params, state):
    kept = {"params": params, "state": state}
    return TrainState.create(apply_fn=model.apply, tx=optax.sgd(0.1), **kept)


@jax.jit
def train_step_of_train_state(state, x, labels):
    def loss_fn(params):
        logits, new = state.apply_fn(params, state.state, x, training=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), new

    grads, new = jax.grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, state=new)


# endregion
