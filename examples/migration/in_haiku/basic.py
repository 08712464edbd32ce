"""A basic module with dropout, in Haiku."""

# region define
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


class Model(hk.Module):
    def __init__(self, dmid, dout, name=None):
        super().__init__(name=name)
        self.dmid = dmid
        self.dout = dout

    def __call__(self, x, training):
        x = Block(self.dmid)(x, training)
        return hk.Linear(self.dout)(x)


# endregion


# region create
def forward(x, training):
    return Model(32, 10)(x, training)


model = hk.transform(forward)
sample_x = jnp.ones((1, 64))
params = model.init(jax.random.key(0), sample_x, training=False)
# endregion

# region look
assert params["model/linear"]["b"].shape == (10,)
assert params["model/block/linear"]["w"].shape == (64, 32)
# endregion


# region call
def predict(params, x):
    return model.apply(params, None, x, training=False)


def predict_with_dropout(params, key, x):
    return model.apply(params, key, x, training=True)


# endregion
