"""A block of AlphaFold's kind: Haiku with weights by head, gates and triangles, NNX of Linears; two inputs and outputs"""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

SEQUENCES, RESIDUES, MSA, PAIR, HEADS, HEAD, OUTER = 3, 5, 8, 8, 2, 4, 4


def norm(x, name):
    return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True, name=name)(x)


class Attention(hk.Module):
    def __call__(self, q_data, m_data, nonbatched_bias):
        glorot, channels = hk.initializers.VarianceScaling(1.0, "fan_avg", "uniform"), q_data.shape[-1]

        def weight(name, shape):
            return hk.get_parameter(name, shape, q_data.dtype, init=glorot)

        q = jnp.einsum("bqa,ahc->bqhc", q_data, weight("query_w", (channels, HEADS, HEAD))) * HEAD ** (-0.5)
        k = jnp.einsum("bka,ahc->bkhc", m_data, weight("key_w", (channels, HEADS, HEAD)))
        v = jnp.einsum("bka,ahc->bkhc", m_data, weight("value_w", (channels, HEADS, HEAD)))
        logits = jnp.einsum("bqhc,bkhc->bhqk", q, k) + jnp.expand_dims(nonbatched_bias, 0)
        avg = jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(logits), v)
        gate = jnp.einsum("bqc,chv->bqhv", q_data, weight("gating_w", (channels, HEADS, HEAD)))
        avg *= jax.nn.sigmoid(gate + weight("gating_b", (HEADS, HEAD)))
        out = jnp.einsum("bqhc,hco->bqo", avg, weight("output_w", (HEADS, HEAD, channels)))
        return out + weight("output_b", (1, channels))[0]


class RowAttention(hk.Module):
    def __call__(self, msa, pair):
        msa, pair = norm(msa, "query_norm"), norm(pair, "feat_2d_norm")
        weights = hk.get_parameter("feat_2d_weights", (PAIR, HEADS), init=hk.initializers.RandomNormal())
        return Attention(name="attention")(msa, msa, jnp.einsum("qkc,ch->hqk", pair, weights))


class Transition(hk.Module):
    def __call__(self, x):
        h = jax.nn.relu(hk.Linear(4 * x.shape[-1], name="transition1")(norm(x, "input_layer_norm")))
        return hk.Linear(x.shape[-1], name="transition2")(h)


class OuterProductMean(hk.Module):
    def __call__(self, msa):
        msa = norm(msa, "layer_norm_input")
        left = hk.Linear(OUTER, name="left_projection")(msa)
        right = hk.Linear(OUTER, name="right_projection")(msa)
        w = hk.get_parameter("output_w", (OUTER, OUTER, PAIR), init=hk.initializers.RandomNormal())
        b = hk.get_parameter("output_b", (PAIR,), init=jnp.zeros)
        act = jnp.einsum("sic,sje->ijce", left, right)
        return (jnp.einsum("ijce,cef->ijf", act, w) + b) / SEQUENCES


class TriangleMultiplication(hk.Module):
    def __call__(self, pair):
        act = norm(pair, "left_norm_input")
        projected = hk.Linear(2 * PAIR, name="projection")(act) * jax.nn.sigmoid(hk.Linear(2 * PAIR, name="gate")(act))
        left, right = jnp.split(projected, 2, -1)
        out = hk.Linear(PAIR, name="output_projection")(norm(jnp.einsum("ikc,jkc->ijc", left, right), "center_norm"))
        return out * jax.nn.sigmoid(hk.Linear(PAIR, name="gating_linear")(act))


def source():
    def forward(msa, pair):
        msa += RowAttention(name="msa_row_attention_with_pair_bias")(msa, pair)
        msa += Transition(name="msa_transition")(msa)
        pair += OuterProductMean(name="outer_product_mean")(msa)
        pair += TriangleMultiplication(name="triangle_multiplication_outgoing")(pair)
        pair += Transition(name="pair_transition")(pair)
        return msa, pair

    return forward


