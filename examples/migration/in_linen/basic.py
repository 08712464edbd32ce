"""A basic module with dropout, in Linen."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, training):
        x = nn.Dense(self.features)(x)
        x = nn.Dropout(0.5, deterministic=not training)(x)
        return jax.nn.relu(x)


class Model(nn.Module):
    dmid: int
    dout: int

    @nn.compact
    def __call__(self, x, training):
        x = Block(self.dmid)(x, training)
        return nn.Dense(self.dout)(x)


# endregion


# region create
model = Model(32, 10)
sample_x = jnp.ones((1, 64))
variables = model.init(jax.random.key(0), sample_x, training=False)
params = variables["params"]
# endregion

# region look
assert params["Dense_0"]["bias"].shape == (10,)
assert params["Block_0"]["Dense_0"]["kernel"].shape == (64, 32)
# endregion


# region call
def predict(params, x):
    return model.apply({"params": params}, x, training=False)


def predict_with_dropout(params, key, x):
    return model.apply({"params": params}, x, training=True, rngs={"dropout": key})


# endregion
