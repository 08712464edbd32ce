"""What parameters are called, in NNX."""

# region define
import jax
import jax.numpy as jnp
from flax import nnx


class Encoder(nnx.Module):
    def __init__(self, rngs):
        sizes = [(8, 16), (16, 16), (16, 16)]
        self.layers = nnx.List([nnx.Linear(*size, rngs=rngs) for size in sizes])

    def __call__(self, x):
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return x


class Net(nnx.Module):
    def __init__(self, rngs):
        self.enc = Encoder(rngs)
        self.up = nnx.Linear(16, 32, rngs=rngs)
        self.down = nnx.Linear(32, 16, rngs=rngs)
        self.gain = nnx.Param(jnp.ones(16))
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        x = self.enc(x)
        x = x + self.down(jax.nn.relu(self.up(x)))
        return self.head(x * self.gain)


# endregion

# region create
model = Net(nnx.Rngs(0))
# endregion

# region look
params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
assert sorted(params) == ["down", "enc", "gain", "head", "up"]
assert sorted(params["enc"]["layers"]) == [0, 1, 2]
# endregion
