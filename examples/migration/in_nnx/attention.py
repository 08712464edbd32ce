"""A small causal transformer, in NNX."""

# region block
import functools

import jax
import jax.numpy as jnp
from flax import nnx

LayerNorm = functools.partial(  # as Haiku's
    nnx.LayerNorm, epsilon=1e-5, use_fast_variance=False
)


class Block(nnx.Module):
    def __init__(self, features, heads, rngs):
        self.norm1 = LayerNorm(features, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=heads,
            in_features=features,
            decode=False,
            rngs=rngs,
        )
        self.norm2 = LayerNorm(features, rngs=rngs)
        self.up = nnx.Linear(features, 2 * features, rngs=rngs)
        self.down = nnx.Linear(2 * features, features, rngs=rngs)

    def __call__(self, x, mask):
        y = self.norm1(x)
        x = x + self.attention(y, mask=mask)
        y = self.norm2(x)
        y = self.up(y)
        y = jax.nn.gelu(y)
        return x + self.down(y)


# endregion


# region model
class Transformer(nnx.Module):
    def __init__(self, vocab, features, heads, length, rngs):
        self.embed = nnx.Embed(vocab, features, rngs=rngs)
        self.position = nnx.Embed(length, features, rngs=rngs)
        self.block = Block(features, heads, rngs)
        self.norm = LayerNorm(features, rngs=rngs)
        self.logits = nnx.Linear(features, vocab, rngs=rngs)

    def __call__(self, tokens, start=0):
        t = tokens.shape[-1]
        x = self.embed(tokens) + self.position(start + jnp.arange(t))
        decode = self.block.attention.decode
        mask = None if decode else nnx.make_causal_mask(tokens)
        x = self.block(x, mask)
        x = self.norm(x)
        return self.logits(x)


# endregion


# region create
model = Transformer(24, 12, heads=2, length=6, rngs=nnx.Rngs(0))
# endregion

# region look
attention = model.block.attention
assert attention.query.kernel.shape == (12, 2, 6)
assert attention.query.bias.shape == (2, 6)
assert attention.out.kernel.shape == (2, 6, 12)
# endregion


# region call
@nnx.jit
def predict(model, tokens):
    return model(tokens)


# endregion


# region decode
def decoder_of(model, shape):
    decoder = nnx.view(model, decode=True)
    features = decoder.embed.features
    decoder.block.attention.init_cache((*shape, features))
    return decoder


@nnx.jit
def step(decoder, token, position):
    return decoder(token, position)


def decode(model, tokens):
    decoder = decoder_of(model, tokens.shape)
    logits = [step(decoder, tokens[:, i : i + 1], i) for i in range(tokens.shape[1])]
    return jnp.concatenate(logits, axis=1)


# endregion
