"""T5, encoder and decoder: Linen scanned along axis 1, Haiku unrolled with fused gates and the position table transposed"""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

VOCABULARY, LENGTH, DIM, HEADS, LAYERS, BUCKETS, HIDDEN = 32, 6, 16, 4, 2, 8, 16


def buckets(bidirectional):
    """The bucket of each pair of positions: one each nearby, wider ones further off."""
    distance = np.arange(LENGTH)[None] - np.arange(LENGTH)[:, None]
    half = BUCKETS // 2 if bidirectional else BUCKETS
    found = np.where(distance > 0, half, 0) if bidirectional else 0
    distance = np.abs(distance) if bidirectional else np.maximum(-distance, 0)
    near = half // 2
    with np.errstate(divide="ignore"):
        far = near + np.log(distance / near) / np.log(LENGTH / near) * (half - near)
    return found + np.where(distance < near, distance, np.minimum(np.maximum(far, 0).astype(int), half - 1))


class T5LayerNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (DIM,))
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6) * scale


class Attention(nn.Module):
    @nn.compact
    def __call__(self, q, kv, bias):
        def project(name):
            return nn.DenseGeneral((HEADS, DIM // HEADS), use_bias=False, name=name)

        query, key, value = project("query")(q), project("key")(kv), project("value")(kv)
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) + bias)
        x = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return nn.DenseGeneral(DIM, axis=(-2, -1), use_bias=False, name="out")(x)


class MlpBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        def dense(name, size=HIDDEN):
            return nn.Dense(size, use_bias=False, name=name)

        return dense("wo", DIM)(nn.gelu(dense("wi_0")(x)) * dense("wi_1")(x))


class RelativePositionBiases(nn.Module):
    bidirectional: bool

    @nn.compact
    def __call__(self):
        table = self.param("rel_embedding", nn.initializers.normal(), (HEADS, BUCKETS))
        return table[:, buckets(self.bidirectional)][None]


class EncoderLayer(nn.Module):
    @nn.compact
    def __call__(self, x, bias):
        y = T5LayerNorm(name="pre_attention_layer_norm")(x)
        x = x + Attention(name="attention")(y, y, bias)
        return x + MlpBlock(name="mlp")(T5LayerNorm(name="pre_mlp_layer_norm")(x)), None


class DecoderLayer(nn.Module):
    @nn.compact
    def __call__(self, y, encoded, bias):
        x = T5LayerNorm(name="pre_self_attention_layer_norm")(y)
        y = y + Attention(name="self_attention")(x, x, bias)
        x = T5LayerNorm(name="pre_cross_attention_layer_norm")(y)
        y = y + Attention(name="encoder_decoder_attention")(x, encoded, 0.0)
        return y + MlpBlock(name="mlp")(T5LayerNorm(name="pre_mlp_layer_norm")(y)), None


def scanned(layer, given):
    return nn.scan(
        layer, variable_axes={"params": 1}, split_rngs={"params": True}, length=LAYERS, in_axes=(nn.broadcast,) * given
    )


class T5(nn.Module):
    @nn.compact
    def __call__(self, encoder_tokens, decoder_tokens):
        embed = nn.Embed(VOCABULARY, DIM, name="token_embedder")
        x, _ = scanned(EncoderLayer, 1)(name="encoder")(
            embed(encoder_tokens), RelativePositionBiases(True, name="encoder_relpos_bias")()
        )
        encoded = T5LayerNorm(name="encoder_norm")(x)
        bias = RelativePositionBiases(False, name="decoder_relpos_bias")() + np.where(np.tri(LENGTH), 0, -1e10)
        y, _ = scanned(DecoderLayer, 2)(name="decoder")(embed(decoder_tokens), encoded, bias)
        return nn.Dense(VOCABULARY, use_bias=False, name="logits_dense")(T5LayerNorm(name="decoder_norm")(y))


def source():
    return T5()


def rms(x, name):
    return hk.RMSNorm(axis=-1, eps=1e-6, name=name)(x)


