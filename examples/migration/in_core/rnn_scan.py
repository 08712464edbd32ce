"""A recurrent network by a lifted scan, in the core."""

# region cell
import flax.linen as nn
import jax
import jax.numpy as jnp

import bridges as br


class RNNCell(br.Module):
    hidden_size: int

    def __init__(self):
        self.linear = br.FlaxModule(nn.Dense, self.hidden_size)

    def __call__(self, carry, x):
        x = jnp.concatenate([carry, x], axis=-1)
        x = self.linear(x)
        x = jax.nn.relu(x)
        return x, x

    def initial_state(self, batch_size):
        return jnp.zeros((batch_size, self.hidden_size))


# endregion


# region scan
class RNN(br.Module):
    hidden_size: int

    def __init__(self):
        self.cell = RNNCell(hidden_size=self.hidden_size)

    def __call__(self, x):
        carry = self.cell.initial_state(x.shape[0])
        _, y = br.scan(self.cell, carry, jnp.swapaxes(x, 1, 0))
        return jnp.swapaxes(y, 0, 1)


# endregion


# region create
x = jnp.ones((3, 12, 8))
model = RNN(hidden_size=16)
state = br.init(model)({}, x, seed=0)
_, y = br.pure(model)(state, x)
# endregion
