"""Diffusion U-Net with a time embedding: NNX with all modules made first, Haiku with each made where it is used"""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

WIDTHS, TIME, GROUPS = (8, 16), 16, 4


def sinusoid(t):
    angles = t[:, None].astype(jnp.float32) * np.exp(-np.log(1e4) * np.arange(TIME // 2) / (TIME // 2))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


class ResBlock(nnx.Module):
    def __init__(self, n_in, n_out, rngs):
        self.norms = nnx.List([nnx.GroupNorm(n, GROUPS, epsilon=1e-5, rngs=rngs) for n in (n_in, n_out)])
        self.convs = nnx.List([nnx.Conv(n, n_out, (3, 3), rngs=rngs) for n in (n_in, n_out)])
        self.time = nnx.Linear(TIME, n_out, rngs=rngs)
        self.skip = nnx.Conv(n_in, n_out, (1, 1), rngs=rngs) if n_in != n_out else lambda x: x

    def __call__(self, x, t):
        h = self.convs[0](nnx.silu(self.norms[0](x)))
        h = h + self.time(nnx.silu(t))[:, None, None, :]
        return self.skip(x) + self.convs[1](nnx.silu(self.norms[1](h)))


class UNet(nnx.Module):
    def __init__(self, rngs):
        a, b = WIDTHS
        self.time_mlp = nnx.List([nnx.Linear(TIME, TIME, rngs=rngs) for _ in range(2)])
        self.conv_in, self.conv_out = nnx.Conv(3, a, (3, 3), rngs=rngs), nnx.Conv(a, 3, (3, 3), rngs=rngs)
        self.downs = nnx.List([ResBlock(a, a, rngs), ResBlock(a, b, rngs)])
        self.downsample = nnx.Conv(a, a, (3, 3), strides=2, rngs=rngs)
        self.ups = nnx.List([ResBlock(2 * b, b, rngs), ResBlock(2 * a, a, rngs)])
        self.upsample = nnx.ConvTranspose(b, a, (2, 2), strides=(2, 2), rngs=rngs)
        self.mid = ResBlock(b, b, rngs)
        self.norm_out = nnx.GroupNorm(a, GROUPS, epsilon=1e-5, rngs=rngs)

    def __call__(self, x, time):
        t = self.time_mlp[1](nnx.silu(self.time_mlp[0](sinusoid(time))))
        first = self.downs[0](self.conv_in(x), t)
        second = self.downs[1](self.downsample(first), t)
        x = self.mid(second, t)
        x = self.ups[0](jnp.concatenate([x, second], -1), t)
        x = self.ups[1](jnp.concatenate([self.upsample(x), first], -1), t)
        return self.conv_out(nnx.silu(self.norm_out(x)))


def source():
    return lambda: UNet(nnx.Rngs(0))


def normalise(x):
    return jax.nn.silu(hk.GroupNorm(GROUPS)(x))


class Residual(hk.Module):
    def __init__(self, width, name=None):
        super().__init__(name)
        self.width = width

    def __call__(self, x, emb):
        shift = hk.Linear(self.width, name="emb")(jax.nn.silu(emb))
        h = hk.Conv2D(self.width, 3)(normalise(x))
        h += jnp.expand_dims(shift, (1, 2))
        h = hk.Conv2D(self.width, 3)(normalise(h))
        if x.shape[-1] != self.width:
            x = hk.Conv2D(self.width, 1, name="residual")(x)
        return h + x


def target():
    def forward(x, time):
        emb = hk.nets.MLP([TIME, TIME], activation=jax.nn.silu, name="time")(sinusoid(time))
        a, b = WIDTHS
        stack = [Residual(a, "down_0")(hk.Conv2D(a, 3, name="stem")(x), emb)]
        stack.append(Residual(b, "down_1")(hk.Conv2D(a, 3, stride=2, name="shrink")(stack[-1]), emb))
        x = Residual(b, "bottom")(stack[-1], emb)
        x = Residual(b, "up_1")(jnp.concatenate([x, stack.pop()], -1), emb)
        x = hk.Conv2DTranspose(a, 2, stride=2, name="grow")(x)
        x = Residual(a, "up_0")(jnp.concatenate([x, stack.pop()], -1), emb)
        return hk.Conv2D(3, 3, name="readout")(normalise(x))

    return forward


def inputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 8, 8, 3)).astype(np.float32), np.array([3, 40], np.int32)


def truth(s):
    made = {}
    linear = {"stem": "conv_in", "shrink": "downsample", "readout": "conv_out"}
    linear |= {f"time/~/linear_{i}": f"time_mlp/{i}" for i in (0, 1)}
    norms = {"group_norm": "norm_out"}
    for new, old in {
        "down_0": "downs/0",
        "down_1": "downs/1",
        "bottom": "mid",
        "up_1": "ups/0",
        "up_0": "ups/1",
    }.items():
        linear |= {
            f"{new}/emb": f"{old}/time",
            f"{new}/conv2_d": f"{old}/convs/0",
            f"{new}/conv2_d_1": f"{old}/convs/1",
        }
        norms |= {f"{new}/group_norm": f"{old}/norms/0", f"{new}/group_norm_1": f"{old}/norms/1"}
        if f"params/{old}/skip/kernel" in s:
            linear[f"{new}/residual"] = f"{old}/skip"
    for new, old in linear.items():
        made |= {f"params/{new}/w": s[f"params/{old}/kernel"], f"params/{new}/b": s[f"params/{old}/bias"]}
    for new, old in norms.items():
        made |= {f"params/{new}/scale": s[f"params/{old}/scale"], f"params/{new}/offset": s[f"params/{old}/bias"]}
    made["params/grow/w"] = s["params/upsample/kernel"].swapaxes(-1, -2)
    made["params/grow/b"] = s["params/upsample/bias"]
    return made
