"""A model that draws noise and drops units, in the core: Linen's layers as parts."""

import zlib

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp

import bridges as br


class Denoiser(br.Module):
    size: int
    features: int

    def __init__(self):
        self.hidden = br.FlaxModule(nn.Dense, self.features)
        self.dropout = br.FlaxModule(nn.Dropout, 0.5)
        self.out = br.FlaxModule(nn.Dense, self.size)

    def __call__(self, x, training):
        if training:
            noise = jax.random.normal(br.rng("noise"), x.shape)
            x = x + 0.3 * noise
        x = nn.relu(self.hidden(x))
        x = self.dropout(x, deterministic=not training)
        return self.out(x)


# endregion


# region create
model = Denoiser(size=8, features=16)
state = br.init(model)({}, jnp.ones((1, 8)), False, seed=0)
# endregion


# region predict
def predict(state, x):
    return br.pure(model)(state, x, training=False)[1]


# endregion


# region step
@jax.jit
def train_step(state, step, x, key):
    seed = jax.random.fold_in(key, step)  # one for all streams

    def loss_fn(params):
        _, out = br.pure(model)(params, x, True, seed=seed)
        return jnp.mean((out - x) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(state)
    state = jax.tree.map(lambda p, g: p - 0.1 * g, state, grads)
    return state, loss


# endregion


# region resume
def run(checkpoint, x, steps):
    state, done, key = checkpoint
    for step in range(done, done + steps):
        state, loss = train_step(state, step, x, key)
    return (state, done + steps, key), loss


start = state, 0, jax.random.key(7)
x = jax.random.normal(jax.random.key(1), (4, 8))
_, straight = run(start, x, 3)
saved, _ = run(start, x, 2)  # parameters, a number, a key
_, resumed = run(saved, x, 1)
assert straight == resumed
# endregion


# region drawn
class TwoKeys(br.Module):
    def __call__(self):
        return br.rng("noise"), br.rng("noise")


class Outer(br.Module):
    def __init__(self):
        self.inner = TwoKeys()

    def __call__(self):
        return self.inner()


key = jax.random.key(3)
_, (first, second) = br.pure(Outer())({}, seed={"noise": key})
path = zlib.crc32(b"path/outer/inner")
base = jax.random.fold_in(key, path)
assert first == jax.random.fold_in(base, 0)  # the path and a count
assert second == jax.random.fold_in(base, 1)
# endregion


# region same_key
class NoiseAndDropout(br.Module):
    def __call__(self):
        return br.rng("noise"), br.rng("dropout")


draw = br.pure(NoiseAndDropout())
_, (noise, dropout) = draw({}, seed={"noise": key, "dropout": key})
assert noise == dropout
_, (noise, dropout) = draw({}, seed=key)  # one that is no stream's own
assert noise != dropout
# endregion


# region samples
def samples(state, x, n, key):
    def sample(key):
        return br.pure(model)(state, x, True, seed=key)[1]

    return jax.vmap(sample)(jax.random.split(key, n))


drawn = samples(state, x, 3, key)
assert drawn.shape == (3, 4, 8)
assert (drawn[0] != drawn[1]).any()
# endregion
