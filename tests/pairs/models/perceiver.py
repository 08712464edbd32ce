"""Perceiver: Haiku with blocks that share weights, NNX with them under `jax.lax.scan`; latents, cross attention"""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

PIXELS, DIM, LATENTS, HEADS, LAYERS, BLOCKS, CLASSES = 9, 16, 8, 4, 2, 3, 5


def layer_norm(x):
    return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True)(x)


class Attention(hk.Module):
    def __call__(self, inputs_q, inputs_kv):
        def heads(x):
            return jnp.reshape(hk.Linear(DIM)(x), (*x.shape[:2], HEADS, DIM // HEADS))

        q, k, v = heads(inputs_q), heads(inputs_kv), heads(inputs_kv)
        attention = jax.nn.softmax(jnp.einsum("bthd,bThd->bhtT", q, k) * (DIM // HEADS) ** -0.5)
        return hk.Linear(DIM)(jnp.reshape(jnp.einsum("bhtT,bThd->bthd", attention, v), inputs_q.shape))


class MLP(hk.Module):
    def __call__(self, x):
        return hk.Linear(DIM)(jax.nn.gelu(hk.Linear(DIM)(x)))


class SelfAttention(hk.Module):
    def __call__(self, x):
        normed = layer_norm(x)
        x += Attention()(normed, normed)
        return x + MLP()(layer_norm(x))


class CrossAttention(hk.Module):
    def __call__(self, inputs_q, inputs_kv):
        x = inputs_q + Attention()(layer_norm(inputs_q), layer_norm(inputs_kv))
        return x + MLP()(layer_norm(x))


class Perceiver(hk.Module):
    def __init__(self, name=None):
        super().__init__(name)
        self.cross_attend = CrossAttention()
        self.self_attends = [SelfAttention() for _ in range(LAYERS)]
        self.decode = CrossAttention(name="decoder_cross")

    def __call__(self, pixels):
        def trainable(name, length):
            value = hk.get_parameter(name, (length, DIM), init=hk.initializers.TruncatedNormal(0.02))
            return jnp.broadcast_to(value, (pixels.shape[0], length, DIM))

        z = self.cross_attend(trainable("pos_embs", LATENTS), pixels)
        for _ in range(BLOCKS):
            for attend in self.self_attends:
                z = attend(z)
        out = self.decode(trainable("output_query", 1), z)
        return hk.Linear(CLASSES, name="classes")(out[:, 0])


def source():
    return lambda pixels: Perceiver()(pixels)


class Layer(nnx.Module):
    """Attention of one array over another, or over itself, with a feed-forward part behind."""

    def __init__(self, cross, rngs):
        self.ffn = nnx.Sequential(nnx.Linear(DIM, DIM, rngs=rngs), nnx.gelu, nnx.Linear(DIM, DIM, rngs=rngs))
        self.ln_ffn, self.ln_x = (nnx.LayerNorm(DIM, epsilon=1e-5, rngs=rngs) for _ in range(2))
        self.ln_memory = nnx.LayerNorm(DIM, epsilon=1e-5, rngs=rngs) if cross else None
        self.to_kv, self.to_q = nnx.Linear(DIM, 2 * DIM, rngs=rngs), nnx.Linear(DIM, DIM, rngs=rngs)
        self.to_out = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x, memory=None):
        h = self.ln_x(x)
        memory = h if self.ln_memory is None else self.ln_memory(memory)
        k, v = jnp.split(self.to_kv(memory), 2, -1)
        q, k, v = (y.reshape(*y.shape[:2], HEADS, -1).swapaxes(1, 2) for y in (self.to_q(h), k, v))
        weights = jax.nn.softmax(q @ k.swapaxes(2, 3) / jnp.sqrt(DIM // HEADS).astype(x.dtype))
        x = x + self.to_out((weights @ v).swapaxes(1, 2).reshape(x.shape))
        return x + self.ffn(self.ln_ffn(x))


class PerceiverIO(nnx.Module):
    def __init__(self, rngs):
        self.query, self.latents = (nnx.Param(jnp.zeros((n, DIM))) for n in (1, LATENTS))
        self.encoder, self.decoder = Layer(True, rngs), Layer(True, rngs)
        self.process = nnx.List([Layer(False, rngs) for _ in range(LAYERS)])
        self.head = nnx.Linear(DIM, CLASSES, rngs=rngs)

    def __call__(self, pixels):
        batch = pixels.shape[0]
        z = self.encoder(jnp.tile(self.latents[...], (batch, 1, 1)), pixels)

        def block(z, _):
            for layer in self.process:
                z = layer(z)
            return z, None

        z, _ = jax.lax.scan(block, z, length=BLOCKS)
        out = self.decoder(jnp.tile(self.query[...], (batch, 1, 1)), z)
        return jnp.squeeze(self.head(out), 1)


def target():
    return lambda: PerceiverIO(nnx.Rngs(0))


def inputs():
    return (np.random.default_rng(0).normal(size=(2, PIXELS, DIM)).astype(np.float32),)


def truth(s):
    made = {
        "params/latents": s["params/perceiver/pos_embs"],
        "params/query": s["params/perceiver/output_query"],
        "params/head/kernel": s["params/perceiver/classes/w"],
        "params/head/bias": s["params/perceiver/classes/b"],
    }
    layers = {"encoder": "~/cross_attention", "decoder": "~/decoder_cross"}
    layers |= {f"process/{i}": f"~/self_attention{f'_{i}' if i else ''}" for i in range(LAYERS)}
    for new, old in layers.items():
        old, new = f"params/perceiver/{old}", f"params/{new}"
        norms = ("ln_x", "ln_ffn") if "process" in new else ("ln_x", "ln_memory", "ln_ffn")
        for i, norm in enumerate(norms):
            made[f"{new}/{norm}/scale"] = s[f"{old}/layer_norm{f'_{i}' if i else ''}/scale"]
            made[f"{new}/{norm}/bias"] = s[f"{old}/layer_norm{f'_{i}' if i else ''}/offset"]
        for leaf, name in (("kernel", "w"), ("bias", "b")):
            q, k, v, out = (s[f"{old}/attention/linear{f'_{i}' if i else ''}/{name}"] for i in range(4))
            made |= {f"{new}/to_q/{leaf}": q, f"{new}/to_kv/{leaf}": jnp.concatenate([k, v], -1)}
            made[f"{new}/to_out/{leaf}"] = out
            made[f"{new}/ffn/layers/0/{leaf}"] = s[f"{old}/mlp/linear_1/{name}"]  # the outer one is made first
            made[f"{new}/ffn/layers/2/{leaf}"] = s[f"{old}/mlp/linear/{name}"]
    return made
