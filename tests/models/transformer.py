"""A causal transformer language model: learned positions, norms first, a linear head."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 17, 6, 8, 2, 2


class TransformerBlock(hk.Module):
    def __call__(self, x, mask):
        norm = hk.LayerNorm(-1, True, True, name="ln_1")
        init = hk.initializers.VarianceScaling()
        attention = hk.MultiHeadAttention(HEADS, WIDTH // HEADS, w_init=init, name="attention")
        h = norm(x)
        x = x + attention(h, h, h, mask)
        h = hk.Linear(4 * WIDTH, name="mlp_in")(hk.LayerNorm(-1, True, True, name="ln_2")(x))
        return x + hk.Linear(WIDTH, name="mlp_out")(jax.nn.gelu(h))


class LanguageModel(hk.Module):
    def __call__(self, tokens):
        x = hk.Embed(VOCABULARY, WIDTH, name="tokens")(tokens)
        x = x + hk.Embed(LENGTH, WIDTH, name="positions")(jnp.arange(tokens.shape[1]))
        mask = jnp.tril(jnp.ones((1, 1, tokens.shape[1], tokens.shape[1]), bool))
        for i in range(LAYERS):
            x = TransformerBlock(name=f"block_{i}")(x, mask)
        x = hk.LayerNorm(-1, True, True, name="ln_f")(x)
        return hk.Linear(VOCABULARY, name="logits")(x)


def haiku(tokens, train):
    return LanguageModel()(tokens)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        h = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS)(h, mask=mask)
        h = nn.Dense(4 * WIDTH)(nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)(x))
        return x + nn.Dense(WIDTH)(nn.gelu(h))


class Linen(nn.Module):
    def setup(self):
        self.wte, self.wpe = nn.Embed(VOCABULARY, WIDTH), nn.Embed(LENGTH, WIDTH)
        self.layers = [Layer() for _ in range(LAYERS)]
        self.norm, self.head = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False), nn.Dense(VOCABULARY)

    def __call__(self, tokens, train):
        x = self.wte(tokens) + self.wpe(jnp.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x, nn.make_causal_mask(tokens))
        return self.head(self.norm(x))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(WIDTH, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs), nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.token_embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.pos_embed = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, tokens, train):
        x = self.token_embed(tokens) + self.pos_embed(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x, nnx.make_causal_mask(tokens))
        return self.head(self.norm(x))


def inputs():
    return (jax.random.randint(jax.random.key(0), (2, LENGTH), 0, VOCABULARY),)


LINES: dict = {}
