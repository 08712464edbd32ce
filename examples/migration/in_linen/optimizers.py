"""A chain of optimizers with schedules and groups, in Linen."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(12)(x)).reshape(-1, 3, 4)
        return nn.ConvTranspose(4, (3,), strides=(2,))(x)


model = Model()
# endregion


# region optimizer
def groups(params):
    def group(path, value):
        return "weights" if path[-1].key == "kernel" else "rest"

    return jax.tree.map_with_path(group, params)


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
    variables = model.init(jax.random.key(seed), jnp.ones((1, 8)))
    return TrainState.create(apply_fn=model.apply, params=variables["params"], tx=tx)


# endregion


# region step
@jax.jit
def train_step(state, x, y):
    def loss_fn(params):
        return jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


# endregion


# region rate
def set_rate(state, rate):
    opt_state = optax.tree.set(state.opt_state, learning_rate=jnp.float32(rate))
    return state.replace(opt_state=opt_state)


# endregion


# region look
def look(state):
    parts = state.opt_state[1].inner_states
    adam, _, schedule = parts["weights"].inner_state
    injected = parts["rest"].inner_state
    first_moments = adam.mu["ConvTranspose_0"]
    assert isinstance(first_moments["bias"], optax.MaskedNode)
    return {
        "first moment": first_moments["kernel"],
        "steps of Adam": adam.count,
        "steps of the schedule": schedule.count,
        "rate by hand": injected.hyperparams["learning_rate"],
    }


# endregion
