"""A model that draws noise and drops units, in Linen."""

import hashlib

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp


class Denoiser(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, training):
        clean = x
        if training:
            noise = jax.random.normal(self.make_rng("noise"), x.shape)
            x = x + 0.3 * noise
        x = nn.relu(nn.Dense(self.features, name="hidden")(x))
        x = nn.Dropout(0.5, deterministic=not training)(x)
        return nn.Dense(clean.shape[-1], name="out")(x)


# endregion


# region create
model = Denoiser(16)
variables = model.init(jax.random.key(0), jnp.ones((1, 8)), False)
params = variables["params"]
# endregion


# region predict
def predict(params, x):
    return model.apply({"params": params}, x, training=False)


# endregion


# region step
def streams(key):
    noise, dropout = jax.random.split(key)
    return {"noise": noise, "dropout": dropout}


@jax.jit
def train_step(params, step, x, key):
    rngs = streams(jax.random.fold_in(key, step))

    def loss_fn(params):
        out = model.apply({"params": params}, x, True, rngs=rngs)
        return jnp.mean((out - x) ** 2)

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


# region drawn
class Inner(nn.Module):
    def __call__(self):
        return self.make_rng("noise"), self.make_rng("noise")


class TwoKeys(nn.Module):
    @nn.compact
    def __call__(self):
        return Inner(name="inner")()


def fold(key, path, count):
    sha1 = hashlib.sha1(path.encode() + bytes([count]))
    folded = int.from_bytes(sha1.digest()[:4], "big")
    return jax.random.fold_in(key, jnp.uint32(folded))


key = jax.random.key(3)
first, second = TwoKeys().apply({}, rngs={"noise": key})
assert first == fold(key, "inner", 1)  # the path and a count
assert second == fold(key, "inner", 2)
# endregion


# region same_key
class NoiseAndDropout(nn.Module):
    def __call__(self):
        return self.make_rng("noise"), self.make_rng("dropout")


twice = {"noise": key, "dropout": key}
noise, dropout = NoiseAndDropout().apply({}, rngs=twice)
assert noise == dropout
# endregion


# region samples
def samples(params, x, n, key):
    def sample(key):
        return model.apply({"params": params}, x, True, rngs=streams(key))

    return jax.vmap(sample)(jax.random.split(key, n))


drawn = samples(params, x, 3, key)
assert drawn.shape == (3, 4, 8)
assert (drawn[0] != drawn[1]).any()
# endregion