def ln(rngs):
    return nnx.LayerNorm(PAIR, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


def linear(n_in, n_out, rngs, bias=True):
    return nnx.Linear(n_in, n_out, use_bias=bias, rngs=rngs)


class FeedForward(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.up, self.down = ln(rngs), linear(PAIR, 4 * PAIR, rngs), linear(4 * PAIR, PAIR, rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(self.norm(x))))


class PairBiased(nnx.Module):
    def __init__(self, rngs):
        self.norm_m, self.norm_z = ln(rngs), ln(rngs)
        self.qkv, self.bias = linear(MSA, 3 * MSA, rngs, False), linear(PAIR, HEADS, rngs, False)
        self.gate, self.out = linear(MSA, MSA, rngs), linear(MSA, MSA, rngs)

    def __call__(self, m, z):
        m = self.norm_m(m)
        q, k, v = (x.reshape(SEQUENCES, RESIDUES, HEADS, HEAD) for x in jnp.split(self.qkv(m), 3, -1))
        bias = jnp.moveaxis(self.bias(self.norm_z(z)), -1, 0)
        weights = jax.nn.softmax(jnp.einsum("sqhd,skhd->shqk", q, k) / HEAD**0.5 + bias)
        mixed = jnp.einsum("shqk,skhd->sqhd", weights, v).reshape(m.shape)
        return self.out(mixed * nnx.sigmoid(self.gate(m)))


class Outer(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.ab, self.out = ln(rngs), linear(MSA, 2 * OUTER, rngs), linear(OUTER * OUTER, PAIR, rngs)

    def __call__(self, m):
        a, b = jnp.split(self.ab(self.norm(m)), 2, -1)
        outer = jnp.einsum("sic,sjd->ijcd", a, b).reshape(RESIDUES, RESIDUES, -1)
        return self.out(outer) / SEQUENCES


class Triangle(nnx.Module):
    def __init__(self, rngs):
        self.norm_in, self.norm_out = ln(rngs), ln(rngs)
        self.a, self.b, self.gate_a, self.gate_b, self.gate, self.out = (linear(PAIR, PAIR, rngs) for _ in range(6))

    def __call__(self, z):
        z = self.norm_in(z)
        a, b = self.a(z) * nnx.sigmoid(self.gate_a(z)), self.b(z) * nnx.sigmoid(self.gate_b(z))
        return nnx.sigmoid(self.gate(z)) * self.out(self.norm_out(jnp.einsum("ikc,jkc->ijc", a, b)))


class Evoformer(nnx.Module):
    def __init__(self, rngs):
        self.attend, self.outer, self.triangle = PairBiased(rngs), Outer(rngs), Triangle(rngs)
        self.ff_m, self.ff_z = FeedForward(rngs), FeedForward(rngs)

    def __call__(self, m, z):
        m = m + self.attend(m, z)
        m = m + self.ff_m(m)
        z = z + self.outer(m)
        z = z + self.triangle(z)
        return m, z + self.ff_z(z)


def target():
    return lambda: Evoformer(nnx.Rngs(0))


def inputs():
    rng = np.random.default_rng(0)
    shapes = (SEQUENCES, RESIDUES, MSA), (RESIDUES, RESIDUES, PAIR)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def truth(s):
    row, outer = "params/msa_row_attention_with_pair_bias", "params/outer_product_mean"
    triangle, attention = "params/triangle_multiplication_outgoing", f"{row}/attention"
    three = [s[f"{attention}/{name}_w"].reshape(MSA, MSA) for name in ("query", "key", "value")]
    sides = [[s[f"{outer}/{side}_projection/{leaf}"] for side in ("left", "right")] for leaf in ("w", "b")]
    made = {
        "params/attend/qkv/kernel": jnp.concatenate(three, 1),
        "params/attend/bias/kernel": s[f"{row}/feat_2d_weights"],
        "params/attend/gate/kernel": s[f"{attention}/gating_w"].reshape(MSA, MSA),
        "params/attend/gate/bias": s[f"{attention}/gating_b"].reshape(MSA),
        "params/attend/out/kernel": s[f"{attention}/output_w"].reshape(MSA, MSA),
        "params/attend/out/bias": s[f"{attention}/output_b"][0],
        "params/outer/ab/kernel": jnp.concatenate(sides[0], 1),
        "params/outer/ab/bias": jnp.concatenate(sides[1]),
        "params/outer/out/kernel": s[f"{outer}/output_w"].reshape(-1, PAIR),
        "params/outer/out/bias": s[f"{outer}/output_b"],
    }
    for name, new in (("projection", ("a", "b")), ("gate", ("gate_a", "gate_b"))):
        for leaf, to in (("w", "kernel"), ("b", "bias")):
            for part, x in zip(new, jnp.split(s[f"{triangle}/{name}/{leaf}"], 2, -1), strict=True):
                made[f"params/triangle/{part}/{to}"] = x
    linears = {"triangle/out": f"{triangle}/output_projection", "triangle/gate": f"{triangle}/gating_linear"}
    norms = {"attend/norm_m": f"{row}/query_norm", "attend/norm_z": f"{row}/feat_2d_norm"}
    norms |= {"outer/norm": f"{outer}/layer_norm_input", "triangle/norm_in": f"{triangle}/left_norm_input"}
    norms["triangle/norm_out"] = f"{triangle}/center_norm"
    for new, old in (("ff_m", "params/msa_transition"), ("ff_z", "params/pair_transition")):
        norms[f"{new}/norm"] = f"{old}/input_layer_norm"
        linears |= {f"{new}/up": f"{old}/transition1", f"{new}/down": f"{old}/transition2"}
    for new, old in linears.items():
        made |= {f"params/{new}/kernel": s[f"{old}/w"], f"params/{new}/bias": s[f"{old}/b"]}
    for new, old in norms.items():
        made |= {f"params/{new}/scale": s[f"{old}/scale"], f"params/{new}/bias": s[f"{old}/offset"]}
    return made
