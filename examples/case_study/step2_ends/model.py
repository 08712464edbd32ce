"""The language model as an NNX module. The transformer and the prior are still Haiku's, in old_model.py."""

import jax
import jax.numpy as jnp
from flax import nnx

import bridges as br

from . import old_model
from .config import DEFAULT, Config


class LanguageModel(nnx.Module):
    def __init__(self, config: Config = DEFAULT, *, rngs: nnx.Rngs):
        self.config = config
        embed_init = jax.nn.initializers.truncated_normal(0.02)
        place = (config.sequence_length, config.model_size)
        self.embed = nnx.Embed(config.vocabulary, config.model_size, embedding_init=embed_init, rngs=rngs)
        self.positions = nnx.Param(embed_init(rngs.params(), place))
        self.dropout = nnx.Dropout(config.dropout)
        self.logits = nnx.Linear(config.model_size, config.vocabulary, rngs=rngs)

        h, tokens = jnp.zeros((1, *place)), jnp.zeros((1, config.sequence_length), int)
        self.transformer = br.ToNNX(old_model.Transformer, config, name="transformer", rngs=rngs)
        self.transformer.lazy_init(h, dropout_keys(rngs, config), False)
        self.prior = br.ToNNX(old_model.CharacterPrior, name="prior", rngs=rngs)
        self.prior.lazy_init(self.logits(h), tokens, False)

    def __call__(self, tokens: jax.Array, is_training: bool, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Returns the logits of the next character at each place, [batch, time, vocabulary]."""
        keys = dropout_keys(rngs, self.config) if is_training else [None] * (2 * self.config.num_layers + 1)
        h = self.embed(tokens) + self.positions[...]
        h = self.dropout(h, deterministic=not is_training, rngs=keys[-1])
        h = self.transformer(h, keys, is_training)
        return self.prior(self.logits(h), tokens, is_training)


def dropout_keys(rngs: nnx.Rngs, config: Config) -> jax.Array:
    """Returns the keys that the Haiku model had: `hk.next_rng_key` splits the key of `apply` and gives the second part."""
    return jax.random.split(jax.random.split(rngs())[1], 2 * config.num_layers + 1)
