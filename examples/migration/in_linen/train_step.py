"""A training step with dropout and Adam, in Linen."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState


class Model(nn.Module):
    @nn.compact
    def __call__(self, x, key=None):
        x = nn.relu(nn.Dense(32)(x))
        x = nn.Dropout(0.5, deterministic=key is None)(x, rng=key)
        return nn.Dense(10)(x)


# endregion


# region create
model = Model()
tx = optax.adam(1e-2)


def create(seed):
    variables = model.init(jax.random.key(seed), jnp.ones((1, 64)))
    return TrainState.create(apply_fn=model.apply, params=variables["params"], tx=tx)


# endregion


# region step
@jax.jit
def train_step(state, key, x, labels):
    def loss_fn(params):
        logits = state.apply_fn({"params": params}, x, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


# endregion
