"""What entries are called, in the core."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp

import bridges as br


class Encoder(br.Module):
    def __init__(self):
        self.layers = [br.FlaxModule(nn.Dense, 16) for _ in range(3)]  # made in __init__

    def __call__(self, x):
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return x


class Net(br.Module):
    def __init__(self):
        self.enc = Encoder()  # named after its attribute

    def __call__(self, x):
        Dense = br.FromFlax(nn.Dense)
        x = self.enc(x)
        x = x + self.get("down", Dense, 16)(jax.nn.relu(self.get("up", Dense, 32)(x)))
        x = x * self.get("gain", jnp.ones, 16, kind=br.Param)  # of the module itself
        return self.get("head", Dense, 4)(x)


# endregion

# region create
model = Net()
state = br.init(model)({}, jnp.ones((1, 8)), seed=0)
# endregion

# region look
assert "net/gain" in state
assert "net/enc/layers_2/params/kernel" in state
assert "net/head/params/bias" in state
# endregion
