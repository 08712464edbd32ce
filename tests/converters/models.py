"""Pairs of models, a Haiku function and its counterparts, for `converters.verify` and its mutation tests."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

some = hk.initializers.RandomNormal()
X = np.random.default_rng(3).normal(size=(4, 6)).astype(np.float32)
IMAGES = np.random.default_rng(4).normal(size=(2, 8, 8, 3)).astype(np.float32)
TEXT = np.random.default_rng(5).normal(size=(2, 5, 6)).astype(np.float32)


def mlp(x: Any) -> Any:
    h = jax.nn.relu(hk.Linear(6)(x))
    h = hk.LayerNorm(-1, True, True)(hk.Linear(6)(h))
    return hk.Linear(3)(h)


class MLP(nn.Module):
    epsilon: float = 1e-5
    activation: Any = nn.relu

    @nn.compact
    def __call__(self, x: Any) -> Any:
        h = self.activation(nn.Dense(6)(x))
        h = nn.LayerNorm(epsilon=self.epsilon, use_fast_variance=False)(nn.Dense(6)(h))
        return nn.Dense(3)(h)


class NNXMLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, epsilon: float = 1e-5, activation: Any = nnx.relu):
        self.a, self.b = nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)
        self.norm = nnx.LayerNorm(6, epsilon=epsilon, use_fast_variance=False, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Any) -> Any:
        return self.head(self.norm(self.b(self.activation(self.a(x)))))


def cnn(x: Any, train: bool = False) -> Any:
    h = hk.Conv2D(4, 3, stride=2, with_bias=False, name="stem")(x)
    h = jax.nn.relu(hk.BatchNorm(True, True, 0.9, name="norm")(h, train))
    h = hk.Conv2D(4, 3, name="inner")(h)
    return hk.Linear(3, name="head")(jnp.mean(h, (1, 2)))


class CNN(nn.Module):
    epsilon: float = 1e-5
    padding: Any = "SAME"
    train: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        h = nn.Conv(4, (3, 3), (2, 2), padding=self.padding, use_bias=False, name="stem")(x)
        norm = nn.BatchNorm(use_running_average=not self.train, momentum=0.9, epsilon=self.epsilon, name="norm")
        h = nn.Conv(4, (3, 3), name="inner")(nn.relu(norm(h)))
        return nn.Dense(3, name="head")(jnp.mean(h, (1, 2)))


def lstm(x: Any) -> Any:
    core = hk.LSTM(4)
    h, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)
    return hk.Linear(3)(h)


class LSTM(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3)(nn.RNN(nn.LSTMCell(4))(x))


def attention(x: Any) -> Any:
    for i in range(2):
        x = x + hk.MultiHeadAttention(3, 2, w_init=some, name=f"attention_{i}")(x, x, x)
        x = x + hk.Linear(6, name=f"out_{i}")(jax.nn.gelu(hk.Linear(6, name=f"in_{i}")(x)))
    return x


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        for i in range(2):
            x = x + nn.MultiHeadDotProductAttention(3, qkv_features=6, out_features=6, name=f"attention_{i}")(x, x)
            x = x + nn.Dense(6, name=f"out_{i}")(nn.gelu(nn.Dense(6, name=f"in_{i}")(x)))
        return x


def decoder(x: Any) -> Any:
    return jnp.tanh(hk.Conv2DTranspose(3, 3, stride=2)(x))


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return jnp.tanh(nn.ConvTranspose(3, (3, 3), (2, 2))(x))
