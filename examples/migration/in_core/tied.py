"""An embedding that is the output layer too, in the core: Linen's layers as parts."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp

import bridges as br


class LanguageModel(br.Module):
    def __init__(self, vocabulary, features):
        self.embed = br.FlaxModule(nn.Embed, vocabulary, features)
        self.hidden = br.FlaxModule(nn.Dense, features)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = jax.nn.relu(self.hidden(x))
        return self.embed.attend(x)


# endregion


# region create
model = LanguageModel(50, 16)
sample = jnp.zeros((1, 8), jnp.int32)
state = br.init(model)({}, sample, seed=0)
# endregion

# region look
assert state["language_model/embed/params/embedding"].shape == (50, 16)
assert len(state) == 3
# endregion


# region call
def predict(state, tokens):
    _, logits = br.pure(model)(state, tokens)
    return logits


# endregion
