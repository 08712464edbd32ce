"""A training run that is saved and goes on, in Haiku: a pickle."""

# region define
import pickle

import haiku as hk
import jax
import jax.numpy as jnp
import optax


def forward(x, key=None):
    x = jax.nn.relu(hk.Linear(16)(x))
    x = hk.LayerNorm(-1, True, True)(x)
    if key is not None:
        x = hk.dropout(key, 0.5, x)
    return hk.Linear(10)(x)


# endregion


# region create
model = hk.without_apply_rng(hk.transform_with_state(forward))
tx = optax.adam(1e-2)


def create(seed):
    rng, key = jax.random.split(jax.random.PRNGKey(seed))
    params, state = model.init(key, jnp.ones((1, 64)))
    opt_state = tx.init(params)
    step = jnp.zeros((), int)
    return dict(params=params, state=state, opt_state=opt_state, step=step, rng=rng)


# endregion


# region step
@jax.jit
def train_step(run, x, labels):
    rng, key = jax.random.split(run["rng"])

    def loss_fn(params):
        logits, state = model.apply(params, run["state"], x, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), state

    (loss, state), grads = jax.value_and_grad(loss_fn, has_aux=True)(run["params"])
    updates, opt_state = tx.update(grads, run["opt_state"], run["params"])
    params = optax.apply_updates(run["params"], updates)
    step = run["step"] + 1
    run = dict(params=params, state=state, opt_state=opt_state, step=step, rng=rng)
    return run, loss


# endregion


# region save
def save(path, run):
    with open(path, "wb") as file:
        pickle.dump(jax.device_get(run), file)


# endregion


# region load
def load(path):
    with open(path, "rb") as file:
        return pickle.load(file)


# endregion
