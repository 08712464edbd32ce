"""Variational autoencoder: Linen with layers for mean and log-variance, NNX with one for both; the noise is an input"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import nnx

PIXELS, HIDDEN, LATENTS = 16, 16, 8


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(HIDDEN, name="fc1")(x))
        return nn.Dense(LATENTS, name="fc2_mean")(x), nn.Dense(LATENTS, name="fc2_logvar")(x)


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, z):
        z = nn.relu(nn.Dense(HIDDEN, name="fc1")(z))
        return nn.Dense(PIXELS, name="fc2")(z)


class VAE(nn.Module):
    def setup(self):
        self.encoder, self.decoder = Encoder(), Decoder()

    def __call__(self, x, noise):
        mean, logvar = self.encoder(x)
        z = mean + noise * jnp.exp(0.5 * logvar)
        return self.decoder(z), mean, logvar


def source():
    return VAE()


class Auto(nnx.Module):
    def __init__(self, rngs):
        self.dec = nnx.Sequential(
            nnx.Linear(LATENTS, HIDDEN, rngs=rngs), nnx.relu, nnx.Linear(HIDDEN, PIXELS, rngs=rngs)
        )
        self.enc = nnx.Sequential(
            nnx.Linear(PIXELS, HIDDEN, rngs=rngs), nnx.relu, nnx.Linear(HIDDEN, 2 * LATENTS, rngs=rngs)
        )

    def __call__(self, x, noise):
        mu, log_var = jnp.split(self.enc(x), 2, axis=-1)
        std = jnp.exp(log_var / 2)
        return self.dec(mu + std * noise), mu, log_var


def target():
    return lambda: Auto(nnx.Rngs(0))


def inputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(4, PIXELS)).astype(np.float32), rng.normal(size=(4, LATENTS)).astype(np.float32)


def truth(s):
    made = {}
    for leaf in ("kernel", "bias"):
        both = [s[f"params/encoder/fc2_{name}/{leaf}"] for name in ("mean", "logvar")]
        made[f"params/enc/layers/0/{leaf}"] = s[f"params/encoder/fc1/{leaf}"]
        made[f"params/enc/layers/2/{leaf}"] = jnp.concatenate(both, -1)
        made[f"params/dec/layers/0/{leaf}"] = s[f"params/decoder/fc1/{leaf}"]
        made[f"params/dec/layers/2/{leaf}"] = s[f"params/decoder/fc2/{leaf}"]
    return made
