"""A chain of optimizers with schedules and groups, in NNX."""

# region define
import jax
import jax.numpy as jnp
import optax
from flax import nnx


class Model(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(8, 12, rngs=rngs)
        self.up = nnx.ConvTranspose(4, 4, (3,), strides=(2,), rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.linear(x)).reshape(-1, 3, 4)
        return self.up(x)


# endregion


# region optimizer
def groups(params):
    def group(path, value):
        return "weights" if path[-1] == "kernel" else "rest"

    return nnx.map_state(group, params)


def optimizer(groups):
    warmup = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 4, 100)
    by_hand = optax.inject_hyperparams(optax.adam)(learning_rate=3e-3)
    parts = {
        "weights": optax.adamw(warmup, weight_decay=0.1),
        "rest": by_hand,
    }
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.multi_transform(parts, groups),
    )


tx = optimizer(groups)
# endregion


# region create
def create(seed):
    model = Model(nnx.Rngs(seed))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


# endregion


# region step
@nnx.jit
def train_step(model, optimizer, x, y):
    def loss_fn(model):
        return jnp.mean((model(x) - y) ** 2)

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


# endregion


# region rate
def set_rate(optimizer, rate):
    injected = optax.tree.get(optimizer.opt_state, "learning_rate")
    injected[...] = rate


# endregion


# region look
def look(optimizer):
    parts = optimizer.opt_state[1].inner_states
    adam, _, schedule = parts["weights"].inner_state
    injected = parts["rest"].inner_state
    first_moments = adam.mu["up"]
    assert isinstance(first_moments["bias"], optax.MaskedNode)
    return {
        "first moment": first_moments["kernel"][...],
        "steps of Adam": adam.count[...],
        "steps of the schedule": schedule.count[...],
        "rate by hand": injected.hyperparams["learning_rate"][...],
    }


# endregion
