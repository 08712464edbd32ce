"""One table of layers: a row a configuration, with its constructor in each framework that has it, and an input.

`tests/test_cases.py` runs properties over the table: plan between every two of the frameworks, outputs and gradients
equal, round trips. A row that a framework lacks is None there. `verdicts` has what `plan.verdict` is for a pair where it
is not 'exact'; `refused` a pair's error text, where the pair has no plan.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

ROUNDING, EVALUATION = "exact to rounding", "exact for evaluation only"
TEXT, IMAGE, SHORT, CUBE = (2, 5, 6), (2, 7, 6, 4), (2, 8, 4), (1, 4, 3, 5, 2)
true = {"epsilon": 1e-5, "use_fast_variance": False}
some = hk.initializers.RandomNormal()
Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer in three frameworks.

    Attributes:
      haiku: A function of the input.
      linen: A module.
      nnx: A function that returns a module, of an `nnx.Rngs`.
      shape: The input's shape; or `int` for tokens.
      train: A Haiku function that makes all variables, where `haiku` does not (BatchNorm in evaluation).
      verdicts: What is not 'exact', by pair.
      refused: Part of the error's text, by pair.
      x64: Whether float64 is kept throughout; some NNX layers compute in float32 whatever they are given.
      modules: `[modules]` of the mapping, by pair.
    """

    haiku: Callable[..., Any] | None = None
    linen: nn.Module | None = None
    nnx: Callable[..., Any] | None = None
    shape: Any = TEXT
    train: Callable[..., Any] | None = None
    verdicts: Mapping[Pair, str] = dataclasses.field(default_factory=dict)
    refused: Mapping[Pair, str] = dataclasses.field(default_factory=dict)
    x64: bool = True
    modules: Mapping[Pair, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    @property
    def frameworks(self) -> list[str]:
        return [name for name in ("haiku", "linen", "nnx") if getattr(self, name) is not None]

    def inputs(self) -> np.ndarray:
        rng = np.random.default_rng(3)
        if self.shape is int:
            return rng.integers(0, 7, (2, 3)).astype(np.int32)
        return rng.normal(size=self.shape).astype(np.float32)


def heads(x: Any) -> Any:
    return hk.MultiHeadAttention(3, 2, w_init=some)(x, x, x)


def unrolled(core: Callable[[], hk.RNNCore]) -> Callable[..., Any]:
    def run(x: Any) -> Any:
        made = core()
        return hk.dynamic_unroll(made, x, made.initial_state(x.shape[0]), time_major=False)[0]

    return run


def rolled(cell: type, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    return lambda rngs: nnx.RNN(cell(*args, rngs=rngs, **kwargs), rngs=rngs)


def to_linear(x: Any) -> Any:
    """DenseGeneral over the last two axes, to two axes."""
    return hk.Linear(6)(x.reshape(*x.shape[:-2], -1)).reshape(*x.shape[:-2], 3, 2)


class Wrapped(nn.Module):
    """Calls a list of layers in turn, from setup."""

    made: Any

    def setup(self) -> None:
        self.layers = [make() for make in self.made]

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


class SumOfTwo(nn.Module):
    """Two recurrent networks of unlike sizes, one after the other."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.RNN(nn.LSTMCell(5))(nn.RNN(nn.LSTMCell(4))(x))


class SumOfTwoNNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.RNN(nnx.LSTMCell(6, 4, rngs=rngs), rngs=rngs)
        self.second = nnx.RNN(nnx.OptimizedLSTMCell(4, 5, rngs=rngs), rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.second(self.first(x))


class SpectralLinen(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.SpectralNorm(nn.Dense(4))(x, update_stats=False)


class Dropped(nnx.Module):
    """Has random state that nobody else has."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(6, 4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.drop(self.first(x))


class ConvLSTM(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        cell = nn.ConvLSTMCell(3, (3, 3))
        return cell(cell.initialize_carry(jax.random.key(0), x.shape), x)[1]


def conv_lstm(x: Any) -> Any:
    core = hk.Conv2DLSTM(input_shape=x.shape[1:-1], output_channels=3, kernel_shape=3)
    return core(x, core.initial_state(x.shape[0]))[0]


class Separable(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(8, (3, 1), feature_group_count=4, use_bias=False)(x)
        return nn.Conv(8, (1, 3), feature_group_count=8)(x)


def separable_nnx(rngs: nnx.Rngs) -> Any:
    return nnx.Sequential(
        nnx.Conv(4, 8, (3, 1), feature_group_count=4, use_bias=False, rngs=rngs),
        nnx.Conv(8, 8, (1, 3), feature_group_count=8, rngs=rngs),
    )


MASK = (np.arange(3 * 3 * 4 * 5).reshape(3, 3, 4, 5) % 3 > 0).astype(np.float32)
RMS = {"epsilon": 1e-5}
STATS = {("haiku", "linen"): EVALUATION, ("haiku", "nnx"): EVALUATION}
OFFSET = {pair: ROUNDING for pair in [("haiku", "linen"), ("haiku", "nnx"), ("linen", "haiku"), ("nnx", "haiku")]}
TWO_BIASES = {pair: EVALUATION for pair in OFFSET}
RECURRENT_BIAS = {("linen", "nnx"): "no recurrent bias"}

_TRANSPOSED: dict[str, Case] = {
    f"conv {n}-D transposed, {pad}, stride {stride}{', kernel transposed' * tk}": Case(
        functools.partial(
            lambda x, n, stride, pad: getattr(hk, f"Conv{n}DTranspose")(4, 3, stride, padding=pad)(x),
            n=n, stride=stride, pad=pad,
        ),
        nn.ConvTranspose(4, (3,) * n, (stride,) * n, pad, transpose_kernel=tk),
        functools.partial(
            lambda rngs, n, stride, pad, tk, c: nnx.ConvTranspose(
                c, 4, (3,) * n, (stride,) * n, padding=pad, transpose_kernel=tk, rngs=rngs
            ),
            n=n, stride=stride, pad=pad, tk=tk, c=shape[-1],
        ),
        shape,
    )
    for n, stride, pad, tk, shape in [
        (1, 1, "SAME", False, SHORT), (2, 2, "SAME", False, IMAGE), (2, 2, "VALID", True, IMAGE), (3, 1, "SAME", True, CUBE),
        (1, 3, "VALID", True, SHORT),
    ]
}  # fmt: skip

CASES: dict[str, Case] = {
    "linear": Case(lambda x: hk.Linear(4)(x), nn.Dense(4), lambda rngs: nnx.Linear(6, 4, rngs=rngs)),
    "linear without bias": Case(
        lambda x: hk.Linear(4, with_bias=False)(x),
        nn.Dense(4, use_bias=False),
        lambda rngs: nnx.Linear(6, 4, use_bias=False, rngs=rngs),
    ),
    "linear, several axes": Case(
        to_linear,
        nn.DenseGeneral((3, 2), (-2, -1)),
        lambda rngs: nnx.LinearGeneral((5, 6), (3, 2), axis=(-2, -1), rngs=rngs)
    ),
    "linear as general": Case(
        lambda x: hk.Linear(4)(x), nn.DenseGeneral(4), lambda rngs: nnx.LinearGeneral(6, 4, rngs=rngs)
    ),
    "linear, batched": Case(
        None,
        nn.DenseGeneral(3, batch_dims=(0,)),
        lambda rngs: nnx.LinearGeneral(6, 3, batch_axis={0: 2}, rngs=rngs),
    ),
    "einsum": Case(
        None,
        nn.Einsum((6, 3, 2), "abc,cde->abde"),
        lambda rngs: nnx.Einsum("abc,cde->abde", (6, 3, 2), (3, 2), rngs=rngs),
    ),
    "conv 1-D": Case(
        lambda x: hk.Conv1D(4, 3)(x), nn.Conv(4, (3,)), lambda rngs: nnx.Conv(6, 4, (3,), rngs=rngs)
    ),
    "conv 2-D, stride": Case(
        lambda x: hk.Conv2D(4, (3, 2), 2, padding="VALID")(x),
        nn.Conv(4, (3, 2), 2, "VALID"),
        lambda rngs: nnx.Conv(4, 4, (3, 2), 2, padding="VALID", rngs=rngs),
        IMAGE,
    ),
    "conv 2-D, pairs, dilated": Case(
        lambda x: hk.Conv2D(4, 3, rate=2, padding=(1, 2))(x),
        nn.Conv(4, (3, 3), padding=[(1, 2), (1, 2)], kernel_dilation=2),
        lambda rngs: nnx.Conv(4, 4, (3, 3), padding=[(1, 2), (1, 2)], kernel_dilation=2, rngs=rngs),
        IMAGE,
    ),
    "conv 2-D, groups": Case(
        lambda x: hk.Conv2D(6, 3, with_bias=False, feature_group_count=2)(x),
        nn.Conv(6, (3, 3), use_bias=False, feature_group_count=2),
        lambda rngs: nnx.Conv(4, 6, (3, 3), use_bias=False, feature_group_count=2, rngs=rngs),
        IMAGE,
    ),
    "conv 2-D, mask": Case(
        lambda x: hk.Conv2D(5, 3, mask=MASK)(x), nn.Conv(5, (3, 3), mask=MASK), None, IMAGE
    ),
    "conv 3-D": Case(
        lambda x: hk.Conv3D(2, 3)(x), nn.Conv(2, (3, 3, 3)), lambda rngs: nnx.Conv(2, 2, (3, 3, 3), rngs=rngs), CUBE
    ),
    "conv, circular": Case(
        None,
        nn.Conv(4, (3,), padding="CIRCULAR"),
        lambda rngs: nnx.Conv(6, 4, (3,), padding="CIRCULAR", rngs=rngs),
    ),
    "conv transposed by dilating the input": Case(
        None,
        nn.Conv(4, (3,), input_dilation=2, padding=[(1, 2)]),
        lambda rngs: nnx.Conv(6, 4, (3,), input_dilation=2, padding=[(1, 2)], rngs=rngs),
    ),
    **_TRANSPOSED,
    "conv transposed, pairs": Case(
        lambda x: hk.Conv2DTranspose(4, 3, 2, padding=[(1, 2), (2, 1)])(x),
        nn.ConvTranspose(4, (3, 3), (2, 2), [(1, 2), (2, 1)]),
        lambda rngs: nnx.ConvTranspose(4, 4, (3, 3), (2, 2), padding=[(1, 2), (2, 1)], rngs=rngs),
        IMAGE,
    ),
    "conv transposed, circular": Case(
        None,
        nn.ConvTranspose(4, (3,), padding="CIRCULAR"),
        lambda rngs: nnx.ConvTranspose(6, 4, (3,), padding="CIRCULAR", rngs=rngs),
    ),
    "conv transposed, either way of storing": Case(
        None,
        nn.ConvTranspose(6, (3, 3), transpose_kernel=True),
        lambda rngs: nnx.ConvTranspose(4, 6, (3, 3), transpose_kernel=False, rngs=rngs),
        IMAGE,
    ),
    "depthwise conv 1-D": Case(
        lambda x: hk.DepthwiseConv1D(2, 3)(x),
        nn.Conv(8, (3,), feature_group_count=4),
        lambda rngs: nnx.Conv(4, 8, (3,), feature_group_count=4, rngs=rngs),
        SHORT,
    ),
    "depthwise conv 2-D": Case(
        lambda x: hk.DepthwiseConv2D(2, 3, padding="VALID")(x),
        nn.Conv(8, (3, 3), feature_group_count=4, padding="VALID"),
        lambda rngs: nnx.Conv(4, 8, (3, 3), feature_group_count=4, padding="VALID", rngs=rngs),
        IMAGE,
    ),
    "separable depthwise conv": Case(
        lambda x: hk.SeparableDepthwiseConv2D(2, 3)(x), Separable(), separable_nnx, IMAGE
    ),
    "layer norm": Case(
        lambda x: hk.LayerNorm(-1, True, True)(x), nn.LayerNorm(**true), lambda rngs: nnx.LayerNorm(6, rngs=rngs, **true)
    ),
    "layer norm, scale only": Case(
        lambda x: hk.LayerNorm(-1, True, False)(x),
        nn.LayerNorm(use_bias=False, **true),
        lambda rngs: nnx.LayerNorm(6, use_bias=False, rngs=rngs, **true),
    ),
    "layer norm, two axes": Case(
        lambda x: hk.LayerNorm((-2, -1), True, True, param_axis=(-2, -1))(x),
        nn.LayerNorm(reduction_axes=(-2, -1), feature_axes=(-2, -1), **true),
        lambda rngs: nnx.LayerNorm(30, reduction_axes=(-2, -1), feature_axes=(-2, -1), rngs=rngs, **true),
    ),
    "RMS norm": Case(
        lambda x: hk.RMSNorm(-1)(x), nn.RMSNorm(**RMS), lambda rngs: nnx.RMSNorm(6, rngs=rngs, **RMS)
    ),
    "group norm": Case(
        lambda x: hk.GroupNorm(2)(x), nn.GroupNorm(2, **true), lambda rngs: nnx.GroupNorm(4, 2, rngs=rngs, **true), IMAGE
    ),
    "group norm, no offset": Case(
        lambda x: hk.GroupNorm(4, create_offset=False)(x),
        nn.GroupNorm(4, use_bias=False, **true),
        lambda rngs: nnx.GroupNorm(4, 4, use_bias=False, rngs=rngs, **true),
        IMAGE,
    ),
    "instance norm": Case(
        lambda x: hk.InstanceNorm(True, True)(x),
        nn.InstanceNorm(**true),
        lambda rngs: nnx.InstanceNorm(4, rngs=rngs, **true),
        IMAGE,
    ),
    "instance norm, channels first": Case(
        lambda x: hk.InstanceNorm(True, True, data_format="NC...")(x),
        nn.InstanceNorm(feature_axes=1, **true),
        None,
        IMAGE,
    ),
    "batch norm": Case(
        lambda x: hk.BatchNorm(True, True, 0.9)(x, False),
        nn.BatchNorm(use_running_average=True, momentum=0.9),
        lambda rngs: nnx.BatchNorm(4, use_running_average=True, momentum=0.9, rngs=rngs),
        IMAGE,
        train=lambda x: hk.BatchNorm(True, True, 0.9)(x, True),
        verdicts=STATS,
    ),
    "batch norm, in training": Case(
        lambda x: hk.BatchNorm(True, True, 0.9)(x, True),
        nn.BatchNorm(use_running_average=False, momentum=0.9),
        lambda rngs: nnx.BatchNorm(4, use_running_average=False, momentum=0.9, rngs=rngs),
        IMAGE,
        verdicts=STATS,
    ),
    "batch norm, no scale": Case(
        lambda x: hk.BatchNorm(False, True, 0.9)(x, False),
        nn.BatchNorm(use_running_average=True, momentum=0.9, use_scale=False),
        lambda rngs: nnx.BatchNorm(4, use_running_average=True, momentum=0.9, use_scale=False, rngs=rngs),
        IMAGE,
        train=lambda x: hk.BatchNorm(False, True, 0.9)(x, True),
        verdicts=STATS,
    ),
    "batch norm, channels first": Case(
        lambda x: hk.BatchNorm(True, True, 0.9, data_format="NC...")(x, False),
        nn.BatchNorm(use_running_average=True, momentum=0.9, axis=1),
        lambda rngs: nnx.BatchNorm(7, use_running_average=True, momentum=0.9, axis=1, rngs=rngs),
        IMAGE,
        train=lambda x: hk.BatchNorm(True, True, 0.9, data_format="NC...")(x, True),
        verdicts=STATS,
    ),
    "embed": Case(
        lambda x: hk.Embed(7, 5)(x), nn.Embed(7, 5), lambda rngs: nnx.Embed(7, 5, rngs=rngs), int, x64=False
    ),
    "attention": Case(
        heads,
        nn.MultiHeadDotProductAttention(3, qkv_features=6, out_features=6),
        lambda rngs: nnx.MultiHeadAttention(3, 6, qkv_features=6, out_features=6, decode=False, rngs=rngs),
        x64=False,
    ),
    "attention, other width": Case(
        lambda x: hk.MultiHeadAttention(2, 4, w_init=some, model_size=5, with_bias=False)(x, x, x),
        nn.MultiHeadDotProductAttention(2, qkv_features=8, out_features=5, use_bias=False),
        lambda rngs: nnx.MultiHeadAttention(
            2, 6, qkv_features=8, out_features=5, use_bias=False, decode=False, rngs=rngs
        ),
        x64=False,
    ),
    "attention, normalised": Case(
        None,
        nn.MultiHeadDotProductAttention(3, qkv_features=6, out_features=6, normalize_qk=True),
        lambda rngs: nnx.MultiHeadAttention(
            3, 6, qkv_features=6, out_features=6, normalize_qk=True, decode=False, rngs=rngs
        ),
        x64=False,
    ),
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
        SumOfTwo(),
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
    "conv LSTM": Case(conv_lstm, ConvLSTM(), None, IMAGE),
    "PReLU": Case(None, nn.PReLU(), lambda rngs: nnx.PReLU()),
    "MLP": Case(
        lambda x: hk.nets.MLP([5, 4, 3])(x),
        Wrapped([functools.partial(nn.Dense, 5), lambda: nn.relu, functools.partial(nn.Dense, 4), lambda: nn.relu,
                 functools.partial(nn.Dense, 3)]),
        lambda rngs: nnx.Sequential(
            nnx.Linear(6, 5, rngs=rngs), nnx.relu, nnx.Linear(5, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 3, rngs=rngs)
        ),
    ),
    "sequential": Case(
        lambda x: hk.Sequential([hk.Linear(6), jnp.tanh, hk.Linear(6), jnp.tanh, hk.Linear(6)])(x),
        nn.Sequential([nn.Dense(6), jnp.tanh, nn.Dense(6), jnp.tanh, nn.Dense(6)]),
        lambda rngs: nnx.Sequential(
            nnx.Linear(6, 6, rngs=rngs), jnp.tanh, nnx.Linear(6, 6, rngs=rngs), jnp.tanh, nnx.Linear(6, 6, rngs=rngs)
        ),
    ),
    "dropout's random state": Case(lambda x: hk.Linear(4)(x), nn.Dense(4), Dropped),
}  # fmt: skip
