"""A language model of two LSTM layers, unrolled by each framework's own means."""

import flax.linen as nn
import haiku as hk
import jax
from flax import nnx

VOCABULARY, WIDTH = 11, 6


def haiku(tokens, train):
    x = hk.Embed(VOCABULARY, WIDTH)(tokens)
    core = hk.DeepRNN([hk.LSTM(WIDTH), hk.LSTM(8)])
    x, _ = hk.dynamic_unroll(core, x, core.initial_state(tokens.shape[0]), time_major=False)
    return hk.Linear(VOCABULARY)(x)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, tokens, train):
        x = nn.Embed(VOCABULARY, WIDTH)(tokens)
        x = nn.RNN(nn.OptimizedLSTMCell(WIDTH))(x)
        x = nn.RNN(nn.OptimizedLSTMCell(8))(x)
        return nn.Dense(VOCABULARY)(x)


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.rnns = nnx.List([nnx.RNN(nnx.LSTMCell(WIDTH, n, rngs=rngs)) for n in (WIDTH, 8)])
        self.out = nnx.Linear(8, VOCABULARY, rngs=rngs)

    def __call__(self, tokens, train):
        x = self.embed(tokens)
        for rnn in self.rnns:
            x = rnn(x)
        return self.out(x)


def inputs():
    return (jax.random.randint(jax.random.key(0), (2, 5), 0, VOCABULARY),)


LINES: dict = {}
