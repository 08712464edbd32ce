"""A recurrent network with an LSTM, in NNX."""

# region define
import jax
import jax.numpy as jnp
from flax import nnx


class Net(nnx.Module):
    def __init__(self, din, hidden, out, rngs):
        cell = nnx.OptimizedLSTMCell(din, hidden, rngs=rngs)
        self.lstm = nnx.RNN(cell, return_carry=True, rngs=rngs)
        self.head = nnx.Linear(hidden, out, rngs=rngs)

    def __call__(self, x, carry=None):  # [B, T, D]
        carry, y = self.lstm(x, initial_carry=carry)
        return self.head(y), carry


# endregion


# region create
model = Net(4, 5, 3, rngs=nnx.Rngs(0))
# endregion

# region look
lstm = model.lstm.cell
assert lstm.dense_i.kernel.shape == (4, 4 * 5)  # of x, to i, f, g, o
assert lstm.dense_h.kernel.shape == (5, 4 * 5)  # of h, to i, f, g, o
assert lstm.dense_h.bias.shape == (4 * 5,)
# endregion


# region call
@nnx.jit
def predict(model, x):
    y, (cell, hidden) = model(x)
    return y, hidden, cell


@nnx.jit
def go_on(model, x, hidden, cell):
    carry = (cell, hidden)
    y, _ = model(x, carry)
    return y


# endregion


# region reset
@nnx.jit
def predict_with_reset(model, x, reset):
    cell = model.lstm.cell

    def step(carry, cell, x, begin):
        keep = ~begin[:, None]
        carry = jax.tree.map(lambda c: keep * c, carry)
        return cell(carry, x)

    scan = nnx.scan(step, in_axes=(nnx.Carry, None, 1, 1), out_axes=(nnx.Carry, 1))
    carry = cell.initialize_carry(x[:, 0].shape, model.lstm.rngs)
    _, y = scan(carry, cell, x, reset)
    return model.head(y)


# endregion


# region gru
class HaikuGRU(nnx.RNNCellBase):
    def __init__(self, din, features, rngs):
        self.features = features
        init = nnx.initializers.lecun_normal()
        key = rngs.params
        self.w_i = nnx.Param(init(key(), (din, 3 * features)))
        self.w_h = nnx.Param(init(key(), (features, 3 * features)))
        self.b = nnx.Param(jnp.zeros(3 * features))

    def __call__(self, h, x):
        n = self.features
        zr, a = jnp.split(x @ self.w_i + self.b, [2 * n], axis=-1)
        w_zr, w_a = jnp.split(self.w_h[...], [2 * n], axis=-1)
        z, r = jnp.split(nnx.sigmoid(zr + h @ w_zr), 2, axis=-1)
        a = jnp.tanh(a + (r * h) @ w_a)
        h = (1 - z) * h + z * a
        return h, h

    def initialize_carry(self, input_shape, rngs=None):
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self):
        return 1


rngs = nnx.Rngs(0)
gru = nnx.RNN(HaikuGRU(4, 5, rngs), rngs=rngs)
# endregion
