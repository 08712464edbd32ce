"""A recurrent network with an LSTM, in the core: Linen's cell as a part."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp

import bridges as br


class Net(br.Module):
    hidden: int
    out: int

    def __init__(self):
        self.cell = br.FlaxModule(nn.OptimizedLSTMCell, self.hidden)
        self.head = br.FlaxModule(nn.Dense, self.out)

    def __call__(self, x, carry=None):  # [B, T, D]
        if carry is None:
            carry = self.initial_carry(x.shape[0])
        carry, y = br.scan(self.cell, carry, x.swapaxes(0, 1))
        return self.head(y.swapaxes(0, 1)), carry

    def initial_carry(self, batch):
        zeros = jnp.zeros((batch, self.hidden))
        return zeros, zeros


# endregion


# region create
model = Net(hidden=5, out=3)
sample = jnp.zeros((2, 6, 4))
state = br.init(model)({}, sample, seed=0)
# endregion

# region look
lstm = "net/cell/params"
assert state[lstm + "/if/kernel"].shape == (4, 5)  # of x, to f
assert state[lstm + "/hf/kernel"].shape == (5, 5)  # of h, to f
assert state[lstm + "/hf/bias"].shape == (5,)
# endregion


# region call
@jax.jit
def predict(state, x):
    _, (y, (cell, hidden)) = br.pure(model)(state, x)
    return y, hidden, cell


@jax.jit
def go_on(state, x, hidden, cell):
    carry = (cell, hidden)
    _, (y, _) = br.pure(model)(state, x, carry)
    return y


# endregion


# region reset
class ResetNet(Net):
    def __call__(self, x, reset):
        def step(carry, inputs):
            x, begin = inputs
            keep = ~begin[:, None]
            carry = jax.tree.map(lambda c: keep * c, carry)
            return self.cell(carry, x)

        carry = self.initial_carry(x.shape[0])
        _, y = br.scan(step, carry, (x.swapaxes(0, 1), reset.T))
        return self.head(y.swapaxes(0, 1))


with_reset = ResetNet(hidden=5, out=3, name="net")


@jax.jit
def predict_with_reset(state, x, reset):
    _, y = br.pure(with_reset)(state, x, reset)
    return y


# endregion
