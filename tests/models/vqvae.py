"""A VQ-VAE with Haiku's VectorQuantizerEMA; Flax has none, so that it is a module of one's own with the same entries."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

WIDTH, DIMENSION, CODES, CHANNELS, DECAY = 8, 4, 6, 2, 0.9


def quantize(x, embeddings):
    """Returns one-hot codes [n, codes] of vectors, by the nearest of the columns of a table [dimension, codes]."""
    flat = x.reshape(-1, DIMENSION)
    distances = (flat**2).sum(1, keepdims=True) - 2 * flat @ embeddings + (embeddings**2).sum(0, keepdims=True)
    return flat, jax.nn.one_hot(jnp.argmax(-distances, 1), CODES)


def averaged(average, value):
    """Returns hk.ExponentialMovingAverage's new entries and its average, without the bias of the start."""
    counter = average["counter"] + 1
    hidden = average["hidden"] * DECAY + value * (1 - DECAY)
    return {"counter": counter, "hidden": hidden, "average": hidden / (1 - DECAY**counter)}


def table(sizes, sums):
    n = sizes.sum()
    return sums / ((sizes + 1e-5) / (n + CODES * 1e-5) * n)


def through(x, embeddings, codes):
    """Returns the quantized vectors, through which gradients pass."""
    return x + jax.lax.stop_gradient(embeddings.T[codes.argmax(-1)].reshape(x.shape) - x)


class VQVAE(hk.Module):
    def __init__(self, name=None):
        super().__init__(name)
        self.encoder = hk.Sequential([
            hk.Conv2D(WIDTH, 4, stride=2, name="enc_1"), jax.nn.relu,
            hk.Conv2D(WIDTH, 3, name="enc_2"), jax.nn.relu,
            hk.Conv2D(DIMENSION, 1, name="to_vq"),
        ])  # fmt: skip
        self.vq = hk.nets.VectorQuantizerEMA(DIMENSION, CODES, 0.25, DECAY)
        self.decoder = hk.Sequential([
            hk.Conv2D(WIDTH, 3, name="dec_1"), jax.nn.relu,
            hk.Conv2DTranspose(CHANNELS, 4, stride=2, name="dec_2"),
        ])  # fmt: skip

    def __call__(self, x, train):
        return self.decoder(self.vq(self.encoder(x), is_training=train)["quantize"])


def haiku(x, train):
    return VQVAE()(x, train)


class MovingAverage(nn.Module):
    shape: tuple

    @nn.compact
    def __call__(self, value, update):
        entries = {
            "counter": self.variable("vq", "counter", jnp.zeros, (), jnp.int32),
            "hidden": self.variable("vq", "hidden", jnp.zeros, self.shape),
            "average": self.variable("vq", "average", jnp.zeros, self.shape),
        }
        new = averaged({k: v.value for k, v in entries.items()}, value)
        if update and not self.is_initializing():
            for name, variable in entries.items():
                variable.value = new[name]
        return new["average"]


class Quantizer(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        embeddings = self.variable("vq", "embeddings", jnp.ones, (DIMENSION, CODES))
        flat, codes = quantize(x, embeddings.value)
        out = through(x, embeddings.value, codes)
        sizes = MovingAverage((CODES,), name="cluster_size")(codes.sum(0), train)
        sums = MovingAverage((DIMENSION, CODES), name="dw")(flat.T @ codes, train)
        if train and not self.is_initializing():
            embeddings.value = table(sizes, sums)
        return out


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(WIDTH, (4, 4), (2, 2))(x))
        x = nn.relu(nn.Conv(WIDTH, (3, 3))(x))
        x = nn.Conv(DIMENSION, (1, 1))(x)
        x = Quantizer(name="quantizer")(x, train)
        x = nn.relu(nn.Conv(WIDTH, (3, 3))(x))
        return nn.ConvTranspose(CHANNELS, (4, 4), (2, 2))(x)


class VQ(nnx.Variable):
    """What the quantizer learned without gradients."""


class Average(nnx.Module):
    def __init__(self, *shape):
        self.counter = VQ(jnp.zeros((), jnp.int32))
        self.hidden, self.average = VQ(jnp.zeros(shape)), VQ(jnp.zeros(shape))

    def __call__(self, value):
        names = ("counter", "hidden", "average")
        for name, new in averaged({name: getattr(self, name)[...] for name in names}, value).items():
            getattr(self, name)[...] = new
        return self.average[...]


class Codebook(nnx.Module):
    def __init__(self):
        self.embeddings = VQ(jnp.ones((DIMENSION, CODES)))
        self.cluster_size, self.dw = Average(CODES), Average(DIMENSION, CODES)

    def __call__(self, x, train):
        embeddings = self.embeddings[...]
        flat, codes = quantize(x, embeddings)
        if train:
            flat = jax.lax.stop_gradient(flat)
            self.embeddings[...] = table(self.cluster_size(codes.sum(0)), self.dw(flat.T @ codes))
        return through(x, embeddings, codes)


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.encoder = nnx.Sequential(
            nnx.Conv(CHANNELS, WIDTH, (4, 4), (2, 2), rngs=rngs), nnx.relu,
            nnx.Conv(WIDTH, WIDTH, (3, 3), rngs=rngs), nnx.relu,
            nnx.Conv(WIDTH, DIMENSION, (1, 1), rngs=rngs),
        )  # fmt: skip
        self.codebook = Codebook()
        self.decoder = nnx.Sequential(
            nnx.Conv(DIMENSION, WIDTH, (3, 3), rngs=rngs), nnx.relu,
            nnx.ConvTranspose(WIDTH, CHANNELS, (4, 4), (2, 2), rngs=rngs),
        )  # fmt: skip

    def __call__(self, x, train):
        return self.decoder(self.codebook(self.encoder(x), train))


def inputs():
    return (jax.random.normal(jax.random.key(0), (2, 8, 8, CHANNELS)),)


# The quantizer's entries are no layer that Flax has: rules say where they are.
OLD = "state/vqvae/~/vector_quantizer_ema"
PLACES = {
    "haiku": (f"{OLD}/embeddings", f"{OLD}/~/ema_{{m}}/{{k}}"),
    "linen": ("vq/quantizer/embeddings", "vq/quantizer/{m}/{k}"),
    "nnx": ("VQ/codebook/embeddings", "VQ/codebook/{m}/{k}"),
}
LINES: dict = {}


def rules(src, dst):
    return [{"src": a, "dst": b} for a, b in zip(PLACES[src], PLACES[dst], strict=True)]
