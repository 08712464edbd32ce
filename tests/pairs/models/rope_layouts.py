"""Rotations of neighbours, and of halves: plain JAX over stacked layers, NNX unrolled; heads are permuted within"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bridges._infer._function import Function

VOCABULARY, LENGTH, DIM, HEADS, LAYERS, HIDDEN = 16, 6, 16, 2, 3, 32
HEAD = DIM // HEADS
X64 = False  # `nnx.Embed` gives float32


def norm(w, x):
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * w


def rotate(x):
    """Rotates neighbours: `[length, heads, head]` as complex numbers."""
    pairs = x.reshape(*x.shape[:-1], HEAD // 2, 2)
    angles = jnp.arange(x.shape[0])[:, None] * 10_000.0 ** (-np.arange(0, HEAD, 2) / HEAD)
    cos, sin = jnp.cos(angles)[:, None].astype(x.dtype), jnp.sin(angles)[:, None].astype(x.dtype)
    real, imaginary = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1)
    return turned.reshape(x.shape)


def layer(x, w):
    h = norm(w["attention_norm"], x)
    q, k, v = (jnp.einsum("td,hkd->thk", h, w[name]) for name in ("wq", "wk", "wv"))
    scores = jnp.einsum("qhk,shk->hqs", rotate(q), rotate(k)) / np.sqrt(HEAD)
    scores = scores + jnp.triu(jnp.full(scores.shape[1:], -jnp.inf, scores.dtype), 1)
    x = x + jnp.einsum("hqs,shk,hkd->qd", jax.nn.softmax(scores, -1), v, w["wo"])
    h = norm(w["ffn_norm"], x)
    return x + (jax.nn.silu(h @ w["w1"]) * (h @ w["w3"])) @ w["w2"], None


def forward(params, tokens):
    def one(sequence):
        x, _ = jax.lax.scan(layer, params["tok_embeddings"][sequence], params["layers"])
        return norm(params["norm"], x) @ params["output"]

    return jax.vmap(one)(tokens)


def source():
    shapes = {name: (HEADS, HEAD, DIM) for name in ("wq", "wk", "wv", "wo")}
    shapes |= {
        "w1": (DIM, HIDDEN),
        "w3": (DIM, HIDDEN),
        "w2": (HIDDEN, DIM),
        "attention_norm": (DIM,),
        "ffn_norm": (DIM,),
    }
    params = {"layers": {name: jax.ShapeDtypeStruct((LAYERS, *shape), np.float32) for name, shape in shapes.items()}}
    shapes = {"tok_embeddings": (VOCABULARY, DIM), "norm": (DIM,), "output": (DIM, VOCABULARY)}
    return Function(forward, params | {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()})


def rotate_half(x):
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-b, a], axis=-1)


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nnx.Linear(DIM, DIM, use_bias=False, rngs=rngs) for _ in range(4)
        )

    def __call__(self, x, cos, sin):
        b, t, _ = x.shape
        q, k, v = (
            f(x).reshape(b, t, HEADS, HEAD).transpose(0, 2, 1, 3) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (y * cos + rotate_half(y) * sin for y in (q, k))
        scores = jnp.matmul(q, k.swapaxes(2, 3)) * HEAD**-0.5
        weights = jax.nn.softmax(jnp.where(np.tri(t, dtype=bool), scores, -1e30))
        return self.o_proj(jnp.matmul(weights, v).transpose(0, 2, 1, 3).reshape(b, t, DIM))


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.self_attn = Attention(rngs)
        self.gate_proj, self.up_proj = (nnx.Linear(DIM, HIDDEN, use_bias=False, rngs=rngs) for _ in range(2))
        self.down_proj = nnx.Linear(HIDDEN, DIM, use_bias=False, rngs=rngs)
        self.input_layernorm, self.post_attention_layernorm = (
            nnx.RMSNorm(DIM, epsilon=1e-5, rngs=rngs) for _ in range(2)
        )

    def __call__(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(nnx.silu(self.gate_proj(h)) * self.up_proj(h))


class Model(nnx.Module):
    def __init__(self, rngs):
        self.embed_tokens = nnx.Embed(VOCABULARY, DIM, rngs=rngs)
        self.layers = nnx.List([Layer(rngs) for _ in range(LAYERS)])
        self.norm = nnx.RMSNorm(DIM, epsilon=1e-5, rngs=rngs)
        self.lm_head = nnx.Linear(DIM, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, ids):
        x = self.embed_tokens(ids)
        angles = np.outer(np.arange(ids.shape[1]), 1e4 ** (-np.arange(0, HEAD, 2) / HEAD))
        cos, sin = (np.tile(f(angles), 2).astype(x.dtype) for f in (np.cos, np.sin))
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))


def target():
    return lambda: Model(nnx.Rngs(0))


def inputs():
    return (np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH)).astype(np.int32),)


def truth(s):
    made = {
        "params/embed_tokens/embedding": s["tok_embeddings"],
        "params/norm/scale": s["norm"],
        "params/lm_head/kernel": s["output"],
    }
    for i in range(LAYERS):
        w = {name: s[f"layers/{name}"][i] for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3")}
        to = f"params/layers/{i}"
        for name in ("wq", "wk"):  # neighbours apart: all first ones of a head, then all second ones
            w[name] = w[name].reshape(HEADS, HEAD // 2, 2, DIM).transpose(0, 2, 1, 3)
        for name in ("wq", "wk", "wv"):
            made[f"{to}/self_attn/{name[1]}_proj/kernel"] = w[name].reshape(DIM, DIM).T
        made[f"{to}/self_attn/o_proj/kernel"] = w["wo"].reshape(DIM, DIM)
        for new, old in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            made[f"{to}/{new}_proj/kernel"] = w[old]
        made[f"{to}/input_layernorm/scale"] = s["layers/attention_norm"][i]
        made[f"{to}/post_attention_layernorm/scale"] = s["layers/ffn_norm"][i]
    return made
