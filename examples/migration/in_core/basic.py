"""A basic module with dropout, in the core: Linen's layers as parts of a model with flat state."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp

import bridges as br


class Block(br.Module):
    features: int

    def __init__(self):
        self.linear = br.FlaxModule(nn.Dense, self.features)
        self.dropout = br.FlaxModule(nn.Dropout, 0.5)

    def __call__(self, x, training):
        x = self.linear(x)
        x = self.dropout(x, deterministic=not training)
        return jax.nn.relu(x)


class Model(br.Module):
    dmid: int
    dout: int

    def __init__(self):
        self.block = Block(features=self.dmid)
        self.linear = br.FlaxModule(nn.Dense, self.dout)

    def __call__(self, x, training):
        x = self.block(x, training)
        return self.linear(x)


# endregion


# region create
model = Model(dmid=32, dout=10)
sample_x = jnp.ones((1, 64))
state = br.init(model)({}, sample_x, training=False, seed=0)
# endregion

# region look
assert state["model/linear/params/bias"].shape == (10,)
assert state["model/block/linear/params/kernel"].shape == (64, 32)
# endregion


# region call
def predict(state, x):
    _, y = br.pure(model)(state, x, training=False)
    return y


def predict_with_dropout(state, key, x):
    _, y = br.pure(model)(state, x, training=True, seed=key)
    return y


# endregion
