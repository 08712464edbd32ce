"""A chain of optimizers with schedules and groups, in the core."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import bridges as br


class Model(br.Module):
    def __init__(self):
        self.linear = br.FlaxModule(nn.Dense, 12)
        self.up = br.FlaxModule(nn.ConvTranspose, 4, (3,), strides=(2,))

    def __call__(self, x):
        x = jax.nn.relu(self.linear(x)).reshape(-1, 3, 4)
        return self.up(x)


# endregion


# region optimizer
def groups(params):
    def group(path):
        return "weights" if path.endswith("/kernel") else "rest"

    return {path: group(path) for path in params}


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
class Trainer(br.Module):
    def __init__(self):
        self.model = Model()
        self.opt = br.OptaxModule(tx)

    def loss(self, x, y):
        return jnp.mean((self.model(x) - y) ** 2)

    def train(self, x, y):
        return self.opt(self.model, self.loss, x, y)["loss"]


trainer = Trainer()


def create(seed):
    batch = jnp.ones((1, 8)), jnp.ones((1, 6, 4))
    return br.init(trainer.train)({}, *batch, seed=seed)


# endregion

# region step
train_step = br.jit(trainer.train)
# endregion

# region rate
WEIGHTS = "trainer/opt/state/1/inner_states/weights/inner_state"
REST = "trainer/opt/state/1/inner_states/rest/inner_state"
RATE = f"{REST}/hyperparams/learning_rate"


def set_rate(state, rate):
    return state | {RATE: jnp.float32(rate)}


# endregion


# region look
def look(state):
    first_moments = f"{WEIGHTS}/0/mu/trainer/model/up/params"
    assert f"{first_moments}/bias" not in state
    return {
        "first moment": state[f"{first_moments}/kernel"],
        "steps of Adam": state[f"{WEIGHTS}/0/count"],
        "steps of the schedule": state[f"{WEIGHTS}/2/count"],
        "rate by hand": state[RATE],
    }


# endregion
