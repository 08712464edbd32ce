"""The language model as an NNX module."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .config import DEFAULT, Config


def layer_norm(config: Config, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.model_size, epsilon=1e-5, use_fast_variance=False, rngs=rngs)  # as Haiku's


class Block(nnx.Module):
    """Attention and a dense block, layer norm first."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        size, wide = config.model_size, config.widening * config.model_size
        init = jax.nn.initializers.variance_scaling(2 / config.num_layers, "fan_in", "truncated_normal")
        self.norm_1 = layer_norm(config, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(config.num_heads, size, kernel_init=init, decode=False, rngs=rngs)
        self.norm_2 = layer_norm(config, rngs=rngs)
        self.mlp_in = nnx.Linear(size, wide, kernel_init=init, rngs=rngs)
        self.mlp_out = nnx.Linear(wide, size, kernel_init=init, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(self, h: jax.Array, keys: jax.Array) -> jax.Array:
        """Returns [batch, time, features]; `keys` are two, for dropout."""
        mask = np.tril(np.ones((1, 1, h.shape[1], h.shape[1]), bool))
        x = self.attention(self.norm_1(h), mask=mask)
        h = h + self.dropout(x, rngs=keys[0])
        x = self.mlp_out(jax.nn.gelu(self.mlp_in(self.norm_2(h))))
        return h + self.dropout(x, rngs=keys[1])


class Count(nnx.Variable):
    """What was counted in training."""


class CharacterPrior(nnx.Module):
    """Adds the logarithm of how often each character was seen in training, times a learned strength."""

    def __init__(self, config: Config):
        self.strength = nnx.Param(jnp.array(0.5))
        self.counts = Count(jnp.ones(config.vocabulary))
        self.deterministic = False  # what `train()` and `eval()` set

    def __call__(self, logits: jax.Array, tokens: jax.Array) -> jax.Array:
        if not self.deterministic:
            self.counts[...] += jax.nn.one_hot(tokens, logits.shape[-1]).sum((0, 1))
        counts = self.counts[...]
        return logits + self.strength[...] * jnp.log(counts / counts.sum())


class LanguageModel(nnx.Module):
    def __init__(self, config: Config = DEFAULT, *, rngs: nnx.Rngs):
        self.config = config
        embed_init = jax.nn.initializers.truncated_normal(0.02)
        place = (config.sequence_length, config.model_size)
        self.embed = nnx.Embed(config.vocabulary, config.model_size, embedding_init=embed_init, rngs=rngs)
        self.positions = nnx.Param(embed_init(rngs.params(), place))
        self.dropout = nnx.Dropout(config.dropout)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = layer_norm(config, rngs=rngs)
        self.logits = nnx.Linear(config.model_size, config.vocabulary, rngs=rngs)
        self.prior = CharacterPrior(config)

    def __call__(self, tokens: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Returns the logits of the next character at each place, [batch, time, vocabulary]."""
        keys = dropout_keys(rngs, self.config)
        h = self.embed(tokens) + self.positions[...]
        h = self.dropout(h, rngs=keys[-1])
        for i, block in enumerate(self.blocks):
            h = block(h, keys[2 * i : 2 * i + 2])
        return self.prior(self.logits(self.norm(h)), tokens)


def dropout_keys(rngs: nnx.Rngs | None, config: Config) -> Any:
    """Returns the keys that the Haiku model had: `hk.next_rng_key` splits the key of `apply` and gives the second part."""
    if rngs is None:
        return [None] * (2 * config.num_layers + 1)
    return jax.random.split(jax.random.split(rngs())[1], 2 * config.num_layers + 1)
