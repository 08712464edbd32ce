"""One scan over many equal layers, in the core."""

# region block
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


# endregion


# region stack
class MLP(br.Module):
    features: int
    num_layers: int

    def __init__(self):
        self.blocks = Block(features=self.features)

    def create(self, x):
        stack = br.vmap(self.blocks, in_axes=None, axis_size=self.num_layers, state_axes={self.blocks: 0})
        stack(x, False)

    def __call__(self, x, training):
        keys = jax.random.split(br.rng("dropout"), self.num_layers) if training else None

        def step(x, layer):
            entries, key = layer
            _, x = br.pure(self.blocks)(entries, x, training, seed=key)
            return x, None

        x, _ = br.scan(step, x, (self.blocks.getm(), keys))
        return x


# endregion


# region create
model = MLP(features=16, num_layers=5)
state = br.init(model.create)({}, jnp.ones((1, 16)), seed=0)
# endregion


# region call
def predict(state, x):
    _, y = br.pure(model)(state, x, training=False)
    return y


def predict_with_dropout(state, key, x):
    _, y = br.pure(model)(state, x, training=True, seed=key)
    return y


# endregion
