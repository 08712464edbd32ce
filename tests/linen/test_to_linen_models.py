"""Whole models of Haiku and NNX in Linen: entries by their native names, and the native program before any optimisation."""

from __future__ import annotations

import re
from collections import Counter

import haiku as hk
import jax
import pytest
from flax import nnx

import bridges as br
from bridges.linen_adapter import ToLinen
from tests.linen.to_linen_models import KEY, flat
from tests.models import graph, lstm, small_resnet, transformer, unet, vqvae

MODELS = [graph, lstm, small_resnet, transformer, unet, vqvae]
whole_models = pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__.rpartition(".")[2])


def operations(fn, *args):
    """Returns how often each operation occurs in the lowered program of a function."""
    return Counter(re.findall(r"= \"?(stablehlo\.\w+|call|func\.call)", jax.jit(fn).lower(*args).as_text()))


def shapes(entries):
    return {path: (value.shape, value.dtype) for path, value in entries.items()}


def arguments(make, x):
    """Returns the inputs, with a flag for training behind them where the model takes one."""
    try:
        jax.eval_shape(lambda: make(*x, True))
    except TypeError:
        return x
    return (*x, True)


@whole_models
def test_haiku(model):
    native, ours = hk.transform_with_state(model.haiku), ToLinen(model.haiku)
    args = arguments(lambda *x: native.init(KEY, *x), model.inputs())
    variables = jax.eval_shape(lambda: ours.init(KEY, *args))
    params, state = jax.eval_shape(lambda: native.init(KEY, *args))
    assert shapes(flat(variables)) == shapes(br.haiku_adapter.flatten(params, state))
    got = operations(lambda v: ours.apply(v, *args, rngs=KEY, mutable=["state"]), variables)
    assert got == operations(lambda p, s: native.apply(p, s, KEY, *args), params, state)
    assert got["stablehlo.add"] > 0


@whole_models
def test_nnx(model):
    ours = ToLinen(model.NNX)
    args = arguments(lambda *x: model.NNX(rngs=nnx.Rngs(0))(*x), model.inputs())
    variables = jax.eval_shape(lambda: ours.init(KEY, *args))
    graphdef, state = nnx.split(nnx.eval_shape(lambda: model.NNX(rngs=nnx.Rngs(0))))
    entries = {p: v for p, v in br.nnx_adapter.flatten(state).items() if not p.startswith("Rng")}
    assert shapes(flat(variables)) == shapes(entries)

    def native(state):
        module = nnx.merge(graphdef, state)
        return module(*args), nnx.state(module, nnx.Not(nnx.RngState))

    got = operations(lambda v: ours.apply(v, *args, mutable=["batch_stats", "VQ"]), variables)
    assert got == operations(native, state)
    assert got["stablehlo.add"] > 0
