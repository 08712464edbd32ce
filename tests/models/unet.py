"""A U-Net: GroupNorm, strided convolutions down, transposed ones up, skip connections."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

WIDTHS, CHANNELS, GROUPS = (4, 8), 3, 2


class ConvBlock(hk.Module):
    def __init__(self, width, name=None):
        super().__init__(name)
        self.width = width

    def __call__(self, x):
        for i in range(2):
            x = hk.Conv2D(self.width, 3, name=f"conv{i}")(x)
            x = jax.nn.silu(hk.GroupNorm(GROUPS, name=f"norm{i}")(x))
        return x


def haiku(x, train):
    skips = []
    for width in WIDTHS:
        x = ConvBlock(width, name="encoder")(x)
        skips.append(x)
        x = hk.Conv2D(width, 3, stride=2, name="down")(x)
    x = ConvBlock(2 * WIDTHS[-1], name="middle")(x)
    for width, skip in zip(WIDTHS[::-1], skips[::-1], strict=True):
        x = hk.Conv2DTranspose(width, 2, stride=2, name="up")(x)
        x = ConvBlock(width, name="decoder")(jnp.concatenate([x, skip], -1))
    return hk.Conv2D(CHANNELS, 1, name="out")(x)


class Double(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.silu(nn.GroupNorm(GROUPS, epsilon=1e-5, use_fast_variance=False)(nn.Conv(self.width, (3, 3))(x)))
        return x


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        skips = []
        for i, width in enumerate(WIDTHS):
            x = Double(width, name=f"down_{i}")(x)
            skips.append(x)
            x = nn.Conv(width, (3, 3), (2, 2), name=f"pool_{i}")(x)
        x = Double(2 * WIDTHS[-1], name="bottleneck")(x)
        for i, (width, skip) in enumerate(zip(WIDTHS[::-1], skips[::-1], strict=True)):
            x = nn.ConvTranspose(width, (2, 2), (2, 2), name=f"unpool_{i}")(x)
            x = Double(width, name=f"up_{i}")(jnp.concatenate([x, skip], -1))
        return nn.Conv(CHANNELS, (1, 1), name="head")(x)


class Twice(nnx.Module):
    def __init__(self, channels, width, rngs):
        self.convs = nnx.List([nnx.Conv(n, width, (3, 3), rngs=rngs) for n in (channels, width)])
        self.norms = nnx.List(
            [nnx.GroupNorm(width, num_groups=GROUPS, epsilon=1e-5, use_fast_variance=False, rngs=rngs) for _ in "ab"]
        )

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.silu(norm(conv(x)))
        return x


class NNX(nnx.Module):
    def __init__(self, rngs):
        narrow, wide = WIDTHS
        self.encoders = nnx.List([Twice(CHANNELS, narrow, rngs), Twice(narrow, wide, rngs)])
        self.downs = nnx.List([nnx.Conv(n, n, (3, 3), (2, 2), rngs=rngs) for n in WIDTHS])
        self.middle = Twice(wide, 2 * wide, rngs)
        self.ups = nnx.List([nnx.ConvTranspose(2 * n, n, (2, 2), (2, 2), rngs=rngs) for n in (wide, narrow)])
        self.decoders = nnx.List([Twice(2 * n, n, rngs) for n in (wide, narrow)])
        self.out = nnx.Conv(narrow, CHANNELS, (1, 1), rngs=rngs)

    def __call__(self, x, train):
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            skips.append(encoder(x))
            x = down(skips[-1])
        x = self.middle(x)
        for up, decoder, skip in zip(self.ups, self.decoders, skips[::-1], strict=True):
            x = decoder(jnp.concatenate([up(x), skip], -1))
        return self.out(x)


def inputs():
    return (jax.random.normal(jax.random.key(0), (2, 8, 12, CHANNELS)),)


LINES: dict = {}
