"""A classifier in Haiku, with dropout and running statistics."""

# region imports
import haiku as hk
import jax
import jax.numpy as jnp
import optax

# endregion


# region encoder
class Encoder(hk.Module):
    def __call__(self, x, training):
        x = jax.nn.relu(hk.Linear(16)(x))
        if training:
            x = hk.dropout(hk.next_rng_key(), 0.5, x)
        return x


# endregion


# region scale
class Scale(hk.Module):
    """Divides by a running mean of the squares."""

    def __call__(self, x, training):
        shape = x.shape[-1:]
        square = hk.get_state("square", shape, init=jnp.ones)
        if training:
            new = 0.9 * square + 0.1 * jnp.mean(x**2, axis=0)
            hk.set_state("square", new)
        return x / jnp.sqrt(square + 1e-5)


# endregion


# region head
class Head(hk.Module):
    def __call__(self, x):
        x = jax.nn.relu(hk.Linear(16, name="hidden")(x))
        return hk.Linear(10, name="out")(x)


# endregion


# region model
def forward(x, training):
    x = Encoder()(x, training)
    x = Scale()(x, training)
    return Head()(x)


# endregion


# region create
model = hk.transform_with_state(forward)
tx = optax.adam(1e-2)


def create(seed):
    x, key = jnp.ones((1, 8)), jax.random.key(seed)
    params, state = model.init(key, x, training=True)
    return params, state, tx.init(params)


# endregion


# region step
def predict(params, state, x):
    return model.apply(params, state, None, x, training=False)[0]


@jax.jit
def train_step(run, key, x, labels):
    params, state, opt_state = run

    def loss_fn(params):
        logits, new = model.apply(params, state, key, x, training=True)
        ce = optax.softmax_cross_entropy_with_integer_labels
        return ce(logits, labels).mean(), new

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, state), grads = grad_fn(params)
    updates, opt_state = tx.update(grads, opt_state)
    params = optax.apply_updates(params, updates)
    return (params, state, opt_state), loss


# endregion
