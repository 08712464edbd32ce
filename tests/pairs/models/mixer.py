"""MLP-Mixer: Linen of blocks over tokens and channels, Equinox over one channels-first image under `jax.vmap`"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bridges._infer._function import Function

SIDE, PATCH, DIM, BLOCKS, CLASSES = 16, 4, 16, 2, 8  # as many tokens as channels
TOKENS = (SIDE // PATCH) ** 2


class Mlp(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(self.hidden)(x)))


class MixerBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
        x = x + jnp.swapaxes(Mlp(DIM, name="token_mixing")(y), 1, 2)
        return x + Mlp(2 * DIM, name="channel_mixing")(nn.LayerNorm()(x))


class MlpMixer(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(DIM, (PATCH, PATCH), strides=(PATCH, PATCH), name="stem")(images)
        x = x.reshape(x.shape[0], -1, DIM)
        for _ in range(BLOCKS):
            x = MixerBlock()(x)
        x = nn.LayerNorm(name="pre_head_layer_norm")(x)
        return nn.Dense(CLASSES, name="head")(jnp.mean(x, axis=1))


def source():
    return MlpMixer()


class Block(eqx.Module):
    channel_norm: eqx.nn.LayerNorm
    channel_mlp: eqx.nn.MLP
    token_norm: eqx.nn.LayerNorm
    token_mlp: eqx.nn.MLP

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.channel_mlp = eqx.nn.MLP(DIM, DIM, 2 * DIM, 1, activation=jax.nn.gelu, key=one)
        self.token_mlp = eqx.nn.MLP(TOKENS, TOKENS, DIM, 1, activation=jax.nn.gelu, key=two)
        self.channel_norm, self.token_norm = (eqx.nn.LayerNorm(DIM, eps=1e-6) for _ in range(2))

    def __call__(self, y):  # [channels, tokens]
        normed = jax.vmap(self.token_norm, in_axes=1, out_axes=1)(y)
        y = y + jax.vmap(self.token_mlp)(normed)
        normed = jax.vmap(self.channel_norm, in_axes=1, out_axes=1)(y)
        return y + jax.vmap(self.channel_mlp, in_axes=1, out_axes=1)(normed)


class Mixer(eqx.Module):
    patchify: eqx.nn.Conv2d
    blocks: list
    norm: eqx.nn.LayerNorm
    readout: eqx.nn.Linear

    def __init__(self, key):
        first, last, *keys = jax.random.split(key, 2 + BLOCKS)
        self.patchify = eqx.nn.Conv2d(3, DIM, PATCH, stride=PATCH, key=first)
        self.blocks = [Block(key) for key in keys]
        self.norm = eqx.nn.LayerNorm(DIM, eps=1e-6)
        self.readout = eqx.nn.Linear(DIM, CLASSES, key=last)

    def __call__(self, image):
        y = self.patchify(image).reshape(DIM, -1)
        for block in self.blocks:
            y = block(y)
        y = jax.vmap(self.norm, in_axes=1, out_axes=1)(y)
        return self.readout(jnp.mean(y, axis=1))


def target():
    params, static = eqx.partition(eqx.filter_eval_shape(Mixer, jax.random.key(0)), lambda x: hasattr(x, "shape"))
    return Function(lambda params, images: jax.vmap(eqx.combine(params, static))(jnp.moveaxis(images, -1, 1)), params)


def inputs():
    return (np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32),)


def truth(s):
    made = {
        "patchify/weight": s["params/stem/kernel"].transpose(3, 2, 0, 1),
        "patchify/bias": s["params/stem/bias"].reshape(-1, 1, 1),
        "norm/weight": s["params/pre_head_layer_norm/scale"],
        "norm/bias": s["params/pre_head_layer_norm/bias"],
        "readout/weight": s["params/head/kernel"].T,
        "readout/bias": s["params/head/bias"],
    }
    for i in range(BLOCKS):
        for n, part in enumerate(("token", "channel")):
            norm = f"params/MixerBlock_{i}/LayerNorm_{n}"
            made[f"blocks/{i}/{part}_norm/weight"] = s[f"{norm}/scale"]
            made[f"blocks/{i}/{part}_norm/bias"] = s[f"{norm}/bias"]
            for k in (0, 1):
                dense = f"params/MixerBlock_{i}/{part}_mixing/Dense_{1 - k}"  # the outer one is made first
                made[f"blocks/{i}/{part}_mlp/layers/{k}/weight"] = s[f"{dense}/kernel"].T
                made[f"blocks/{i}/{part}_mlp/layers/{k}/bias"] = s[f"{dense}/bias"]
    return made
