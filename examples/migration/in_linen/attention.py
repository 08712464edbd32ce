"""A small causal transformer, in Linen."""

# region block
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

LayerNorm = functools.partial(  # as Haiku's
    nn.LayerNorm, epsilon=1e-5, use_fast_variance=False
)


class Block(nn.Module):
    heads: int
    norm: Any = LayerNorm
    decode: bool = False

    @nn.compact
    def __call__(self, x, mask):
        features = x.shape[-1]
        attention = nn.MultiHeadDotProductAttention(
            num_heads=self.heads,
            decode=self.decode,
            name="attention",
        )
        y = self.norm(name="norm1")(x)
        x = x + attention(y, mask=mask)
        y = self.norm(name="norm2")(x)
        y = nn.Dense(2 * features, name="up")(y)
        y = jax.nn.gelu(y)
        return x + nn.Dense(features, name="down")(y)


# endregion


# region model
class Transformer(nn.Module):
    vocab: int
    features: int
    heads: int
    length: int
    norm: Any = LayerNorm
    decode: bool = False

    @nn.compact
    def __call__(self, tokens, start=0):
        t = tokens.shape[-1]
        embed = nn.Embed(self.vocab, self.features, name="embed")
        position = nn.Embed(self.length, self.features, name="position")
        x = embed(tokens) + position(start + jnp.arange(t))
        mask = None if self.decode else nn.make_causal_mask(tokens)
        block = Block(self.heads, self.norm, self.decode, name="block")
        x = block(x, mask)
        x = self.norm(name="norm")(x)
        return nn.Dense(self.vocab, name="logits")(x)


# endregion


# region create
model = Transformer(24, 12, heads=2, length=6)
sample = jnp.zeros((2, 6), jnp.int32)
params = model.init(jax.random.key(0), sample)["params"]
# endregion

# region look
attention = params["block"]["attention"]
assert attention["query"]["kernel"].shape == (12, 2, 6)
assert attention["query"]["bias"].shape == (2, 6)
assert attention["out"]["kernel"].shape == (2, 6, 12)
# endregion


# region call
def predict(params, tokens):
    return model.apply({"params": params}, tokens)


# endregion


# region decode
decoder = model.clone(decode=True)


def empty_cache(tokens):  # as long as the tokens
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), tokens)
    return jax.tree.map(jnp.zeros_like, shapes["cache"])


@jax.jit
def step(params, cache, token, position):
    variables = {"params": params, "cache": cache}
    logits, changed = decoder.apply(variables, token, position, mutable=["cache"])
    return logits, changed["cache"]


def decode(params, tokens):
    cache = empty_cache(tokens)
    logits = []
    for i in range(tokens.shape[1]):
        y, cache = step(params, cache, tokens[:, i : i + 1], i)
        logits.append(y)
    return jnp.concatenate(logits, axis=1)


# endregion
