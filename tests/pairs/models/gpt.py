"""GPT: Haiku's `hk.MultiHeadAttention` and names by order, Linen with `c_attn` fused and a tied, transposed embedding"""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

VOCABULARY, LENGTH, DIM, HEADS, LAYERS = 32, 8, 16, 4, 3


def layer_norm(x):
    return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True)(x)


class Transformer(hk.Module):
    def __call__(self, h):
        init = hk.initializers.VarianceScaling(2 / LAYERS)
        mask = np.tril(np.ones((1, 1, LENGTH, LENGTH)))
        for _ in range(LAYERS):
            attend = hk.MultiHeadAttention(HEADS, DIM // HEADS, w_init=init, model_size=DIM)
            normed = layer_norm(h)
            h = h + attend(normed, normed, normed, mask=mask)
            dense = hk.Sequential([hk.Linear(4 * DIM, w_init=init), jax.nn.gelu, hk.Linear(DIM, w_init=init)])
            h = h + dense(layer_norm(h))
        return layer_norm(h)


def source():
    def forward(tokens):
        embed = hk.Embed(VOCABULARY, DIM)
        positions = hk.get_parameter("positional_embeddings", [LENGTH, DIM], init=hk.initializers.TruncatedNormal(0.02))
        h = Transformer()(embed(tokens) + positions)
        return h @ embed.embeddings.T

    return forward


class Block(nn.Module):
    def setup(self):
        self.ln_1, self.ln_2 = (nn.LayerNorm(epsilon=1e-5, use_fast_variance=False) for _ in range(2))
        self.c_attn, self.c_proj = nn.Dense(3 * DIM), nn.Dense(DIM)
        self.c_fc, self.mlp_proj = nn.Dense(4 * DIM), nn.Dense(DIM)

    def attend(self, x):
        batch, length, _ = x.shape
        q, k, v = (y.reshape(batch, length, HEADS, -1) for y in jnp.split(self.c_attn(x), 3, axis=-1))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q / np.sqrt(DIM // HEADS), k)
        scores = jnp.where(np.tri(length, dtype=bool), scores, jnp.finfo(x.dtype).min)
        return self.c_proj(jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v).reshape(x.shape))

    def __call__(self, x):
        x = x + self.attend(self.ln_1(x))
        return x + self.mlp_proj(nn.gelu(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    def setup(self):
        self.h = [Block() for _ in range(LAYERS)]
        self.ln_f = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
        self.wte = nn.Embed(VOCABULARY, DIM)
        self.wpe = nn.Embed(LENGTH, DIM)

    def __call__(self, idx):
        x = self.wte(idx) + self.wpe(jnp.arange(idx.shape[1]))[None]
        for block in self.h:
            x = block(x)
        return self.wte.attend(self.ln_f(x))


def target():
    return GPT()


def inputs():
    return (np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH)).astype(np.int32),)


def truth(s):
    made = {
        "params/wte/embedding": s["params/embed/embeddings"],
        "params/wpe/embedding": s["params/~/positional_embeddings"],
    }

    def put(new, old, weight):
        names = ("w", "b") if weight == "kernel" else ("scale", "offset")
        for to, name in zip((weight, "bias"), names, strict=True):
            made[f"params/{new}/{to}"] = s[f"params/transformer/{old}/{name}"]

    def numbered(name, i):
        return f"{name}_{i}" if i else name

    for i in range(LAYERS):
        attention = f"params/transformer/{numbered('multi_head_attention', i)}"
        for to, name in (("kernel", "w"), ("bias", "b")):
            three = [s[f"{attention}/{part}/{name}"] for part in ("query", "key", "value")]
            made[f"params/h_{i}/c_attn/{to}"] = jnp.concatenate(three, -1)
            made[f"params/h_{i}/c_proj/{to}"] = s[f"{attention}/linear/{name}"]
        put(f"h_{i}/ln_1", numbered("layer_norm", 2 * i), "scale")
        put(f"h_{i}/ln_2", numbered("layer_norm", 2 * i + 1), "scale")
        put(f"h_{i}/c_fc", numbered("linear", 2 * i), "kernel")
        put(f"h_{i}/mlp_proj", numbered("linear", 2 * i + 1), "kernel")
    put("ln_f", numbered("layer_norm", 2 * LAYERS), "scale")
    return made
