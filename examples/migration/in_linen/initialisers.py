"""Fresh weights, and where they come from, in Linen."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp


class Model(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(500, 32)(tokens)
        x = nn.RNN(nn.LSTMCell(32))(x)
        return nn.Dense(32)(x[:, -1])


model = Model()
# endregion


# region create
sample = jnp.zeros((1, 4), jnp.int32)


def create(seed):
    return model.init(jax.random.key(seed), sample)["params"]


# endregion


# region keys
class Layers(nn.Module):
    names: tuple[str, ...]

    @nn.compact
    def __call__(self, x):
        return [nn.Dense(32, name=name)(x) for name in self.names]


def kernel(key, names, of):
    variables = Layers(tuple(names)).init(key, jnp.ones((1, 32)))
    return variables["params"][of]["kernel"]


# endregion


# region other
truncated_normal = jax.nn.initializers.truncated_normal


class LikeHaiku(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        normal = truncated_normal(1.0)
        x = nn.Embed(500, 32, embedding_init=normal)(tokens)
        gates = truncated_normal((32 + 32) ** -0.5)
        cell = nn.LSTMCell(32, kernel_init=gates, recurrent_kernel_init=gates)
        x = nn.RNN(cell)(x)
        linear = truncated_normal(32**-0.5)
        return nn.Dense(32, kernel_init=linear)(x[:, -1])


def create_as_the_other(seed):
    params = LikeHaiku().init(jax.random.key(seed), sample)["params"]
    params["LSTMCell_0"]["hf"]["bias"] = jnp.ones(32)
    return params


# endregion


# region call
def predict(params, tokens):
    return model.apply({"params": params}, tokens)


# endregion
