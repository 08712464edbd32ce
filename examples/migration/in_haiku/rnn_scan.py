"""A recurrent network by a lifted scan, in Haiku."""

# region cell
import haiku as hk
import jax
import jax.numpy as jnp


class RNNCell(hk.Module):
    def __init__(self, hidden_size, name=None):
        super().__init__(name=name)
        self.hidden_size = hidden_size

    def __call__(self, carry, x):
        x = jnp.concatenate([carry, x], axis=-1)
        x = hk.Linear(self.hidden_size)(x)
        x = jax.nn.relu(x)
        return x, x

    def initial_state(self, batch_size):
        return jnp.zeros((batch_size, self.hidden_size))


# endregion


# region scan
class RNN(hk.Module):
    def __init__(self, hidden_size, name=None):
        super().__init__(name=name)
        self.hidden_size = hidden_size

    def __call__(self, x):
        cell = RNNCell(self.hidden_size)
        carry = cell.initial_state(x.shape[0])
        _, y = hk.scan(cell, carry, jnp.swapaxes(x, 1, 0))
        return jnp.swapaxes(y, 0, 1)


# endregion


# region create
x = jnp.ones((3, 12, 8))
model = hk.without_apply_rng(hk.transform(lambda x: RNN(16)(x)))
params = model.init(jax.random.key(0), x)
y = model.apply(params, x)
# endregion
