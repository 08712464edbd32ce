"""A decoder-only transformer over characters."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from .config import DEFAULT, Config


def layer_norm(x: jax.Array, name: str) -> jax.Array:
    return hk.LayerNorm(-1, create_scale=True, create_offset=True, name=name)(x)


class Transformer(hk.Module):
    """A stack of attention and dense blocks, layer norm first."""

    def __init__(self, config: Config, name: str | None = None):
        super().__init__(name)
        self.config = config

    def __call__(self, h: jax.Array, keys: Any, is_training: bool) -> jax.Array:
        """Returns [batch, time, features]; `keys` are those of dropout, two for each layer, None in evaluation."""
        config = self.config
        rate = config.dropout if is_training else 0.0
        w_init = hk.initializers.VarianceScaling(2 / config.num_layers)
        mask = np.tril(np.ones((1, 1, h.shape[1], h.shape[1]), bool))

        for i in range(config.num_layers):
            attention = hk.MultiHeadAttention(
                config.num_heads,
                config.model_size // config.num_heads,
                w_init=w_init,
                name=f"h{i}_attn",
            )
            x = layer_norm(h, f"h{i}_ln_1")
            x = attention(x, x, x, mask)
            h = h + hk.dropout(keys[2 * i], rate, x)

            x = layer_norm(h, f"h{i}_ln_2")
            x = hk.Linear(config.widening * config.model_size, w_init=w_init, name=f"h{i}_mlp_in")(x)
            x = hk.Linear(config.model_size, w_init=w_init, name=f"h{i}_mlp_out")(jax.nn.gelu(x))
            h = h + hk.dropout(keys[2 * i + 1], rate, x)
        return layer_norm(h, "ln_f")


class CharacterPrior(hk.Module):
    """Adds the logarithm of how often each character was seen in training, times a learned strength."""

    def __call__(self, logits: jax.Array, tokens: jax.Array, is_training: bool) -> jax.Array:
        size = logits.shape[-1]
        strength = hk.get_parameter("strength", [], init=hk.initializers.Constant(0.5))
        counts = hk.get_state("counts", [size], init=jnp.ones)
        if is_training:
            counts = counts + jax.nn.one_hot(tokens, size).sum((0, 1))
            hk.set_state("counts", counts)
        return logits + strength * jnp.log(counts / counts.sum())


class LanguageModel(hk.Module):
    def __init__(self, config: Config, name: str | None = None):
        super().__init__(name)
        self.config = config

    def __call__(self, tokens: jax.Array, is_training: bool) -> jax.Array:
        config = self.config
        embed_init = hk.initializers.TruncatedNormal(stddev=0.02)
        keys = [None] * (2 * config.num_layers + 1)
        if is_training:
            keys = jax.random.split(hk.next_rng_key(), len(keys))

        h = hk.Embed(config.vocabulary, config.model_size, w_init=embed_init, name="embed")(tokens)
        h = h + hk.get_parameter("positions", [config.sequence_length, config.model_size], init=embed_init)
        h = hk.dropout(keys[-1], config.dropout if is_training else 0.0, h)
        h = Transformer(config, name="transformer")(h, keys, is_training)
        logits = hk.Linear(config.vocabulary, name="logits")(h)
        return CharacterPrior(name="prior")(logits, tokens, is_training)


def forward(tokens: jax.Array, is_training: bool = False, config: Config = DEFAULT) -> jax.Array:
    """Returns the logits of the next character at each place, [batch, time, vocabulary]."""
    return LanguageModel(config)(tokens, is_training)
