"""Rows of the linear family: Linear, DenseGeneral, Einsum, Embed, Bias, PReLU."""

import flax.linen as nn
import haiku as hk
import jax.numpy as jnp
from flax import nnx

from tests.case import Case, Inline, Parts, some


def to_linear(x):
    """DenseGeneral over the last two axes, to two axes."""
    return hk.Linear(6)(x.reshape(*x.shape[:-2], -1)).reshape(*x.shape[:-2], 3, 2)


class BatchedHaiku(hk.Module):
    """DenseGeneral with a batch axis, in Haiku."""

    def __call__(self, x):
        w, b = hk.get_parameter("kernel", [2, 6, 3], init=some), hk.get_parameter("bias", [2, 3], init=some)
        return jnp.einsum("nti,nio->nto", x, w) + b[:, None]


class BiasLinen(nn.Module):
    """`hk.Bias` in Linen."""

    @nn.compact
    def __call__(self, x):
        return x + self.param("b", nn.initializers.zeros, (5, 1))


def tied_haiku(x):
    embed = hk.Embed(7, 5)
    return jnp.tanh(embed(x)) @ embed.embeddings.T


LINEAR: dict[str, Case] = {
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
    "embed": Case(
        lambda x: hk.Embed(7, 5)(x), nn.Embed(7, 5), lambda rngs: nnx.Embed(7, 5, rngs=rngs), int, x64=False
    ),
    "PReLU": Case(None, nn.PReLU(), lambda rngs: nnx.PReLU()),
    "linear, batched, in Haiku": Case(
        lambda x: BatchedHaiku(name="batched")(x),
        nn.DenseGeneral(3, axis=-1, batch_dims=(0,)),
        None,
        own={"haiku": ("batched",), "linen": ("",)},
    ),
    "linear, all axes": Case(
        lambda x: hk.Linear(4)(x.reshape(x.shape[0], -1)),
        nn.DenseGeneral(4, (1, 2)),
        lambda rngs: nnx.LinearGeneral((5, 6), 4, axis=(1, 2), rngs=rngs),
    ),
    "einsum, permuted": Case(
        None,
        nn.Einsum((6, 3, 2), "abc,cde->aebd"),
        lambda rngs: nnx.Einsum("abc,cde->aebd", (6, 3, 2), (2, 3), rngs=rngs),
    ),
    "embed, tied": Case(
        tied_haiku,
        Inline(lambda m, x: (e := nn.Embed(7, 5)).attend(jnp.tanh(e(x)))),
        lambda rngs: Parts(
            lambda m, x: m.aa_head.attend(jnp.tanh(m.zz_embed(x))),
            zz_embed=(e := nnx.Embed(7, 5, rngs=rngs)),
            aa_head=e,
        ),
        int,
        x64=False,
    ),
    "bias": Case(
        lambda x: hk.Bias(bias_dims=[1])(x),
        BiasLinen(),
        lambda rngs: Parts(lambda m, x: x + m.b, b=nnx.Param(jnp.zeros((5, 1)))),
        own={"haiku": ("bias",), "linen": ("",), "nnx": ("",)},
    ),
    "PReLU in Haiku": Case(
        lambda x: jnp.where(x >= 0, x, hk.get_parameter("negative_slope", [], init=some) * x),
        nn.PReLU(),
        lambda rngs: nnx.PReLU(),
        own={"haiku": ("~",), "linen": ("",), "nnx": ("",)},
    ),
}  # fmt: skip
