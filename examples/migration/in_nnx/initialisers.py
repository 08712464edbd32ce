"""Fresh weights, and where they come from, in NNX."""

# region define
import jax
from flax import nnx


class Model(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(500, 32, rngs=rngs)
        cell = nnx.LSTMCell(32, 32, rngs=rngs)
        self.rnn = nnx.RNN(cell, rngs=rngs)
        self.linear = nnx.Linear(32, 32, rngs=rngs)

    def __call__(self, tokens):
        x = self.rnn(self.embed(tokens))
        return self.linear(x[:, -1])


# endregion


# region create
def create(seed):
    return Model(nnx.Rngs(seed))


# endregion


# region keys
def kernel(key, names, of):
    rngs = nnx.Rngs(key)
    layers = {name: nnx.Linear(32, 32, rngs=rngs) for name in names}
    return layers[of].kernel[...]


# endregion


# region other
truncated_normal = jax.nn.initializers.truncated_normal


class LikeHaiku(Model):
    def __init__(self, rngs):
        normal = truncated_normal(1.0)
        self.embed = nnx.Embed(500, 32, embedding_init=normal, rngs=rngs)
        gates = truncated_normal((32 + 32) ** -0.5)
        cell = nnx.LSTMCell(32, 32, kernel_init=gates, recurrent_kernel_init=gates, rngs=rngs)
        cell.hf.bias[...] += 1
        self.rnn = nnx.RNN(cell, rngs=rngs)
        linear = truncated_normal(32**-0.5)
        self.linear = nnx.Linear(32, 32, kernel_init=linear, rngs=rngs)


def create_as_the_other(seed):
    return LikeHaiku(nnx.Rngs(seed))


# endregion


# region call
@nnx.jit
def predict(model, tokens):
    return model(tokens)


# endregion