class SelfOrCross(hk.Module):
    def __call__(self, x, memory=None, bias=None):
        inner = hk.Linear(DIM, with_bias=False, name="q")(x)
        k, v = jnp.split(hk.Linear(2 * DIM, with_bias=False, name="kv")(x if memory is None else memory), 2, -1)
        q, k, v = (y.reshape(*y.shape[:2], HEADS, -1).swapaxes(1, 2) for y in (inner, k, v))
        scores = q @ k.swapaxes(-1, -2)
        weights = jax.nn.softmax(scores if bias is None else scores + bias)
        return hk.Linear(DIM, with_bias=False, name="o")((weights @ v).swapaxes(1, 2).reshape(x.shape))


def feed_forward(x, name):
    gate, up = jnp.split(hk.Linear(2 * HIDDEN, with_bias=False, name=f"{name}_wi")(x), 2, -1)
    return hk.Linear(DIM, with_bias=False, name=f"{name}_wo")(jax.nn.gelu(gate) * up)


def relative(name, bidirectional):
    return hk.Embed(BUCKETS, HEADS, name=name)(buckets(bidirectional)).transpose(2, 0, 1)


def target():
    def forward(encoder_tokens, decoder_tokens):
        shared = hk.Embed(VOCABULARY, DIM, name="shared")
        x, bias = shared(encoder_tokens), relative("encoder_bias", True)
        for i in range(LAYERS):
            x = x + SelfOrCross(f"encoder_{i}_attend")(rms(x, f"encoder_{i}_norm_0"), bias=bias)
            x = x + feed_forward(rms(x, f"encoder_{i}_norm_1"), f"encoder_{i}")
        memory = rms(x, "encoder_norm")
        bias = jnp.where(np.tri(LENGTH, dtype=bool), relative("decoder_bias", False), -1e30)
        x = shared(decoder_tokens)
        for i in range(LAYERS):
            x = x + SelfOrCross(f"decoder_{i}_self")(rms(x, f"decoder_{i}_norm_0"), bias=bias)
            x = x + SelfOrCross(f"decoder_{i}_cross")(rms(x, f"decoder_{i}_norm_1"), memory)
            x = x + feed_forward(rms(x, f"decoder_{i}_norm_2"), f"decoder_{i}")
        return hk.Linear(VOCABULARY, with_bias=False, name="lm_head")(rms(x, "decoder_norm"))

    return forward


def inputs():
    rng = np.random.default_rng(0)
    return tuple(rng.integers(0, VOCABULARY, (2, LENGTH)).astype(np.int32) for _ in range(2))


def truth(s):
    made = {
        "params/shared/embeddings": s["params/token_embedder/embedding"],
        "params/lm_head/w": s["params/logits_dense/kernel"],
    }
    for side in ("encoder", "decoder"):
        made[f"params/{side}_norm/scale"] = s[f"params/{side}_norm/scale"]
        made[f"params/{side}_bias/embeddings"] = s[f"params/{side}_relpos_bias/rel_embedding"].T
        parts = {"attention": "attend"} if side == "encoder" else {
            "self_attention": "self", "encoder_decoder_attention": "cross",
        }  # fmt: skip
        norms = [*(f"pre_{part}_layer_norm" for part in parts), "pre_mlp_layer_norm"]
        if side == "decoder":
            norms[1] = "pre_cross_attention_layer_norm"
        for i in range(LAYERS):
            layer = {
                p.removeprefix(f"params/{side}/"): x[:, i] for p, x in s.items() if p.startswith(f"params/{side}/")
            }
            for old, new in parts.items():
                to = f"params/{side}_{i}_{new}"
                q, k, v = (layer[f"{old}/{name}/kernel"].reshape(DIM, DIM) for name in ("query", "key", "value"))
                made |= {f"{to}/q/w": q, f"{to}/kv/w": jnp.concatenate([k, v], 1)}
                made[f"{to}/o/w"] = layer[f"{old}/out/kernel"].reshape(DIM, DIM)
            for n, norm in enumerate(norms):
                made[f"params/{side}_{i}_norm_{n}/scale"] = layer[f"{norm}/scale"]
            gates = [layer[f"mlp/wi_{n}/kernel"] for n in (0, 1)]
            made[f"params/{side}_{i}_wi/w"] = jnp.concatenate(gates, 1)
            made[f"params/{side}_{i}_wo/w"] = layer["mlp/wo/kernel"]
    return made
