"""A model that draws noise and drops units, in NNX."""

# region define
import jax
import jax.numpy as jnp
from flax import nnx


class Denoiser(nnx.Module):
    def __init__(self, size, features, rngs):
        self.noise = rngs.noise.fork()  # a stream of its own
        self.hidden = nnx.Linear(size, features, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(features, size, rngs=rngs)

    def __call__(self, x, training):
        if training:
            x = x + 0.3 * self.noise.normal(x.shape)
        x = nnx.relu(self.hidden(x))
        x = self.dropout(x, deterministic=not training)
        return self.out(x)


# endregion


# region create
def create():
    return Denoiser(8, 16, nnx.Rngs(params=0, noise=1, dropout=2))


model = create()
# endregion


# region predict
@nnx.jit
def predict(model, x):
    return model(x, training=False)


# endregion


# region step
@nnx.jit
def train_step(model, x):
    def loss_fn(model):
        return jnp.mean((model(x, training=True) - x) ** 2)

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
    return loss  # the counts in the model went up


# endregion


# region step_of_key
def train_step_of_key(model, step, x, key):
    key = jax.random.fold_in(key, step)
    noise, dropout = jax.random.split(key)
    nnx.reseed(model, noise=noise, dropout=dropout)
    return train_step(model, x)


# endregion


# region resume
def run(model, x, steps):
    for _ in range(steps):
        loss = train_step(model, x)
    return loss


x = jax.random.normal(jax.random.key(1), (4, 8))
straight = run(create(), x, 3)
model = create()
run(model, x, 2)
saved = nnx.state(model)  # parameters, keys and counts
restored = create()
nnx.update(restored, saved)
assert run(restored, x, 1) == straight
# endregion

# region forgotten
only_params = create()
nnx.update(only_params, nnx.state(model, nnx.Param))
assert only_params.noise.count[...] == 0  # the first noise once more
assert run(only_params, x, 1) != straight
# endregion

# region drawn
key = jax.random.key(3)
stream = nnx.Rngs(noise=key).noise
first, second = stream(), stream()
assert first == jax.random.fold_in(key, 0)  # how many came before
assert second == jax.random.fold_in(key, 1)
forked = create().dropout.rngs.key[...]  # of the first that forks
assert forked == jax.random.fold_in(jax.random.key(2), 0)
# endregion

# region same_key
rngs = nnx.Rngs(noise=key, dropout=key)
assert rngs.noise() == rngs.dropout()
rngs = nnx.Rngs(key)  # one stream that serves every name
assert rngs.noise() != rngs.dropout()
# endregion


# region samples
def samples(model, x, n):
    axes = nnx.StateAxes({nnx.RngState: 0, ...: None})

    @nnx.split_rngs(splits=n)
    @nnx.vmap(in_axes=(axes, None))
    def sample(model, x):
        return model(x, training=True)

    return sample(model, x)


drawn = samples(model, x, 3)
assert drawn.shape == (3, 4, 8)
assert (drawn[0] != drawn[1]).any()
# endregion
