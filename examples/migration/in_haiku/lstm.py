"""A recurrent network with an LSTM, in Haiku."""

# region define
import haiku as hk
import jax
import jax.numpy as jnp


class Net(hk.Module):
    def __init__(self, hidden, out, name=None):
        super().__init__(name=name)
        self.lstm = hk.LSTM(hidden, name="lstm")
        self.head = hk.Linear(out, name="head")

    def __call__(self, x, state=None):  # [B, T, D]
        if state is None:
            state = self.lstm.initial_state(x.shape[0])
        y, state = hk.dynamic_unroll(self.lstm, x, state, time_major=False)
        return self.head(y), state


# endregion


# region create
def forward(x, state=None):
    return Net(5, 3)(x, state)


model = hk.without_apply_rng(hk.transform(forward))
sample = jnp.zeros((2, 6, 4))
params = model.init(jax.random.key(0), sample)
# endregion

# region look
lstm = params["net/~/lstm/linear"]
assert lstm["w"].shape == (4 + 5, 4 * 5)  # of x and h, to i, g, f, o
assert lstm["b"].shape == (4 * 5,)
# endregion


# region call
@jax.jit
def predict(params, x):
    y, state = model.apply(params, x)
    return y, state.hidden, state.cell


@jax.jit
def go_on(params, x, hidden, cell):
    state = hk.LSTMState(hidden=hidden, cell=cell)
    y, _ = model.apply(params, x, state)
    return y


# endregion


# region reset
class ResetNet(Net):
    def __call__(self, x, reset):  # True: anew
        state = self.lstm.initial_state(x.shape[0])
        y, _ = hk.dynamic_unroll(hk.ResetCore(self.lstm), (x, reset), state, time_major=False)
        return self.head(y)


with_reset = hk.without_apply_rng(hk.transform(lambda x, reset: ResetNet(5, 3, name="net")(x, reset)))


@jax.jit
def predict_with_reset(params, x, reset):
    return with_reset.apply(params, x, reset)


# endregion


# region gru
def gru_forward(x, reverse=False):
    core = hk.GRU(5)
    state = core.initial_state(x.shape[0])
    y, _ = hk.dynamic_unroll(core, x, state, time_major=False, reverse=reverse)
    return y


gru = hk.without_apply_rng(hk.transform(gru_forward))
# endregion
