"""One scan over many equal layers, in Linen."""

# region block
import flax.linen as nn
import jax
import jax.numpy as jnp


class Block(nn.Module):
    features: int
    training: bool

    @nn.compact
    def __call__(self, x, _):
        x = nn.Dense(self.features)(x)
        x = nn.Dropout(0.5, deterministic=not self.training)(x)
        return jax.nn.relu(x), None


# endregion


# region stack
class MLP(nn.Module):
    features: int
    num_layers: int

    @nn.compact
    def __call__(self, x, training):
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.num_layers,
        )
        x, _ = blocks(self.features, training)(x, None)
        return x


# endregion


# region create
model = MLP(16, num_layers=5)
variables = model.init(jax.random.key(0), jnp.ones((1, 16)), training=False)
# endregion


# region call
def predict(variables, x):
    return model.apply(variables, x, training=False)


def predict_with_dropout(variables, key, x):
    return model.apply(variables, x, training=True, rngs={"dropout": key})


# endregion
