"""VQ-VAE: Haiku's `hk.nets.VectorQuantizer`, Linen's with the codebook as rows and distances summed up; four outputs"""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

HIDDEN, CODES, DIM, COST = 16, 16, 8, 0.25


class ResidualStack(hk.Module):
    def __call__(self, x):
        for i in range(2):
            h = hk.Conv2D(DIM, 3, name=f"res3x3_{i}")(jax.nn.relu(x))
            x = x + hk.Conv2D(HIDDEN, 1, name=f"res1x1_{i}")(jax.nn.relu(h))
        return jax.nn.relu(x)


def source():
    def forward(images):
        h = jax.nn.relu(hk.Conv2D(HIDDEN // 2, 4, stride=2, name="enc_1")(images))
        h = jax.nn.relu(hk.Conv2D(HIDDEN, 4, stride=2, name="enc_2")(h))
        h = ResidualStack(name="enc_stack")(hk.Conv2D(HIDDEN, 3, name="enc_3")(h))
        z = hk.Conv2D(DIM, 1, name="to_vq")(h)
        vq = hk.nets.VectorQuantizer(DIM, CODES, COST)(z, is_training=False)
        h = ResidualStack(name="dec_stack")(hk.Conv2D(HIDDEN, 3, name="dec_1")(vq["quantize"]))
        h = jax.nn.relu(hk.Conv2DTranspose(HIDDEN // 2, 4, stride=2, name="dec_2")(h))
        image = hk.Conv2DTranspose(3, 4, stride=2, name="dec_3")(h)
        return image, vq["loss"], vq["perplexity"], vq["encoding_indices"]

    return forward


class Quantizer(nn.Module):
    @nn.compact
    def __call__(self, z):
        codebook = self.param("codebook", nn.initializers.lecun_uniform(), (CODES, DIM))
        flat = z.reshape(-1, DIM)
        distance = jnp.sum(jnp.square(flat[:, None] - codebook[None]), -1)
        ids = jnp.argmin(distance, -1)
        q = codebook[ids].reshape(z.shape)
        loss = jnp.mean((q - jax.lax.stop_gradient(z)) ** 2) + COST * jnp.mean((jax.lax.stop_gradient(q) - z) ** 2)
        usage = jnp.mean(jax.nn.one_hot(ids, CODES, dtype=z.dtype), 0)
        perplexity = jnp.exp(-jnp.sum(usage * jnp.log(usage + 1e-10)))
        return z + jax.lax.stop_gradient(q - z), loss, perplexity, ids.reshape(z.shape[:-1])


class ResBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Conv(HIDDEN, (1, 1))(nn.relu(nn.Conv(DIM, (3, 3))(nn.relu(x))))


class Half(nn.Module):
    """Runs layers in turn, with a residual block wherever one is named."""

    layers: tuple

    @nn.compact
    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class VQVAE(nn.Module):
    def setup(self):
        twice = dict(kernel_size=(4, 4), strides=(2, 2))
        self.decoder = Half((
            nn.Conv(HIDDEN, (3, 3)), ResBlock(), ResBlock(), nn.relu, nn.ConvTranspose(HIDDEN // 2, **twice), nn.relu,
            nn.ConvTranspose(3, **twice),
        ))  # fmt: skip
        self.encoder = Half((
            nn.Conv(HIDDEN // 2, **twice), nn.relu, nn.Conv(HIDDEN, **twice), nn.relu, nn.Conv(HIDDEN, (3, 3)),
            ResBlock(), ResBlock(), nn.relu, nn.Conv(DIM, (1, 1)),
        ))  # fmt: skip
        self.vq = Quantizer()

    def __call__(self, images):
        q, loss, perplexity, ids = self.vq(self.encoder(images))
        return self.decoder(q), loss, perplexity, ids


def target():
    return VQVAE()


def inputs():
    return (np.random.default_rng(0).normal(scale=3, size=(2, 16, 16, 3)).astype(np.float32),)


def truth(s):
    made = {"params/vq/codebook": s["params/vector_quantizer/embeddings"].T}
    names = {"enc_1": "encoder/layers_0", "enc_2": "encoder/layers_2", "enc_3": "encoder/layers_4"}
    names |= {"to_vq": "encoder/layers_8", "dec_1": "decoder/layers_0"}
    names |= {"dec_2": "decoder/layers_4", "dec_3": "decoder/layers_6"}
    for side, first in (("enc", 5), ("dec", 1)):
        for i in (0, 1):
            block = f"{'encoder' if side == 'enc' else 'decoder'}/layers_{first + i}"
            names |= {f"{side}_stack/res{k}x{k}_{i}": f"{block}/Conv_{n}" for n, k in enumerate((1, 3))}
    for old, new in names.items():
        w = s[f"params/{old}/w"]
        made[f"params/{new}/kernel"] = w.swapaxes(-1, -2) if old in ("dec_2", "dec_3") else w
        made[f"params/{new}/bias"] = s[f"params/{old}/b"]
    return made
