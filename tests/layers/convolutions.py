"""Rows of the convolutions: strides, padding, dilation, groups, masks; transposed, depthwise and local ones."""

import functools

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.case import (
    CUBE,
    HL,
    HN,
    IMAGE,
    LH,
    LN,
    NH,
    NL,
    NOT_EXACT,
    SHORT,
    Case,
    Inline,
    Parts,
    some,
)


class Separable(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 1), feature_group_count=4, use_bias=False)(x)
        return nn.Conv(8, (1, 3), feature_group_count=8)(x)


def separable_nnx(rngs):
    return nnx.Sequential(
        nnx.Conv(4, 8, (3, 1), feature_group_count=4, use_bias=False, rngs=rngs),
        nnx.Conv(8, 8, (1, 3), feature_group_count=8, rngs=rngs),
    )


MASK = (np.arange(3 * 3 * 4 * 5).reshape(3, 3, 4, 5) % 3 > 0).astype(np.float32)


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


def pad_like(mode, x):
    """The padding that Flax calls CIRCULAR and REFLECT, for a kernel of 3."""
    return jnp.pad(x, [(0, 0), (1, 1), (0, 0)], mode)


class LocalHaiku(hk.Module):
    """`nn.ConvLocal` in Haiku, for a kernel of 3 without padding."""

    def __call__(self, x):
        kernel = hk.get_parameter("kernel", [6, 12, 5], init=some)
        bias = hk.get_parameter("bias", [6, 5], init=some)
        return local(x, kernel, bias)


