"""What parameters are called, in Haiku."""

# region define
import haiku as hk
import jax
import jax.numpy as jnp


class Encoder(hk.Module):
    def __init__(self, name=None):
        super().__init__(name=name)
        self.layers = [hk.Linear(16) for _ in range(3)]  # made in __init__

    def __call__(self, x):
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return x


class Net(hk.Module):
    def __call__(self, x):
        x = Encoder(name="enc")(x)  # a name of its own
        x = x + hk.Linear(16)(jax.nn.relu(hk.Linear(32)(x)))  # made where they are called
        x = x * hk.get_parameter("gain", [16], init=jnp.ones)  # of the module itself
        return hk.Linear(4, name="head")(x)


# endregion

# region create
model = hk.without_apply_rng(hk.transform(lambda x: Net()(x)))
params = model.init(jax.random.key(0), jnp.ones((1, 8)))
# endregion

# region look
assert sorted(params) == [
    "net",
    "net/enc/~/linear",
    "net/enc/~/linear_1",
    "net/enc/~/linear_2",
    "net/head",
    "net/linear",
    "net/linear_1",
]
# endregion
