"""An embedding that is the output layer too, in Linen."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp


class LanguageModel(nn.Module):
    vocabulary: int
    features: int

    def setup(self):
        self.embed = nn.Embed(self.vocabulary, self.features)
        self.hidden = nn.Dense(self.features)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = jax.nn.relu(self.hidden(x))
        return self.embed.attend(x)


# endregion


# region create
model = LanguageModel(50, 16)
sample = jnp.zeros((1, 8), jnp.int32)
params = model.init(jax.random.key(0), sample)["params"]
# endregion

# region look
assert params["embed"]["embedding"].shape == (50, 16)
assert len(jax.tree.leaves(params)) == 3
# endregion


# region call
def predict(params, tokens):
    return model.apply({"params": params}, tokens)


# endregion


# region untied
class Untied(nn.Module):
    vocabulary: int
    features: int

    def setup(self):
        self.embed = nn.Embed(self.vocabulary, self.features)
        self.hidden = nn.Dense(self.features)
        self.logits = nn.Dense(self.vocabulary, use_bias=False)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = jax.nn.relu(self.hidden(x))
        return self.logits(x)


# endregion
