"""A recurrent network by a lifted scan, in Linen."""

# region cell
import flax.linen as nn
import jax
import jax.numpy as jnp


class RNNCell(nn.Module):
    hidden_size: int

    @nn.compact
    def __call__(self, carry, x):
        x = jnp.concatenate([carry, x], axis=-1)
        x = nn.Dense(self.hidden_size)(x)
        x = jax.nn.relu(x)
        return x, x

    def initial_state(self, batch_size):
        return jnp.zeros((batch_size, self.hidden_size))


# endregion


# region scan
class RNN(nn.Module):
    hidden_size: int

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            RNNCell,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        rnn = scan(self.hidden_size)
        carry = rnn.initial_state(x.shape[0])
        _, y = rnn(carry, x)
        return y


# endregion


# region create
x = jnp.ones((3, 12, 8))
model = RNN(16)
variables = model.init(jax.random.key(0), x)
y = model.apply(variables, x)
# endregion
