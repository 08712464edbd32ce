"""An embedding that is the output layer too, in NNX."""

# region define
import jax
from flax import nnx


class LanguageModel(nnx.Module):
    def __init__(self, vocabulary, features, rngs):
        self.embed = nnx.Embed(vocabulary, features, rngs=rngs)
        self.hidden = nnx.Linear(features, features, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = jax.nn.relu(self.hidden(x))
        return self.embed.attend(x)


# endregion


# region create
model = LanguageModel(50, 16, rngs=nnx.Rngs(0))
# endregion

# region look
assert model.embed.embedding.shape == (50, 16)
assert len(jax.tree.leaves(nnx.state(model, nnx.Param))) == 3
# endregion


# region call
@nnx.jit
def predict(model, tokens):
    return model(tokens)


# endregion
