"""100 layers, unrolled in Haiku with automatic names and unrolled in Linen with names that sort in another order"""

import flax.linen as nn
import haiku as hk
import jax
import numpy as np

DIM, LAYERS = 8, 100
SLOW = True


def source():
    def forward(x):
        for _ in range(LAYERS):
            h = hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)
            x = x + hk.Linear(DIM, name="out")(jax.nn.gelu(hk.Linear(DIM, name="in")(h)))
        return hk.Linear(DIM, name="head")(x)

    return forward


class Deep(nn.Module):
    @nn.compact
    def __call__(self, x):
        head = nn.Dense(DIM)
        for i in range(LAYERS):
            y = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=f"layer_{i}_norm")(x)
            y = nn.gelu(nn.Dense(DIM, name=f"layer_{i}_up")(y))
            x = x + nn.Dense(DIM, name=f"layer_{i}_down")(y)
        return head(x)


def target():
    return Deep()


def inputs():
    return (np.random.default_rng(0).normal(size=(4, DIM)).astype(np.float32),)


def truth(s):
    made = {"params/Dense_0/kernel": s["params/head/w"], "params/Dense_0/bias": s["params/head/b"]}
    for i in range(LAYERS):
        suffix = f"_{i}" if i else ""
        for new, old in (("up", "in"), ("down", "out")):
            made[f"params/layer_{i}_{new}/kernel"] = s[f"params/{old}{suffix}/w"]
            made[f"params/layer_{i}_{new}/bias"] = s[f"params/{old}{suffix}/b"]
        made[f"params/layer_{i}_norm/scale"] = s[f"params/layer_norm{suffix}/scale"]
        made[f"params/layer_{i}_norm/bias"] = s[f"params/layer_norm{suffix}/offset"]
    return made
