"""Rows of the recurrent layers: cells, the networks that unroll them, and cells of the user's own."""

import functools

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

from tests.case import (
    CUBE,
    EVALUATION,
    HL,
    HN,
    IMAGE,
    LH,
    LN,
    NH,
    NL,
    NOT_EXACT,
    ROUNDING,
    SHORT,
    Case,
    Chain,
    Inline,
    Parts,
    rolled,
    unrolled,
)

OFFSET = dict.fromkeys([HL, HN, LH, NH], ROUNDING)
TWO_BIASES = dict.fromkeys(OFFSET, EVALUATION)
STEPS = (2, 3, 6)  # few, since static loops compile slowly


class SumOfTwoNNX(nnx.Module):
    """Two recurrent networks of unlike sizes, one after the other."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.RNN(nnx.LSTMCell(6, 4, rngs=rngs), rngs=rngs)
        self.second = nnx.RNN(nnx.OptimizedLSTMCell(4, 5, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.second(self.first(x))


def haiku_gru(x, h, w_i, w_h, b):
    """The step of `hk.GRU` (dm-haiku 0.0.17, recurrent.py)."""
    size = h.shape[-1]
    zr = jax.nn.sigmoid(x @ w_i[:, : 2 * size] + h @ w_h[:, : 2 * size] + b[: 2 * size])
    z, r = jnp.split(zr, 2, -1)
    a = jnp.tanh(x @ w_i[:, 2 * size :] + (r * h) @ w_h[:, 2 * size :] + b[2 * size :])
    return (1 - z) * h + z * a


class HaikuGRULinen(nn.RNNCellBase):
    """`hk.GRU` in Linen, with its entries."""

    features: int

    @nn.compact
    def __call__(self, carry, x):
        width, init = 3 * self.features, nn.initializers.normal()
        w_i = self.param("w_i", init, (x.shape[-1], width))
        w_h = self.param("w_h", init, (self.features, width))
        new = haiku_gru(x, carry, w_i, w_h, self.param("b", init, (width,)))
        return new, new

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self):
        return 1


class HaikuGRUNNX(nnx.RNNCellBase):
    """`hk.GRU` in NNX, with its entries."""

    def __init__(self, inputs, features, rngs):
        self.features = features
        self.w_i = nnx.Param(jnp.zeros((inputs, 3 * features)))
        self.w_h = nnx.Param(jnp.zeros((features, 3 * features)))
        self.b = nnx.Param(jnp.zeros(3 * features))

    def __call__(self, carry, x):
        new = haiku_gru(x, carry, self.w_i[...], self.w_h[...], self.b[...])
        return new, new

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self):
        return 1


class MGUNNX(nnx.RNNCellBase):
    """`nn.MGUCell` in NNX, with its entries."""

    def __init__(self, inputs, features, rngs):
        self.features = features
        for name in ("if_", "in_"):
            setattr(self, name, nnx.Linear(inputs, features, rngs=rngs))
        self.hf = nnx.Linear(features, features, use_bias=False, rngs=rngs)
        self.hn = nnx.Linear(features, features, rngs=rngs)

    def __call__(self, h, x):
        f = jax.nn.sigmoid(self.if_(x) + self.hf(h))
        new = (1 - f) * jnp.tanh(self.in_(x) + f * self.hn(h)) + f * h
        return new, new

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self):
        return 1


def conv_lstm(x, n=2):
    """Two steps, since the first has no state yet."""
    core = getattr(hk, f"Conv{n}DLSTM")(input_shape=x.shape[1:-1], output_channels=3, kernel_shape=3)
    _, state = core(x, core.initial_state(x.shape[0]))
    return core(x, state)[0]


def conv_lstm_linen(m, x):
    cell = nn.ConvLSTMCell(3, (3,) * (x.ndim - 2))
    carry, _ = cell(cell.initialize_carry(jax.random.key(0), x.shape), x)
    return cell(carry, x)[1]


def conv_lstm_nnx(m, x):
    """The steps as both frameworks define them: gates i, g, f, o, and 1 added to f."""
    c = h = jnp.zeros((*x.shape[:-1], 3), x.dtype)
    for _ in range(2):
        i, g, f, o = jnp.split(m.ih(x) + m.hh(h), 4, -1)
        c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return h


def conv_lstm_case(n, shape):
    make = functools.partial(nnx.Conv, out_features=12, kernel_size=(3,) * n)
    return Case(
        functools.partial(conv_lstm, n=n),
        Inline(conv_lstm_linen),
        lambda rngs: Parts(conv_lstm_nnx, ih=make(shape[-1], rngs=rngs), hh=make(3, rngs=rngs)),
        shape,
        mapping={
            (src, "nnx"): {
                "rules": [
                    {"src": f"params/{cell}/{a}/{k}", "dst": f"params/{b}/{leaf}"}
                    for a, b in ((ih, "ih"), (hh, "hh"))
                    for k, leaf in ((w, "kernel"), (bias, "bias"))
                ]
            }
            for src, cell, ih, hh, w, bias in (
                ("haiku", f"conv{n}_dlstm", "input_to_hidden", "hidden_to_hidden", "w", "b"),
                ("linen", "ConvLSTMCell_0", "ih", "hh", "kernel", "bias"),
            )
        },
    )


def both_ways(x):
    """Two cores, the second from the end, and both outputs side by side."""
    forward, backward = hk.LSTM(4), hk.LSTM(4)
    state = forward.initial_state(x.shape[0]), backward.initial_state(x.shape[0])
    ends = [
        hk.dynamic_unroll(core, x, s, time_major=False, reverse=reverse)[0]
        for core, s, reverse in ((forward, state[0], False), (backward, state[1], True))
    ]
    return jnp.concatenate(ends, -1)


def deep(x):
    core = hk.DeepRNN([hk.LSTM(4), jnp.tanh, hk.VanillaRNN(5, double_bias=False)])
    return hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)[0]


def deep_linen(m, x):
    return nn.RNN(nn.SimpleCell(5, activation_fn=jax.nn.relu))(jnp.tanh(nn.RNN(nn.LSTMCell(4))(x)))


def reset(x):
    """The state is zeroed before the second step."""
    core = hk.ResetCore(hk.LSTM(4))
    when = jnp.zeros(x.shape[:2], bool).at[:, 1].set(True)
    return hk.dynamic_unroll(core, (x, when), core.initial_state(x.shape[0]), time_major=False)[0]


def reset_by_hand(rnn, x):
    return jnp.concatenate([rnn(x[:, :1]), rnn(x[:, 1:])], 1)


def reset_linen(m, x):
    return reset_by_hand(nn.RNN(nn.OptimizedLSTMCell(4)), x)


RECURRENT: dict[str, Case] = {
    "LSTM": Case(
        unrolled(lambda: hk.LSTM(4)),
        nn.RNN(nn.LSTMCell(4)),
        rolled(nnx.LSTMCell, 6, 4),
        verdicts=OFFSET,
        x64=False,
    ),
    "LSTM, optimized": Case(
        unrolled(lambda: hk.LSTM(4)),
        nn.RNN(nn.OptimizedLSTMCell(4)),
        rolled(nnx.OptimizedLSTMCell, 6, 4),
        verdicts=OFFSET,
        x64=False,
    ),
    "LSTM, two": Case(
        lambda x: unrolled(lambda: hk.LSTM(5))(unrolled(lambda: hk.LSTM(4))(x)),
        Inline(lambda m, x: nn.RNN(nn.LSTMCell(5))(nn.RNN(nn.LSTMCell(4))(x))),
        SumOfTwoNNX,
        verdicts=OFFSET,
        x64=False,
    ),
    "LSTM, both ways": Case(
        None,
        nn.Bidirectional(nn.RNN(nn.LSTMCell(4)), nn.RNN(nn.LSTMCell(4))),
        lambda rngs: nnx.Bidirectional(
            rolled(nnx.LSTMCell, 6, 4)(rngs), rolled(nnx.LSTMCell, 6, 4)(rngs), rngs=rngs
        ),
        x64=False,
    ),
    "vanilla RNN": Case(
        unrolled(lambda: hk.VanillaRNN(4)),
        nn.RNN(nn.SimpleCell(4, activation_fn=jax.nn.relu)),
        rolled(nnx.SimpleCell, 6, 4, activation_fn=jax.nn.relu),
        verdicts=TWO_BIASES,
        x64=False,
    ),
    "vanilla RNN, one bias": Case(
        unrolled(lambda: hk.VanillaRNN(4, double_bias=False)),
        nn.RNN(nn.SimpleCell(4, activation_fn=jax.nn.relu)),
        rolled(nnx.SimpleCell, 6, 4, activation_fn=jax.nn.relu),
        x64=False,
    ),
    "simple cell, residual": Case(
        None, nn.RNN(nn.SimpleCell(4, residual=True)), rolled(nnx.SimpleCell, 6, 4, residual=True), x64=False
    ),
    "GRU": Case(
        unrolled(lambda: hk.GRU(4)),
        nn.RNN(nn.GRUCell(4)),
        rolled(nnx.GRUCell, 6, 4),
        verdicts={("nnx", "linen"): EVALUATION},
        x64=False,
        refused={
            **dict.fromkeys(OFFSET, "applies the reset gate"),
            ("linen", "nnx"): "no recurrent bias, so it can only be left out if it is zero",
        },
    ),

    "conv LSTM 1-D": conv_lstm_case(1, SHORT),
    "conv LSTM 2-D": conv_lstm_case(2, IMAGE),
    "conv LSTM 3-D": conv_lstm_case(3, CUBE),
    "LSTM, in setup": Case(
        lambda x: jnp.tanh(unrolled(lambda: hk.LSTM(4))(x)),

        Chain([lambda: nn.RNN(nn.LSTMCell(4)), lambda: jnp.tanh]),
        None,
        verdicts=OFFSET,
        x64=False,
    ),
    "LSTM, both ways, in Haiku": Case(
        both_ways,
        nn.Bidirectional(nn.RNN(nn.LSTMCell(4)), nn.RNN(nn.LSTMCell(4))),
        lambda rngs: nnx.Bidirectional(
            rolled(nnx.LSTMCell, 6, 4)(rngs), rolled(nnx.OptimizedLSTMCell, 6, 4)(rngs), rngs=rngs
        ),
        STEPS,
        verdicts=OFFSET,
        x64=False,
        own=dict(
            haiku=("lstm", "lstm_1"),
            linen=("forward_rnn/cell", "backward_rnn/cell"),
            nnx=("forward_rnn/cell", "backward_rnn/cell"),
        ),
    ),
    "deep RNN": Case(
        deep,
        Inline(deep_linen),
        lambda rngs: Parts(
            lambda m, x: m.second(jnp.tanh(m.first(x))),
            first=rolled(nnx.LSTMCell, 6, 4)(rngs),
            second=rolled(nnx.SimpleCell, 4, 5, activation_fn=jax.nn.relu)(rngs),
        ),
        STEPS,
        verdicts=OFFSET,
        x64=False,
    ),
    "LSTM, reset": Case(
        reset,
        Inline(reset_linen),
        lambda rngs: Parts(lambda m, x: reset_by_hand(m.rnn, x), rnn=rolled(nnx.LSTMCell, 6, 4)(rngs)),
        STEPS,
        verdicts=OFFSET,
        x64=False,
    ),
    "GRU of Haiku": Case(
        unrolled(lambda: hk.GRU(4)),
        nn.RNN(HaikuGRULinen(4)),
        lambda rngs: nnx.RNN(HaikuGRUNNX(6, 4, rngs=rngs), rngs=rngs),
        STEPS,
        own={"haiku": ("gru",), "linen": ("cell",), "nnx": ("cell",)},
    ),
    "GRU without its recurrent bias": Case(
        None,
        nn.RNN(nn.GRUCell(4)),
        rolled(nnx.GRUCell, 6, 4),
        STEPS,
        mapping={NL: {"fill": {"params/cell/hn/bias": 0.0}}, LN: {}},
        refused={LN: "it can only be left out if it is zero"},
        verdicts={NL: NOT_EXACT},
        x64=False,
    ),
    "MGU": Case(
        None,
        nn.RNN(nn.MGUCell(4)),
        lambda rngs: nnx.RNN(MGUNNX(6, 4, rngs=rngs), rngs=rngs),
        STEPS,
        x64=False,
        own={"linen": ("cell", "cell/if", "cell/in"), "nnx": ("cell", "cell/if_", "cell/in_")},
    ),
}  # fmt: skip
