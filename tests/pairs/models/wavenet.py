"""WaveNet: Haiku's causal, dilated convolutions with filter and gate in one, NNX with two and explicit padding"""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

CHANNELS, CLASSES, DILATIONS = 8, 16, (1, 2, 4, 1, 2, 4)


def source():
    def forward(audio):
        x = hk.Conv1D(CHANNELS, 2, padding=hk.pad.causal, name="input")(audio)
        skips = []
        for dilation in DILATIONS:
            both = hk.Conv1D(2 * CHANNELS, 2, rate=dilation, padding=hk.pad.causal, name="dilated")(x)
            a, b = jnp.split(both, 2, axis=-1)
            gated = jnp.tanh(a) * jax.nn.sigmoid(b)
            skips.append(hk.Linear(CHANNELS, name="skip")(gated))
            x = x + hk.Linear(CHANNELS, name="residual")(gated)
        out = jax.nn.relu(hk.Linear(CHANNELS, name="post")(jax.nn.relu(sum(skips))))
        return hk.Linear(CLASSES, name="logits")(out)

    return forward


class ResidualLayer(nnx.Module):
    def __init__(self, dilation, rngs):
        def conv(size, dilation=1):
            return nnx.Conv(
                CHANNELS,
                CHANNELS,
                (size,),
                kernel_dilation=(dilation,),
                padding=[((size - 1) * dilation, 0)],
                rngs=rngs,
            )

        self.to_residual, self.to_skip = conv(1), conv(1)
        self.gate, self.filter = conv(2, dilation), conv(2, dilation)

    def __call__(self, x):
        h = nnx.sigmoid(self.gate(x)) * nnx.tanh(self.filter(x))
        return x + self.to_residual(h), self.to_skip(h)


class WaveNet(nnx.Module):
    def __init__(self, rngs):
        self.end = nnx.List([nnx.Conv(CHANNELS, n, (1,), rngs=rngs) for n in (CHANNELS, CLASSES)])
        self.stack = nnx.List([ResidualLayer(dilation, rngs) for dilation in DILATIONS])
        self.start = nnx.Conv(1, CHANNELS, (2,), padding="CAUSAL", rngs=rngs)

    def __call__(self, audio):
        x, total = self.start(audio), 0
        for layer in self.stack:
            x, skip = layer(x)
            total = total + skip
        for layer in self.end:
            total = layer(nnx.relu(total))
        return total


def target():
    return lambda: WaveNet(nnx.Rngs(0))


def inputs():
    return (np.random.default_rng(0).normal(size=(2, 24, 1)).astype(np.float32),)


def truth(s):
    made = {"params/start/kernel": s["params/input/w"], "params/start/bias": s["params/input/b"]}
    names = {"end/0": "post", "end/1": "logits"}
    for i in range(len(DILATIONS)):
        suffix = f"_{i}" if i else ""
        names |= {f"stack/{i}/to_{part}": part + suffix for part in ("residual", "skip")}
        for leaf, name in (("kernel", "w"), ("bias", "b")):
            a, b = jnp.split(s[f"params/dilated{suffix}/{name}"], 2, -1)
            made |= {f"params/stack/{i}/filter/{leaf}": a, f"params/stack/{i}/gate/{leaf}": b}
    for new, old in names.items():
        made[f"params/{new}/kernel"] = s[f"params/{old}/w"][None]
        made[f"params/{new}/bias"] = s[f"params/{old}/b"]
    return made
