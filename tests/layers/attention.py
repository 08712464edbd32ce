"""Rows of attention: widths, value sizes, normalised queries, shared keys, caches."""

import flax.linen as nn
import haiku as hk
import jax.numpy as jnp
from flax import nnx

from tests.case import EVALUATION, HL, HN, LH, LN, NH, NL, Case, Inline, Parts, some


def heads(x):
    return hk.MultiHeadAttention(3, 2, w_init=some)(x, x, x)


def narrow(x):
    return hk.MultiHeadAttention(2, 4, value_size=3, model_size=6, w_init=some)(x, x, x)


def halves(x):
    """Queries of two features, keys and values of four."""
    return x[..., :2], x[..., 2:], x[..., 2:]


def cached(rngs):
    model = nnx.MultiHeadAttention(3, 6, qkv_features=6, decode=True, rngs=rngs)
    model.init_cache((2, 5, 6))
    return model


class Cached(nn.Module):
    """One step of decoding with a cache of five."""

    @nn.compact
    def __call__(self, x):
        attention = nn.MultiHeadDotProductAttention(3, qkv_features=6, out_features=6, decode=True, name="attention")
        if self.is_initializing():
            return attention(jnp.repeat(x, 5, axis=1))
        return attention(x)


def shared(path, times):
    return {
        "src": f"params/{path}",
        "dst": f"params/{path}",
        "ops": [{"op": "repeat", "times": times, "axis": -2}],
        "resume": "heads that shared their keys and values train apart",
    }


ATTENTION: dict[str, Case] = {
    "attention": Case(
        heads,
        nn.MultiHeadDotProductAttention(3, qkv_features=6, out_features=6),
        lambda rngs: nnx.MultiHeadAttention(3, 6, qkv_features=6, out_features=6, decode=False, rngs=rngs),
        x64=False,
    ),
    "attention, other width": Case(
        lambda x: hk.MultiHeadAttention(2, 4, w_init=some, model_size=5, with_bias=False)(x, x, x),
        nn.MultiHeadDotProductAttention(2, qkv_features=8, out_features=5, use_bias=False),
        lambda rngs: nnx.MultiHeadAttention(
            2, 6, qkv_features=8, out_features=5, use_bias=False, decode=False, rngs=rngs
        ),
        x64=False,
    ),
    "attention, normalised": Case(
        None,
        nn.MultiHeadDotProductAttention(2, qkv_features=8, out_features=6, normalize_qk=True),
        lambda rngs: nnx.MultiHeadAttention(
            2, 6, qkv_features=8, out_features=6, normalize_qk=True, decode=False, rngs=rngs
        ),
        x64=False,
    ),
    "attention, narrow values": Case(
        narrow,
        nn.MultiHeadDotProductAttention(2, qkv_features=8, out_features=6),
        lambda rngs: nnx.MultiHeadAttention(2, 6, qkv_features=8, out_features=6, decode=False, rngs=rngs),
        x64=False,
        refused=dict.fromkeys([LH, NH], "heads of 4 do not fit into heads of 3"),
    ),
    "attention, wide values": Case(
        lambda x: hk.MultiHeadAttention(2, 3, value_size=4, model_size=6, w_init=some)(x, x, x),
        nn.MultiHeadDotProductAttention(2, qkv_features=8, out_features=6),
        lambda rngs: nnx.MultiHeadAttention(2, 6, qkv_features=8, out_features=6, decode=False, rngs=rngs),
        refused=dict.fromkeys([HL, LH, HN, NH], "not wider: queries would have to be scaled"),
        x64=False,
    ),
    "attention, other keys": Case(
        lambda x: hk.MultiHeadAttention(3, 2, w_init=some)(*halves(x)),
        Inline(lambda m, x: nn.MultiHeadDotProductAttention(3, qkv_features=6, out_features=6)(*halves(x))),
        lambda rngs: Parts(
            lambda m, x: m.attention(*halves(x)),
            attention=nnx.MultiHeadAttention(
                3, 2, qkv_features=6, out_features=6, in_kv_features=4, decode=False, rngs=rngs
            ),
        ),
        x64=False,
    ),
    "attention, grouped queries": Case(
        None,
        nn.MultiHeadDotProductAttention(4, qkv_features=8, out_features=6),
        lambda rngs: nnx.MultiHeadAttention(4, 6, qkv_features=8, num_kv_heads=2, decode=False, rngs=rngs),
        x64=False,
        mapping={NL: {"rules": [shared("key/{k}", 2), shared("value/{k}", 2), *(
            {"src": f"params/{name}/{{k}}", "dst": f"params/{name}/{{k}}"} for name in ("query", "out")
        )]}, LN: {}},
        refused={LN: "Only NNX lets several heads share"},
        verdicts={NL: EVALUATION},
    ),
    "attention, grouped queries, no rules": Case(
        lambda x: hk.MultiHeadAttention(4, 2, model_size=6, w_init=some)(x, x, x),
        nn.MultiHeadDotProductAttention(4, qkv_features=8, out_features=6),
        lambda rngs: nnx.MultiHeadAttention(4, 6, qkv_features=8, num_kv_heads=2, decode=False, rngs=rngs),
        refused=dict.fromkeys([LN, NL, HN, NH], "Only NNX lets several heads share"),
        x64=False,
    ),
    "attention, cache": Case(
        None,
        Cached(),
        lambda rngs: Parts(lambda m, x: m.attention(x), attention=cached(rngs)),
        (2, 1, 6),
        x64=False,
    ),
}  # fmt: skip
