"""Vision transformer: Linen with named encoder blocks, NNX with one fused projection for queries, keys and values"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

DIM, HEADS, LAYERS, PATCH, SIDE, CLASSES = 16, 4, 2, 4, 16, 8
TOKENS = (SIDE // PATCH) ** 2 + 1


class MlpBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.gelu(nn.Dense(2 * DIM)(x), approximate=False)
        return nn.Dense(DIM)(y)


class Encoder1DBlock(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        x = nn.LayerNorm()(inputs)
        x = nn.MultiHeadDotProductAttention(HEADS, deterministic=True)(x, x)
        x = x + inputs
        return x + MlpBlock()(nn.LayerNorm()(x))


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + self.param("pos_embedding", nn.initializers.normal(0.02), (1, TOKENS, DIM))
        for i in range(LAYERS):
            x = Encoder1DBlock(name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class VisionTransformer(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(DIM, (PATCH, PATCH), strides=(PATCH, PATCH), padding="VALID", name="embedding")(images)
        x = x.reshape(x.shape[0], -1, DIM)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, DIM))
        x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], axis=1)
        return nn.Dense(CLASSES, name="head")(Encoder(name="Transformer")(x)[:, 0])


def source():
    return VisionTransformer()


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.qkv = nnx.Linear(DIM, 3 * DIM, rngs=rngs)
        self.proj = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, HEADS, DIM // HEADS).transpose(2, 0, 3, 1, 4)
        weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) * (DIM // HEADS) ** -0.5, axis=-1)
        return self.proj((weights @ v).transpose(0, 2, 1, 3).reshape(b, t, DIM))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(DIM, rngs=rngs), nnx.LayerNorm(DIM, rngs=rngs)
        self.attn = Attention(rngs)
        self.fc1, self.fc2 = nnx.Linear(DIM, 2 * DIM, rngs=rngs), nnx.Linear(2 * DIM, DIM, rngs=rngs)

    def __call__(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(jax.nn.gelu(self.fc1(self.norm2(x)), approximate=False))


class ViT(nnx.Module):
    def __init__(self, rngs):
        self.patch = nnx.Linear(PATCH * PATCH * 3, DIM, rngs=rngs)
        self.pos = nnx.Param(jax.random.normal(rngs.params(), (TOKENS, DIM)))
        self.cls_token = nnx.Param(jnp.zeros(DIM))
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(DIM, rngs=rngs)
        self.head = nnx.Linear(DIM, CLASSES, rngs=rngs)

    def __call__(self, images):
        b, side = images.shape[0], SIDE // PATCH
        x = images.reshape(b, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, side * side, -1)
        cls = jnp.broadcast_to(self.cls_token[...], (b, 1, DIM))
        x = jnp.concatenate([cls, self.patch(x)], axis=1) + self.pos[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


def target():
    return lambda: ViT(nnx.Rngs(0))


def inputs():
    return (np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32),)


def truth(s):
    made = {
        "params/patch/kernel": s["params/embedding/kernel"].reshape(-1, DIM),
        "params/patch/bias": s["params/embedding/bias"],
        "params/pos": s["params/Transformer/pos_embedding"][0],
        "params/cls_token": s["params/cls"].reshape(-1),
    }
    names = {"norm": "Transformer/encoder_norm", "head": "head"}
    for i in range(LAYERS):
        old, new = f"Transformer/encoderblock_{i}", f"blocks/{i}"
        attention = f"params/{old}/MultiHeadDotProductAttention_0"
        three = [s[f"{attention}/{name}/kernel"].reshape(DIM, DIM) for name in ("query", "key", "value")]
        made[f"params/{new}/attn/qkv/kernel"] = jnp.concatenate(three, 1)
        three = [s[f"{attention}/{name}/bias"].reshape(DIM) for name in ("query", "key", "value")]
        made[f"params/{new}/attn/qkv/bias"] = jnp.concatenate(three)
        made[f"params/{new}/attn/proj/kernel"] = s[f"{attention}/out/kernel"].reshape(DIM, DIM)
        made[f"params/{new}/attn/proj/bias"] = s[f"{attention}/out/bias"]
        names |= {f"{new}/norm{n + 1}": f"{old}/LayerNorm_{n}" for n in (0, 1)}
        names |= {f"{new}/fc{n + 1}": f"{old}/MlpBlock_0/Dense_{n}" for n in (0, 1)}
    for new, old in names.items():
        weight = "scale" if "norm" in new else "kernel"
        made |= {f"params/{new}/{leaf}": s[f"params/{old}/{leaf}"] for leaf in (weight, "bias")}
    return made
