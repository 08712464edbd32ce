"""A recurrent network by a lifted scan, in NNX."""

# region cell
import jax
import jax.numpy as jnp
from flax import nnx


class RNNCell(nnx.Module):
    def __init__(self, input_size, hidden_size, rngs):
        self.linear = nnx.Linear(hidden_size + input_size, hidden_size, rngs=rngs)
        self.hidden_size = hidden_size

    def __call__(self, carry, x):
        x = jnp.concatenate([carry, x], axis=-1)
        x = self.linear(x)
        x = jax.nn.relu(x)
        return x, x

    def initial_state(self, batch_size):
        return jnp.zeros((batch_size, self.hidden_size))


# endregion


# region scan
class RNN(nnx.Module):
    def __init__(self, input_size, hidden_size, rngs):
        self.cell = RNNCell(input_size, hidden_size, rngs)

    def __call__(self, x):
        def step(carry, cell, x):
            return cell(carry, x)

        scan = nnx.scan(step, in_axes=(nnx.Carry, None, 1), out_axes=(nnx.Carry, 1))
        carry = self.cell.initial_state(x.shape[0])
        _, y = scan(carry, self.cell, x)
        return y


# endregion


# region create
x = jnp.ones((3, 12, 8))
model = RNN(8, 16, rngs=nnx.Rngs(0))
y = model(x)
# endregion
