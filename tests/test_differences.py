"""Layers that differ in a hyperparameter are refused, with what the difference does and what to pass instead."""

import inspect

import flax.linen as nn
import haiku as hk
import jax
import numpy as np
import pytest
from flax import nnx

from bridges import haiku_adapter, linen_adapter, nnx_adapter
from bridges.core._errors import MappingError
from bridges.core._spec import Layer
from bridges.mapping._agree import normal
from bridges.mapping._hyper import Hyper
from bridges.param_mapping import conventions
from tests.case import Inline, some, true, unrolled
from tests.layers.convolutions import MASK
from tests.layers.recurrent import conv_lstm


def one_sided(m, x):
    cell = nn.ConvLSTMCell(3, (3, 3), padding=[(2, 0), (2, 0)])
    return cell(cell.initialize_carry(jax.random.key(0), x.shape), x)[1]


def spec_of(model, x):
    if isinstance(model, nn.Module):
        return linen_adapter.spec(model, x)
    if "rngs" in inspect.signature(model).parameters:
        return nnx_adapter.spec(model)
    return haiku_adapter.spec(model, x)


WRONG = {
    "group norm, groups": (lambda x: hk.GroupNorm(2)(x), nn.GroupNorm(4, **true), "pass num_groups=2"),
    "group norm, variance": (lambda x: hk.GroupNorm(2)(x), nn.GroupNorm(2, epsilon=1e-5), "use_fast_variance=False"),
    "group norm, axes": (lambda x: hk.GroupNorm(2, axis=(1, 2))(x), nn.GroupNorm(2, **true), "has all_but_batch True"),
    "instance norm, epsilon": (
        lambda x: hk.InstanceNorm(True, True)(x), nn.InstanceNorm(use_fast_variance=False), "pass epsilon=1e-05",
    ),
    "RMS norm, epsilon": (lambda x: hk.RMSNorm(-1)(x), nn.RMSNorm(), "pass epsilon=1e-05"),
    "batch norm, axis": (
        lambda x: hk.BatchNorm(True, True, 0.9, data_format="NC...")(x, True),
        nn.BatchNorm(use_running_average=True, momentum=0.9),
        "has channels_last",
    ),
    "batch norm, devices": (
        lambda x: hk.BatchNorm(True, True, 0.9)(x, True),
        nn.BatchNorm(use_running_average=True, momentum=0.9, axis_name="devices"),
        "one device instead of all",
    ),
    "conv, mask": (lambda x: hk.Conv2D(5, 3, mask=MASK)(x), nn.Conv(5, (3, 3)), "has mask False"),
    "conv transposed, stride": (
        lambda x: hk.Conv2DTranspose(4, 3, 2)(x), nn.ConvTranspose(4, (3, 3)), "pass strides=2",
    ),
    "conv transposed, output shape": (
        lambda x: hk.Conv2DTranspose(4, 3, 2, output_shape=(7, 7))(x),
        nn.ConvTranspose(4, (3, 3), (2, 2)),
        "write it out, as pairs",
    ),
    "conv transposed, dilation": (
        lambda x: hk.Conv2DTranspose(4, 3)(x), nn.ConvTranspose(4, (3, 3), kernel_dilation=(2, 2)), "kernel_dilation=1",
    ),
    "attention, normalised": (
        lambda x: hk.MultiHeadAttention(3, 2, w_init=some)(x, x, x),
        nn.MultiHeadDotProductAttention(3, qkv_features=6, out_features=6, normalize_qk=True),
        "normalize_qk=False",
    ),
    "vanilla RNN, activation": (
        unrolled(lambda: hk.VanillaRNN(4)), nn.RNN(nn.SimpleCell(4)), "pass activation_fn='relu'",
    ),
    "LSTM, activation": (
        unrolled(lambda: hk.LSTM(4)), nn.RNN(nn.LSTMCell(4, activation_fn=jax.nn.relu)), "pass activation_fn='tanh'",
    ),
    "attention, dropout": (
        lambda x: hk.MultiHeadAttention(3, 2, w_init=some)(x, x, x),
        nn.MultiHeadDotProductAttention(3, qkv_features=6, out_features=6, dropout_rate=0.1, deterministic=True),
        "pass dropout_rate=0.0",
    ),
    "layer norm, devices": (
        lambda x: hk.LayerNorm(-1, True, True)(x),
        lambda rngs: nnx.LayerNorm(6, axis_name="devices", rngs=rngs, **true),
        "one device instead of all",
    ),
    "conv, the same padding by a function of the kernel, with a stride": (
        lambda x: hk.Conv2D(4, 3, 2, padding=hk.pad.same)(x),
        nn.Conv(4, (3, 3), 2),
        r"has padding 'SAME', .* has \(\(1, 1\), \(1, 1\)\): pass padding=\(\(1, 1\), \(1, 1\)\)",
    ),
    "conv, two numbers of padding": (
        lambda x: hk.Conv2D(4, 3, padding=(1, 2))(x),
        nn.Conv(4, (3, 3), padding=(1, 2)),
        r"pass padding=\(\(1, 2\), \(1, 2\)\)",
    ),
    "conv 1-D, causal and not": (
        lambda x: hk.Conv1D(4, 3, padding=hk.pad.causal)(x), nn.Conv(4, (3,)), r"pass padding=\(\(2, 0\),\)",
    ),
    "conv LSTM, padding": (conv_lstm, Inline(one_sided), "Haiku's cell keeps the size of the image"),
    "group norm, NNX's axes": (
        nn.GroupNorm(2, reduction_axes=(2, 3), **true),
        lambda rngs: nnx.GroupNorm(4, 2, reduction_axes=(2, 3), rngs=rngs, **true),
        "leave reduction_axes out at the NNX end.*along the wrong axis",
    ),
    "spectral norm": (
        lambda x: hk.Linear(4)(x),
        Inline(lambda m, x: nn.SpectralNorm(nn.Dense(4))(x, update_stats=False)),
        "which cannot be converted: Haiku normalises a weight",
    ),
    "bias": (lambda x: hk.Bias()(x), nn.Dense(4), "haiku.Bias, which cannot be converted: No Flax layer"),
    "MGU": (lambda x: hk.Linear(4)(x), nn.RNN(nn.MGUCell(4)), "linen.MGUCell, which cannot be converted"),
    "8 bits": (
        nn.Dense(4, dot_general_cls=nn.Fp8DirectDotGeneralOp), lambda rngs: nnx.Linear(6, 4, rngs=rngs),
        r"\(the layer linen.Fp8DirectDotGeneralOp cannot be converted: only Linen multiplies in 8 bits",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_differs_is_refused_with_the_reason(name):
    source, target, reason = WRONG[name]
    image = any(word in name for word in ("group", "instance", "batch norm", "conv", "spectral")) and "1-D" not in name
    x = np.ones((2, 4, 4, 4) if image else (2, 5, 6), np.float32)
    src, dst = spec_of(source, x), spec_of(target, x)
    with pytest.raises(MappingError, match=reason):
        conventions(src.framework, dst.framework).plan(src, dst)


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_norm_that_trains_until_told_otherwise_is_noted(training):
    x = np.ones((2, 4, 4, 4), np.float32)
    src = linen_adapter.spec(nn.BatchNorm(use_running_average=True), x)
    dst = nnx_adapter.spec(lambda rngs: nnx.BatchNorm(4, use_running_average=not training, rngs=rngs))
    plan = conventions("linen", "nnx").plan(src, dst)
    assert plan.verdict == "exact" and plan.reasons == ()
    assert ("note: the target's BatchNorm" in str(plan)) == training
    assert [note for verdict, note in plan.losses if "model.eval()" in note] == [note for _, note in plan.losses]
    assert len(plan.losses) == training


PADDED = [
    *(
        (n, k, d, s, pad)
        for n, k, d, s in [(1, 3, 1, 1), (1, 4, 1, 1), (2, 2, 2, 1), (1, 5, 3, 1)]
        for pad in ("SAME", "VALID")
    ),
    (2, 3, 1, 2, "VALID"),
    (1, 3, 2, 1, "CAUSAL"),
    (1, 3, 1, 2, "CAUSAL"),
]


@pytest.mark.parametrize("n,kernel,dilation,stride,name", PADDED)
def test_padding_by_name_is_what_the_framework_does(n, kernel, dilation, stride, name):
    """The pairs that the comparison takes a name for give the framework's own output."""
    layer = Layer(
        "linen.Conv", {"kernel_size": (kernel,) * n, "kernel_dilation": dilation, "strides": stride, "padding": name}
    )
    pairs = normal(Hyper("padding", form="dimensions", window=("kernel_size", "kernel_dilation", "strides")), layer)
    outs = []
    for padding in (name, pairs):
        module = nn.Conv(2, (kernel,) * n, stride, padding, kernel_dilation=dilation)
        outs.append(module.init_with_output(jax.random.key(0), np.ones((1, *(9, 8)[:n], 2), np.float32))[0])
    assert np.array_equal(*outs)


@pytest.mark.parametrize("kernel,dilation,stride,name", [
    (k, d, s, name) for k in (1, 2, 3, 4) for d in (1, 2) for s in (1, 2, 3) for name in ("SAME", "VALID")
])  # fmt: skip
def test_padding_by_name_of_a_transposed_convolution(kernel, dilation, stride, name):
    layer = Layer("", {"kernel_size": (kernel,), "kernel_dilation": (dilation,), "strides": (stride,), "padding": name})
    pairs = normal(Hyper("padding", form="dimensions, transposed", window=tuple(layer.hyperparameters)[:3]), layer)
    x, w = np.ones((1, 7, 2), np.float32), np.random.default_rng(0).normal(size=(kernel, 2, 3)).astype(np.float32)
    by_name, by_pairs = (jax.lax.conv_transpose(x, w, (stride,), p, rhs_dilation=(dilation,)) for p in (name, pairs))
    assert np.array_equal(by_name, by_pairs)
