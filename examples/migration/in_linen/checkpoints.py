"""A training run that is saved and goes on, in Linen: msgpack."""

# region define
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state


class Model(nn.Module):
    @nn.compact
    def __call__(self, x, key=None):
        x = nn.relu(nn.Dense(16)(x))
        x = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)(x)
        x = nn.Dropout(0.5)(x, deterministic=key is None, rng=key)
        return nn.Dense(10)(x)


# endregion


# region create
class TrainState(train_state.TrainState):
    rng: jax.Array


model = Model()
tx = optax.adam(1e-2)


def create(seed):
    rng, key = jax.random.split(jax.random.PRNGKey(seed))
    params = model.init(key, jnp.ones((1, 64)))["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx, rng=rng)


# endregion


# region step
@jax.jit
def train_step(run, x, labels):
    rng, key = jax.random.split(run.rng)

    def loss_fn(params):
        logits = run.apply_fn({"params": params}, x, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    loss, grads = jax.value_and_grad(loss_fn)(run.params)
    return run.apply_gradients(grads=grads, rng=rng), loss


# endregion


# region save
def save(path, run):
    with open(path, "wb") as file:
        file.write(flax.serialization.to_bytes(run))


# endregion


# region load
def load(path):
    like = jax.eval_shape(create, 0)
    with open(path, "rb") as file:
        return flax.serialization.from_bytes(like, file.read())


# endregion
