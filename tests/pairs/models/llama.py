"""Llama-like decoder, grouped queries, rotations: NNX of einsums and `1 + scale`, Linen with projections fused by group"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

VOCABULARY, LENGTH, DIM, HEADS, GROUPS, HEAD, HIDDEN, LAYERS = 24, 6, 16, 4, 2, 4, 16, 2


def rope(x, base=10_000.0):
    """Rotates `[batch, length, heads, head]`: the first half of a head with the second."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] / base ** (np.arange(half) / half)
    sin, cos = (f(angles)[None, :, None, :].astype(x.dtype) for f in (np.sin, np.cos))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class Einsum(nnx.Module):
    def __init__(self, equation, shape, rngs):
        self.equation = equation
        self.w = nnx.Param(jax.random.normal(rngs.params(), shape))

    def __call__(self, x):
        return jnp.einsum(self.equation, x, self.w[...])


class RMSNorm(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.zeros(DIM))

    def __call__(self, x):
        return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * (1 + self.scale[...])


class Block(nnx.Module):
    def __init__(self, rngs):
        self.q_einsum = Einsum("btd,ndh->btnh", (HEADS, DIM, HEAD), rngs)
        self.kv_einsum = Einsum("bsd,ckdh->cbskh", (2, GROUPS, DIM, HEAD), rngs)
        self.attn_vec_einsum = Einsum("btnh,nhd->btd", (HEADS, HEAD, DIM), rngs)
        self.gating_einsum = Einsum("btd,cdf->cbtf", (2, DIM, HIDDEN), rngs)
        self.linear = Einsum("btf,fd->btd", (HIDDEN, DIM), rngs)
        self.pre_attention_norm, self.pre_ffw_norm = RMSNorm(), RMSNorm()

    def __call__(self, x):
        h = self.pre_attention_norm(x)
        q, (k, v) = rope(self.q_einsum(h)), self.kv_einsum(h)
        b, t = x.shape[:2]
        q, k = q.reshape(b, t, GROUPS, HEADS // GROUPS, HEAD) * HEAD**-0.5, rope(k)
        scores = jnp.einsum("btkgh,bskh->btkgs", q, k)
        scores = jnp.where(np.tri(t, dtype=bool)[:, None, None, :], scores, -2.3819763e38)
        mixed = jnp.einsum("btkgs,bskh->btkgh", jax.nn.softmax(scores), v)
        x = x + self.attn_vec_einsum(mixed.reshape(b, t, HEADS, HEAD))
        gate, up = self.gating_einsum(self.pre_ffw_norm(x))
        return x + self.linear(jax.nn.silu(gate) * up)


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.embedder = nnx.Param(jax.random.normal(rngs.params(), (VOCABULARY, DIM)))
        self.layers = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.final_norm = RMSNorm()

    def __call__(self, tokens):
        x = self.embedder[...][tokens] * DIM**0.5
        for layer in self.layers:
            x = layer(x)
        return self.final_norm(x) @ self.embedder[...].T


def source():
    return lambda: Decoder(nnx.Rngs(0))


class DecoderLayer(nn.Module):
    @nn.compact
    def __call__(self, x):
        b, t, _ = x.shape
        per = HEADS // GROUPS
        y = nn.RMSNorm(name="input_layernorm")(x)
        # By group: its queries, its key, its value.
        wqkv = nn.Dense(GROUPS * (per + 2) * HEAD, use_bias=False, name="wqkv")(y).reshape(b, t, GROUPS, per + 2, HEAD)
        q = rope(wqkv[..., :per, :].reshape(b, t, HEADS, HEAD))
        k, v = (jnp.repeat(z, per, axis=2) for z in (rope(wqkv[..., per, :]), wqkv[..., per + 1, :]))
        mask = nn.make_causal_mask(jnp.ones((b, t)))
        y = nn.dot_product_attention(q, k, v, mask=mask).reshape(b, t, -1)
        x = x + nn.Dense(DIM, use_bias=False, name="o_proj")(y)
        y = nn.RMSNorm(name="post_attention_layernorm")(x)
        up, gate = jnp.split(nn.Dense(2 * HIDDEN, use_bias=False, name="up_gate_proj")(y), 2, axis=-1)
        return x + nn.Dense(DIM, use_bias=False, name="down_proj")(up * nn.swish(gate))


class CausalLM(nn.Module):
    @nn.compact
    def __call__(self, input_ids):
        embed = nn.Embed(VOCABULARY, DIM, name="embed_tokens")
        x = embed(input_ids) * jnp.sqrt(DIM)
        for i in range(LAYERS):
            x = DecoderLayer(name=f"layers_{i}")(x)
        return embed.attend(nn.RMSNorm(name="norm")(x))


def target():
    return CausalLM()


def inputs():
    return (np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH)).astype(np.int32),)


def truth(s):
    made = {
        "params/embed_tokens/embedding": s["params/embedder"],
        "params/norm/scale": 1 + s["params/final_norm/scale"],
    }
    for i in range(LAYERS):
        old, new = f"params/layers/{i}", f"params/layers_{i}"
        made[f"{new}/input_layernorm/scale"] = 1 + s[f"{old}/pre_attention_norm/scale"]
        made[f"{new}/post_attention_layernorm/scale"] = 1 + s[f"{old}/pre_ffw_norm/scale"]
        q = s[f"{old}/q_einsum/w"].transpose(1, 0, 2).reshape(DIM, GROUPS, HEADS // GROUPS, HEAD)
        kv = s[f"{old}/kv_einsum/w"].transpose(2, 1, 0, 3)
        made[f"{new}/wqkv/kernel"] = jnp.concatenate([q, kv], 2).reshape(DIM, -1)
        made[f"{new}/o_proj/kernel"] = s[f"{old}/attn_vec_einsum/w"].reshape(-1, DIM)
        gate, up = s[f"{old}/gating_einsum/w"]
        made[f"{new}/up_gate_proj/kernel"] = jnp.concatenate([up, gate], 1)
        made[f"{new}/down_proj/kernel"] = s[f"{old}/linear/w"]
    return made
