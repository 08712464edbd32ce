"""BERT: Linen with setup and one Dense a projection, NNX with `nnx.MultiHeadAttention`; three integer inputs, norms last"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

VOCABULARY, LENGTH, DIM, HEADS, LAYERS, HIDDEN = 24, 6, 16, 4, 2, 16
X64 = False  # `nnx.MultiHeadAttention` takes its softmax in float32


class SelfAttention(nn.Module):
    def setup(self):
        self.query, self.key, self.value = nn.Dense(DIM), nn.Dense(DIM), nn.Dense(DIM)

    def __call__(self, x, attention_mask):
        shape = (*x.shape[:2], HEADS, DIM // HEADS)
        value, query, key = self.value(x).reshape(shape), self.query(x).reshape(shape), self.key(x).reshape(shape)
        bias = jnp.where(attention_mask[:, None, None, :] > 0, 0.0, jnp.finfo(x.dtype).min).astype(x.dtype)
        weights = nn.dot_product_attention_weights(query, key, bias=bias)
        return jnp.einsum("...hqk,...khd->...qhd", weights, value).reshape(x.shape)


class Output(nn.Module):
    @nn.compact
    def __call__(self, x, residual, deterministic=True):
        x = nn.Dropout(0.1)(nn.Dense(DIM, name="dense")(x), deterministic=deterministic)
        return nn.LayerNorm(epsilon=1e-12, name="LayerNorm")(x + residual)


class Attention(nn.Module):
    def setup(self):
        self.self, self.output = SelfAttention(), Output()

    def __call__(self, x, attention_mask):
        return self.output(self.self(x, attention_mask), x)


class Layer(nn.Module):
    def setup(self):
        self.attention, self.intermediate, self.output = Attention(), nn.Dense(HIDDEN), Output()

    def __call__(self, x, attention_mask):
        x = self.attention(x, attention_mask)
        return self.output(nn.gelu(self.intermediate(x), approximate=False), x)


class Bert(nn.Module):
    def setup(self):
        self.word_embeddings = nn.Embed(VOCABULARY, DIM)
        self.position_embeddings = nn.Embed(2 * LENGTH, DIM)
        self.token_type_embeddings = nn.Embed(2, DIM)
        self.LayerNorm = nn.LayerNorm(epsilon=1e-12)
        self.layer = [Layer() for _ in range(LAYERS)]
        self.pooler = nn.Dense(DIM)

    def __call__(self, input_ids, token_type_ids, attention_mask):
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        x = self.LayerNorm(x + self.position_embeddings(jnp.arange(input_ids.shape[1])[None]))
        for layer in self.layer:
            x = layer(x, attention_mask)
        return x, nn.tanh(self.pooler(x[:, 0]))


def source():
    return Bert()


class EncoderLayer(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(HEADS, DIM, decode=False, dropout_rate=0.1, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(DIM, epsilon=1e-12, rngs=rngs) for _ in range(2)])
        self.up, self.down = nnx.Linear(DIM, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, DIM, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x, mask):
        x = self.norms[0](x + self.dropout(self.attention(x, mask=mask)))
        h = self.down(jax.nn.gelu(self.up(x), approximate=False))
        return self.norms[1](x + self.dropout(h))


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.segment = nnx.Embed(2, DIM, rngs=rngs)
        self.position = nnx.Param(jnp.zeros((2 * LENGTH, DIM)))
        self.token = nnx.Embed(VOCABULARY, DIM, rngs=rngs)
        self.norm = nnx.LayerNorm(DIM, epsilon=1e-12, rngs=rngs)
        self.layers = nnx.List([EncoderLayer(rngs) for _ in range(LAYERS)])
        self.pool = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, tokens, segments, mask):
        x = self.norm(self.token(tokens) + self.position[...][: tokens.shape[1]] + self.segment(segments))
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :] != 0)
        return x, jnp.tanh(self.pool(x[:, 0, :]))


def target():
    def made():
        model = Encoder(nnx.Rngs(0))
        model.eval()
        return model

    return made


def inputs():
    rng = np.random.default_rng(0)
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], np.int32)
    tokens, segments = rng.integers(0, VOCABULARY, (2, LENGTH)), rng.integers(0, 2, (2, LENGTH))
    return tokens.astype(np.int32), segments.astype(np.int32), mask


def truth(s):
    made = {
        "params/token/embedding": s["params/word_embeddings/embedding"],
        "params/segment/embedding": s["params/token_type_embeddings/embedding"],
        "params/position": s["params/position_embeddings/embedding"],
    }
    names = {"norm": "LayerNorm", "pool": "pooler"}
    for i in range(LAYERS):
        old, new = f"layer_{i}", f"layers/{i}"
        for part in ("query", "key", "value"):
            for leaf, shape in (("kernel", (DIM, HEADS, -1)), ("bias", (HEADS, -1))):
                x = s[f"params/{old}/attention/self/{part}/{leaf}"]
                made[f"params/{new}/attention/{part}/{leaf}"] = x.reshape(shape)
        out = f"params/{old}/attention/output/dense"
        made[f"params/{new}/attention/out/kernel"] = s[f"{out}/kernel"].reshape(HEADS, -1, DIM)
        made[f"params/{new}/attention/out/bias"] = s[f"{out}/bias"]
        names |= {f"{new}/norms/0": f"{old}/attention/output/LayerNorm", f"{new}/norms/1": f"{old}/output/LayerNorm"}
        names |= {f"{new}/up": f"{old}/intermediate", f"{new}/down": f"{old}/output/dense"}
    for new, old in names.items():
        weight = "scale" if "norm" in new else "kernel"
        made |= {f"params/{new}/{leaf}": s[f"params/{old}/{leaf}"] for leaf in (weight, "bias")}
    return made
