"""Rows of the normalisations."""

import flax.linen as nn
import haiku as hk
import jax.numpy as jnp
from flax import nnx

from tests.case import EVALUATION, HL, HN, IMAGE, LH, LN, NH, NL, Case, Inline, some, true

RMS = {"epsilon": 1e-5}
STATS = {HL: EVALUATION, HN: EVALUATION}
OVERWRITTEN = "NNX writes the normalised kernel back at every call"


def spectral(x):
    """A Linear whose weight is normalised, as one does it in Haiku."""
    w = hk.get_parameter("w", [6, 4], init=some)
    return x @ hk.SpectralNorm(eps=1e-12)(w) + hk.get_parameter("b", [4], init=some)


def weight_normed(x):
    """`nn.WeightNorm(nn.Dense(4))` in Haiku."""
    w, g = hk.get_parameter("w", [6, 4], init=some), hk.get_parameter("g", [4], init=some)
    length = jnp.sqrt(jnp.maximum(jnp.sum(w**2, 0, keepdims=True), 1e-12))
    return x @ (w / length * g) + hk.get_parameter("b", [4], init=some)


def rename(**pairs):
    return [{"src": src, "dst": dst} for src, dst in pairs.items()]


def rules(*pairs, **kwargs):
    return {"rules": [{"src": src, "dst": dst, **kwargs} for src, dst in pairs]}


NORMS: dict[str, Case] = {
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
    "layer norm, one set of parameters for all axes": Case(
        lambda x: hk.LayerNorm((1, 2), True, True, param_axis=-1)(x),
        nn.LayerNorm(reduction_axes=(1, 2), feature_axes=-1, **true),
        lambda rngs: nnx.LayerNorm(6, reduction_axes=(1, 2), feature_axes=-1, rngs=rngs, **true),
    ),
    "RMS norm, two axes": Case(
        lambda x: hk.RMSNorm((-2, -1), param_axis=(-2, -1))(x),
        nn.RMSNorm(reduction_axes=(-2, -1), feature_axes=(-2, -1), **RMS),
        lambda rngs: nnx.RMSNorm(30, reduction_axes=(-2, -1), feature_axes=(-2, -1), rngs=rngs, **RMS),
    ),
    "batch norm, another epsilon": Case(
        lambda x: hk.BatchNorm(True, True, 0.99, eps=1e-3)(x, True),
        nn.BatchNorm(use_running_average=False, epsilon=1e-3),
        lambda rngs: nnx.BatchNorm(6, epsilon=1e-3, rngs=rngs),
        verdicts=STATS,
    ),
    "spectral norm": Case(
        spectral,
        Inline(lambda m, x: nn.SpectralNorm(nn.Dense(4))(x, update_stats=True)),
        lambda rngs: nnx.SpectralNorm(nnx.Linear(6, 4, rngs=rngs), rngs=rngs),
        mapping={
            HL: rules(
                ("params/~/w", "params/Dense_0/kernel"),
                ("params/~/b", "params/Dense_0/bias"),
                ("state/spectral_norm/u0", "batch_stats/SpectralNorm_0/Dense_0%2Fkernel%2Fu"),
                ("state/spectral_norm/sigma", "batch_stats/SpectralNorm_0/Dense_0%2Fkernel%2Fsigma"),
            ),
            HN: rules(
                ("params/~/w", "params/layer_instance/kernel"),
                ("params/~/b", "params/layer_instance/bias"),
                ("state/spectral_norm/u0", "batch_stats/batch_stats/kernel%2Fu"),
                ("state/spectral_norm/sigma", "batch_stats/batch_stats/kernel%2Fsigma"),
                resume=OVERWRITTEN,
            ),
            LN: rules(
                ("params/Dense_0/kernel", "params/layer_instance/kernel"),
                ("params/Dense_0/bias", "params/layer_instance/bias"),
                ("batch_stats/SpectralNorm_0/Dense_0%2Fkernel%2F{k}", "batch_stats/batch_stats/kernel%2F{k}"),
                resume=OVERWRITTEN,
            ),
        },
        verdicts=dict.fromkeys([HN, NH, LN, NL], EVALUATION),
    ),
    "spectral norm, no rules": Case(
        spectral,
        Inline(lambda m, x: nn.SpectralNorm(nn.Dense(4))(x, update_stats=True)),
        lambda rngs: nnx.SpectralNorm(nnx.Linear(6, 4, rngs=rngs), rngs=rngs),
        refused={
            **dict.fromkeys([HL, HN, LH], "Haiku normalises a weight that is passed in"),
            **dict.fromkeys([NH, LN, NL], "NNX overwrites the kernel"),
        },
    ),
    "weight norm": Case(
        weight_normed,
        Inline(lambda m, x: nn.WeightNorm(nn.Dense(4))(x)),
        lambda rngs: nnx.WeightNorm(nnx.Linear(6, 4, rngs=rngs), rngs=rngs),
        mapping={
            HL: rules(
                ("params/~/w", "params/Dense_0/kernel"),
                ("params/~/b", "params/Dense_0/bias"),
                ("params/~/g", "params/WeightNorm_0/Dense_0%2Fkernel%2Fscale"),
            )
        },
        refused=dict.fromkeys([HN, NH, LN, NL], "keeps the scale outside of its Params"),
    ),
}  # fmt: skip
