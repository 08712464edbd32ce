"""A recurrent network with an LSTM, in Linen."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp


class Net(nn.Module):
    hidden: int
    out: int

    def setup(self):
        cell = nn.OptimizedLSTMCell(self.hidden)
        self.lstm = nn.RNN(cell, return_carry=True)
        self.head = nn.Dense(self.out)

    def __call__(self, x, carry=None):  # [B, T, D]
        carry, y = self.lstm(x, initial_carry=carry)
        return self.head(y), carry


# endregion


# region create
model = Net(5, 3)
sample = jnp.zeros((2, 6, 4))
params = model.init(jax.random.key(0), sample)["params"]
# endregion

# region look
lstm = params["lstm"]["cell"]
assert lstm["if"]["kernel"].shape == (4, 5)  # of x, to f
assert lstm["hf"]["kernel"].shape == (5, 5)  # of h, to f
assert lstm["hf"]["bias"].shape == (5,)
# endregion


# region call
@jax.jit
def predict(params, x):
    y, (cell, hidden) = model.apply({"params": params}, x)
    return y, hidden, cell


@jax.jit
def go_on(params, x, hidden, cell):
    carry = (cell, hidden)
    y, _ = model.apply({"params": params}, x, carry)
    return y


# endregion


# region reset
@jax.jit
def predict_with_reset(params, x, reset):
    cell = nn.OptimizedLSTMCell(5)

    def step(carry, inputs):
        x, begin = inputs
        keep = ~begin[:, None]
        carry = jax.tree.map(lambda c: keep * c, carry)
        return cell.apply({"params": params["lstm"]["cell"]}, carry, x)

    carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
    _, y = jax.lax.scan(step, carry, (x.swapaxes(0, 1), reset.T))
    head = nn.Dense(3)
    return head.apply({"params": params["head"]}, y.swapaxes(0, 1))


# endregion


# region gru
class HaikuGRU(nn.RNNCellBase):
    features: int

    @nn.compact
    def __call__(self, h, x):
        n = self.features
        init = nn.initializers.lecun_normal()
        w_i = self.param("w_i", init, (x.shape[-1], 3 * n))
        w_h = self.param("w_h", init, (n, 3 * n))
        b = self.param("b", nn.initializers.zeros, (3 * n,))
        zr, a = jnp.split(x @ w_i + b, [2 * n], axis=-1)
        w_zr, w_a = jnp.split(w_h, [2 * n], axis=-1)
        z, r = jnp.split(nn.sigmoid(zr + h @ w_zr), 2, axis=-1)
        a = jnp.tanh(a + (r * h) @ w_a)
        h = (1 - z) * h + z * a
        return h, h

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self):
        return 1


gru = nn.RNN(HaikuGRU(5))
# endregion
