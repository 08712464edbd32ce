"""A chain of optimizers with schedules and groups, in Haiku."""

# region define
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import optax


def forward(x):
    x = jax.nn.relu(hk.Linear(12)(x)).reshape(-1, 3, 4)
    return hk.Conv1DTranspose(4, 3, stride=2)(x)


model = hk.without_apply_rng(hk.transform(forward))
# endregion


# region optimizer
def groups(params):
    def group(module, name, value):
        return "weights" if name == "w" else "rest"

    return hk.data_structures.map(group, params)


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
class TrainingState(NamedTuple):
    params: hk.Params
    opt_state: optax.OptState


def create(seed):
    params = model.init(jax.random.key(seed), jnp.ones((1, 8)))
    return TrainingState(params, tx.init(params))


# endregion


# region step
@jax.jit
def train_step(state, x, y):
    def loss_fn(params):
        return jnp.mean((model.apply(params, x) - y) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainingState(params, opt_state), loss


# endregion


# region rate
def set_rate(state, rate):
    opt_state = optax.tree.set(state.opt_state, learning_rate=jnp.float32(rate))
    return state._replace(opt_state=opt_state)


# endregion


# region look
def look(state):
    parts = state.opt_state[1].inner_states
    adam, _, schedule = parts["weights"].inner_state
    injected = parts["rest"].inner_state
    first_moments = adam.mu["conv1_d_transpose"]
    assert isinstance(first_moments["b"], optax.MaskedNode)
    return {
        "first moment": first_moments["w"],
        "steps of Adam": adam.count,
        "steps of the schedule": schedule.count,
        "rate by hand": injected.hyperparams["learning_rate"],
    }


# endregion
