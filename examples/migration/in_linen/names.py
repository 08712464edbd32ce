"""What parameters are called, in Linen."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp


class Encoder(nn.Module):
    def setup(self):
        self.layers = [nn.Dense(16) for _ in range(3)]  # made in setup

    def __call__(self, x):
        for layer in self.layers:
            x = nn.relu(layer(x))
        return x


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Encoder(name="enc")(x)  # a name of its own
        x = x + nn.Dense(16)(nn.relu(nn.Dense(32)(x)))  # made where they are called
        x = x * self.param("gain", nn.initializers.ones, (16,))  # of the module itself
        return nn.Dense(4, name="head")(x)


# endregion

# region create
model = Net()
variables = model.init(jax.random.key(0), jnp.ones((1, 8)))
# endregion

# region look
assert sorted(variables["params"]) == ["Dense_0", "Dense_1", "enc", "gain", "head"]
assert sorted(variables["params"]["enc"]) == ["layers_0", "layers_1", "layers_2"]
# endregion