def local(x, kernel, bias):
    patches = jax.lax.conv_general_dilated_patches(x, (3,), (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
    return jnp.einsum("nxk,xko->nxo", patches, kernel) + bias


def channels_first(x):
    """A convolution, then a Linear over all that it gives, with the channels first."""
    x = hk.Conv2D(3, 3, data_format="NCHW")(x.transpose(0, 3, 1, 2))
    return hk.Linear(4)(jnp.tanh(x).reshape(x.shape[0], -1))


def channels_last(m, x):
    x = jnp.tanh(nn.Conv(3, (3, 3))(x))
    return nn.Dense(4)(x.reshape(x.shape[0], -1))


FLATTENED = {  # rows of a Linear that follow channels, height, width come to follow height, width, channels
    "src": "params/linear/w",
    "dst": "params/Dense_0/kernel",
    "ops": [
        {"op": "reshape", "shape": [3, 7, 6, 4]},
        {"op": "transpose", "axes": [1, 2, 0, 3]},
        {"op": "reshape", "shape": [-1, 4]},
    ],
}
UNFLATTENED = {
    "src": "params/Dense_0/kernel",
    "dst": "params/linear/w",
    "ops": [
        {"op": "reshape", "shape": [7, 6, 3, 4]},
        {"op": "transpose", "axes": [2, 0, 1, 3]},
        {"op": "reshape", "shape": [-1, 4]},
    ],
}
CONVOLUTIONS: dict[str, Case] = {
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
    "conv, causal": Case(
        lambda x: hk.Conv1D(4, 3, rate=2, padding=hk.pad.causal)(x),
        nn.Conv(4, (3,), padding="CAUSAL", kernel_dilation=2),
        lambda rngs: nnx.Conv(6, 4, (3,), padding="CAUSAL", kernel_dilation=2, rngs=rngs),
    ),
    "conv, same by function": Case(
        lambda x: hk.Conv2D(4, (4, 3), padding=(hk.pad.same, hk.pad.full))(x),
        nn.Conv(4, (4, 3), padding=[(1, 2), (2, 2)]),
        lambda rngs: nnx.Conv(4, 4, (4, 3), padding=[(1, 2), 2], rngs=rngs),
        IMAGE,
    ),
    "conv, same as pairs": Case(
        lambda x: hk.Conv1D(4, 4, padding="SAME")(x),
        nn.Conv(4, (4,), padding=[(1, 2)]),
        lambda rngs: nnx.Conv(6, 4, (4,), padding=((1, 2),), rngs=rngs),
    ),
    "conv, one number of padding": Case(
        lambda x: hk.Conv2D(4, 3, padding=[(1, 1), (2, 2)])(x),
        nn.Conv(4, (3, 3), padding=(1, 2)),
        lambda rngs: nnx.Conv(4, 4, (3, 3), padding=(1, 2), rngs=rngs),
        IMAGE,
    ),
    "conv, several batch axes": Case(
        lambda x: hk.BatchApply(hk.Conv1D(3, 3))(x),
        nn.Conv(3, (3,)),
        lambda rngs: nnx.Conv(4, 3, (3,), rngs=rngs),
        IMAGE,
    ),
    "conv, circular by hand": Case(
        lambda x: hk.Conv1D(4, 3, padding="VALID")(pad_like("wrap", x)),
        nn.Conv(4, (3,), padding="CIRCULAR"),
        lambda rngs: nnx.Conv(6, 4, (3,), padding="CIRCULAR", rngs=rngs),
        verdicts=dict.fromkeys([HL, HN, LH, NH], NOT_EXACT),
        mapping={pair: {"accept": {"{m:module}": ["padding"]}} for pair in (HL, HN, LH, NH)},
    ),
    "conv, reflected": Case(
        None,
        nn.Conv(4, (3,), padding="REFLECT"),
        lambda rngs: nnx.Conv(6, 4, (3,), padding="REFLECT", rngs=rngs),
    ),
    "conv 2-D, mask, in NNX": Case(
        None,
        nn.Conv(5, (3, 3), mask=MASK),
        lambda rngs: nnx.Conv(4, 5, (3, 3), mask=MASK, rngs=rngs),
        IMAGE,
        mapping={LN: {"fill": {"arrays/mask": MASK}}, NL: {"drop": [{"src": "arrays/mask", "value": MASK}]}},
        constants={"arrays/mask": MASK},
        verdicts={LN: NOT_EXACT, NL: NOT_EXACT},
    ),
    "conv, channels first, and a linear": Case(
        channels_first,
        Inline(channels_last),
        None,
        IMAGE,
        verdicts={HL: NOT_EXACT, LH: NOT_EXACT},
        mapping={
            HL: {"accept": {"Conv_0": ["channels_last"]}, "rules": [FLATTENED]},
            LH: {"accept": {"conv2_d": ["channels_last"]}, "rules": [UNFLATTENED]},
        },
    ),
    "conv transposed, same as pairs": Case(
        lambda x: hk.Conv1DTranspose(4, 3, 2, padding="SAME")(x),
        nn.ConvTranspose(4, (3,), (2,), padding=[(2, 1)]),
        lambda rngs: nnx.ConvTranspose(4, 4, (3,), (2,), padding=[(2, 1)], rngs=rngs),
        SHORT,
    ),
    "conv transposed, mask": Case(
        lambda x: hk.Conv2DTranspose(4, 3, mask=MASK[..., :4])(x),
        nn.ConvTranspose(4, (3, 3), mask=MASK[..., :4].swapaxes(-1, -2)),
        None,
        IMAGE,
    ),
    "depthwise conv 3-D": Case(
        lambda x: hk.DepthwiseConv3D(2, 3)(x),
        nn.Conv(4, (3, 3, 3), feature_group_count=2),
        lambda rngs: nnx.Conv(2, 4, (3, 3, 3), feature_group_count=2, rngs=rngs),
        CUBE,
    ),
    "conv local": Case(
        lambda x: LocalHaiku(name="local")(x),
        nn.ConvLocal(5, (3,), padding="VALID"),
        lambda rngs: Parts(
            lambda m, x: local(x, m.kernel[...], m.bias[...]),
            kernel=nnx.Param(jnp.zeros((6, 12, 5))),
            bias=nnx.Param(jnp.zeros((6, 5))),
        ),
        SHORT,
        own={"haiku": ("local",), "linen": ("",), "nnx": ("",)},
    ),
    **_TRANSPOSED,
}  # fmt: skip
