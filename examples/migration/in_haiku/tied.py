"""An embedding that is the output layer too, in Haiku."""

# region define
import haiku as hk
import jax
import jax.numpy as jnp


class LanguageModel(hk.Module):
    def __init__(self, vocabulary, features, name=None):
        super().__init__(name=name)
        self.embed = hk.Embed(vocabulary, features, name="embed")
        self.hidden = hk.Linear(features, name="hidden")

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = jax.nn.relu(self.hidden(x))
        return x @ self.embed.embeddings.T


# endregion


# region create
def forward(tokens):
    return LanguageModel(50, 16)(tokens)


model = hk.without_apply_rng(hk.transform(forward))
sample = jnp.zeros((1, 8), jnp.int32)
params = model.init(jax.random.key(0), sample)
# endregion

# region look
assert params["language_model/~/embed"]["embeddings"].shape == (50, 16)
assert len(jax.tree.leaves(params)) == 3  # one table, read twice
# endregion


# region call
def predict(params, tokens):
    return model.apply(params, tokens)


# endregion
