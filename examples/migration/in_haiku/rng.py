"""A model that draws noise and drops units, in Haiku."""

# region define
import haiku as hk
import jax
import jax.numpy as jnp


class Denoiser(hk.Module):
    def __init__(self, features, name=None):
        super().__init__(name=name)
        self.features = features

    def __call__(self, x, training):
        clean = x
        if training:
            noise = jax.random.normal(hk.next_rng_key(), x.shape)
            x = x + 0.3 * noise
        x = jax.nn.relu(hk.Linear(self.features, name="hidden")(x))
        if training:
            x = hk.dropout(hk.next_rng_key(), 0.5, x)
        return hk.Linear(clean.shape[-1], name="out")(x)


# endregion


# region create
def forward(x, training):
    return Denoiser(16)(x, training)


model = hk.transform(forward)
params = model.init(jax.random.key(0), jnp.ones((1, 8)), False)
# endregion


# region predict
def predict(params, x):
    return model.apply(params, None, x, training=False)


# endregion


# region step
@jax.jit
def train_step(params, step, x, key):
    key = jax.random.fold_in(key, step)

    def loss_fn(params):
        return jnp.mean((model.apply(params, key, x, training=True) - x) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    return params, loss


# endregion


# region resume
def run(checkpoint, x, steps):
    params, done, key = checkpoint
    for step in range(done, done + steps):
        params, loss = train_step(params, step, x, key)
    return (params, done + steps, key), loss


start = params, 0, jax.random.key(7)
x = jax.random.normal(jax.random.key(1), (4, 8))
_, straight = run(start, x, 3)
saved, _ = run(start, x, 2)  # parameters, a number, a key
_, resumed = run(saved, x, 1)
assert straight == resumed
# endregion


# region sequence
keys = hk.PRNGSequence(jax.random.key(7))  # not key and step
_, loss = train_step(params, 0, x, next(keys))
saved_keys = keys.internal_state  # with the parameters, into a file
following = next(keys)
assert (next(hk.PRNGSequence(saved_keys)) == following).all()
# endregion


# region drawn
@hk.transform
def two_keys():
    return hk.next_rng_key(), hk.next_rng_key()


key = jax.random.key(3)
first, second = two_keys.apply({}, key)
rest, key_1 = jax.random.split(key)
_, key_2 = jax.random.split(rest)
assert first == key_1 and second == key_2  # one after the other
# endregion


# region samples
def samples(params, x, n, key):
    def sample(key):
        return model.apply(params, key, x, training=True)

    return jax.vmap(sample)(jax.random.split(key, n))


drawn = samples(params, x, 3, key)
assert drawn.shape == (3, 4, 8)
assert (drawn[0] != drawn[1]).any()
# endregion
