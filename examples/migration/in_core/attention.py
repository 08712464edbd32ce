"""A small causal transformer, in the core: Linen's layers as parts."""

# region block
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

import bridges as br

LayerNorm = functools.partial(  # as Haiku's
    br.FlaxModule, nn.LayerNorm, epsilon=1e-5, use_fast_variance=False
)


class Block(br.Module):
    def __init__(self, features, heads, decode):
        self.norm1 = LayerNorm()
        self.attention = br.FlaxModule(
            nn.MultiHeadDotProductAttention,
            num_heads=heads,
            decode=decode,
        )
        self.norm2 = LayerNorm()
        self.up = br.FlaxModule(nn.Dense, 2 * features)
        self.down = br.FlaxModule(nn.Dense, features)

    def __call__(self, x, mask):
        y = self.norm1(x)
        x = x + self.attention(y, mask=mask)
        y = self.norm2(x)
        y = self.up(y)
        y = jax.nn.gelu(y)
        return x + self.down(y)


# endregion


# region model
class Transformer(br.Module):
    decode: bool = False

    def __init__(self, vocab, features, heads, length):
        self.embed = br.FlaxModule(nn.Embed, vocab, features)
        self.position = br.FlaxModule(nn.Embed, length, features)
        self.block = Block(features, heads, self.decode)
        self.norm = LayerNorm()
        self.logits = br.FlaxModule(nn.Dense, vocab)

    def __call__(self, tokens, start=0):
        t = tokens.shape[-1]
        x = self.embed(tokens) + self.position(start + jnp.arange(t))
        mask = None if self.decode else nn.make_causal_mask(tokens)
        x = self.block(x, mask)
        x = self.norm(x)
        return self.logits(x)


# endregion


# region create
model = Transformer(24, 12, heads=2, length=6)
sample = jnp.zeros((2, 6), jnp.int32)
state = br.init(model)({}, sample, seed=0)
# endregion

# region look
attention = "transformer/block/attention/params"
assert state[attention + "/query/kernel"].shape == (12, 2, 6)
assert state[attention + "/query/bias"].shape == (2, 6)
assert state[attention + "/out/kernel"].shape == (2, 6, 12)
# endregion


# region call
def predict(state, tokens):
    _, logits = br.pure(model)(state, tokens)
    return logits


# endregion


# region decode
decoder = Transformer(24, 12, heads=2, length=6, decode=True)
step = br.jit(decoder)


def empty_cache(tokens):  # as long as the tokens
    state = br.init(decoder)({}, tokens, seed=0)
    return state.filter(br.Cache)


def decode(state, tokens):
    state = state | empty_cache(tokens)
    logits = []
    for i in range(tokens.shape[1]):
        state, y = step(state, tokens[:, i : i + 1], i)
        logits.append(y)
    return jnp.concatenate(logits, axis=1)


# endregion
