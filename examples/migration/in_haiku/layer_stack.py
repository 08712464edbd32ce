"""One scan over many equal layers, in Haiku."""

# region block
import haiku as hk
import jax
import jax.numpy as jnp


class Block(hk.Module):
    def __init__(self, features, name=None):
        super().__init__(name=name)
        self.features = features

    def __call__(self, x, training):
        x = hk.Linear(self.features)(x)
        if training:
            x = hk.dropout(hk.next_rng_key(), 0.5, x)
        return jax.nn.relu(x)


# endregion


# region stack
class MLP(hk.Module):
    def __init__(self, features, num_layers, name=None):
        super().__init__(name=name)
        self.features = features
        self.num_layers = num_layers

    def __call__(self, x, training):
        def block(x):
            return Block(self.features)(x, training)

        return hk.experimental.layer_stack(self.num_layers)(block)(x)


# endregion


# region create
model = hk.transform(lambda x, training: MLP(16, num_layers=5)(x, training))
params = model.init(jax.random.key(0), jnp.ones((1, 16)), training=False)
# endregion


# region call
def predict(params, x):
    return model.apply(params, None, x, training=False)


def predict_with_dropout(params, key, x):
    return model.apply(params, key, x, training=True)


# endregion
