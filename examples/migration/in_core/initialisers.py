"""Fresh weights, and where they come from, in the core: Linen's layers as parts."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp

import bridges as br


class Model(br.Module):
    def __init__(self):
        self.embed = br.FlaxModule(nn.Embed, 500, 32)
        self.rnn = br.FlaxModule(nn.RNN(nn.LSTMCell(32)))
        self.linear = br.FlaxModule(nn.Dense, 32)

    def __call__(self, tokens):
        x = self.rnn(self.embed(tokens))
        return self.linear(x[:, -1])


model = Model()
# endregion


# region create
sample = jnp.zeros((1, 4), jnp.int32)


def create(seed):
    return br.init(model)({}, sample, seed=seed)


# endregion


# region keys
class Layers(br.Module):
    names: tuple[str, ...]

    def __init__(self):
        self.parts = [br.FlaxModule(nn.Dense, 32, name=n) for n in self.names]

    def __call__(self, x):
        return [part(x) for part in self.parts]


def kernel(key, names, of):
    layers = Layers(names=tuple(names))
    state = br.init(layers)({}, jnp.ones((1, 32)), seed=key)
    return state[f"layers/{of}/params/kernel"]


# endregion


# region other
truncated_normal = jax.nn.initializers.truncated_normal


class LikeHaiku(Model):
    def __init__(self):
        normal = truncated_normal(1.0)
        self.embed = br.FlaxModule(nn.Embed, 500, 32, embedding_init=normal)
        gates = truncated_normal((32 + 32) ** -0.5)
        cell = nn.LSTMCell(32, kernel_init=gates, recurrent_kernel_init=gates)
        self.rnn = br.FlaxModule(nn.RNN(cell))
        linear = truncated_normal(32**-0.5)
        self.linear = br.FlaxModule(nn.Dense, 32, kernel_init=linear)


def create_as_the_other(seed):
    like_haiku = LikeHaiku(name="model")
    state = br.init(like_haiku)({}, sample, seed=seed)
    return state | {"model/rnn/params/cell/hf/bias": jnp.ones(32)}


# endregion


# region call
def predict(state, tokens):
    _, y = br.pure(model)(state, tokens)
    return y


# endregion
