"""Near misses: networks that are almost one network, and some that only look like two, each with the right verdict.

Three small networks stand in Haiku and in Linen, each with options. Where the options agree the two are one function, and
that is tested too: otherwise a verdict 'parts' would say nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from tests.case import Inline

# What may be the verdict.
SAME = "same"  # complete and verified
PARTS = "parts"  # no mapping makes them one function, and it says so
PARTIAL = "partial"  # some leaves have no counterpart
DIM, HEADS, LENGTH, CLASSES = 8, 2, 5, 8


@dataclasses.dataclass(frozen=True)
class Miss:
    """Two networks and what is true of them.

    Attributes:
      source, target: The models.
      inputs: For both.
      verdicts: Those that are right.
      says: What the text must name, as a pattern, if the verdict is not 'same'; empty where nothing need be named.
    """

    source: Any
    target: Any
    inputs: tuple[Any, ...]
    verdicts: tuple[str, ...]
    says: str = ""


def rope(x: Any, base: float) -> Any:
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None, None] / base ** (np.arange(half) / half)
    a, b, sin, cos = x[..., :half], x[..., half:], np.sin(angles).astype(x.dtype), np.cos(angles).astype(x.dtype)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def encoder(
    linear: Callable[..., Any],
    norm: Callable[..., Any],
    epsilon: float = 1e-5,
    act: Callable[..., Any] = jax.nn.gelu,
    layers: int = 1,
    first: bool = True,
    residual: bool = True,
    scaled: bool = True,
    base: float = 10_000.0,
    backwards: bool = False,
    named: str = "qkv",
    head: str = "",
) -> Callable[..., Any]:
    """Returns a transformer of `linear(size, name)(x)` and `norm(epsilon, name)(x)`."""

    def attend(x: Any, name: str) -> Any:
        q, k, v = (linear(DIM, name + part)(x).reshape(*x.shape[:2], HEADS, -1) for part in named)
        if backwards:
            q, k, v = (y[:, :, ::-1] for y in (q, k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", rope(q, base), rope(k, base))
        weights = jax.nn.softmax(scores / np.sqrt(DIM // HEADS) if scaled else scores)
        return linear(DIM, name + "out")(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))

    def run(x: Any) -> Any:
        for i in range(layers):
            parts = (
                lambda y, i=i: attend(y, f"l{i}_"),
                lambda y, i=i: linear(DIM, f"l{i}_down")(act(linear(DIM, f"l{i}_up")(y))),
            )
            for n, part in enumerate(parts):
                normed = norm(epsilon, f"l{i}_norm{n}")
                y = part(normed(x) if first else x)
                y = x + y if residual or n == 0 else y
                x = y if first else normed(y)
        if head == "unused":
            linear(DIM, "unused")(x)
        return linear(CLASSES, "head")(norm(epsilon, "last")(x))

    return run


def image(
    conv: Callable[..., Any],
    group: Callable[..., Any],
    linear: Callable[..., Any],
    padding: Any = "SAME",
    groups: int = 2,
    pool: str = "avg",
) -> Callable[..., Any]:
    """Returns a convolutional network of `conv(size, padding, name)` and `group(groups, name)`."""

    def run(x: Any) -> Any:
        for i in range(2):
            x = jax.nn.relu(group(groups, f"norm{i}")(conv(DIM, padding, f"conv{i}")(x)))
        x = nn.avg_pool(x, (2, 2), (2, 2)) if pool == "avg" else nn.max_pool(x, (2, 2), (2, 2))
        return linear(CLASSES, "head")(x.mean((1, 2)))

    return run


def of_haiku(net: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    def linear(size: int, name: str) -> Any:
        return hk.Linear(size, name=name)

    def norm(epsilon: float, name: str) -> Any:
        return hk.LayerNorm(-1, True, True, eps=epsilon, name=name)

    def conv(size: int, padding: Any, name: str) -> Any:
        return hk.Conv2D(size, 3, padding=padding, name=name)

    def group(groups: int, name: str) -> Any:
        return hk.GroupNorm(groups, name=name)

    return lambda x: (net(linear, norm, **options) if net is encoder else net(conv, group, linear, **options))(x)


def of_linen(net: Callable[..., Any], **options: Any) -> nn.Module:
    def linear(size: int, name: str) -> Any:
        return nn.Dense(size, name=name)

    def norm(epsilon: float, name: str) -> Any:
        return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, name=name)

    def conv(size: int, padding: Any, name: str) -> Any:
        return nn.Conv(size, (3, 3), padding=padding, name=name)

    def group(groups: int, name: str) -> Any:
        return nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False, name=name)

    def run(_: Any, x: Any) -> Any:
        return (net(linear, norm, **options) if net is encoder else net(conv, group, linear, **options))(x)

    return Inline(run)


def recurrent(core: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Any) -> Any:
        made = core(DIM)
        out, _ = hk.dynamic_unroll(made, x, made.initial_state(x.shape[0]), time_major=False)
        return hk.Linear(CLASSES)(out)

    return run


def rolled(cell: nn.Module, **options: Any) -> nn.Module:
    return Inline(lambda _, x: nn.Dense(CLASSES)(nn.RNN(cell, keep_order=True, **options)(x)))


class Cell(nn.RNNCellBase):
    """An LSTM by hand: gates in the order f, o, g, i, no offset."""

    @nn.compact
    def __call__(self, carry: Any, x: Any) -> Any:
        c, h = carry
        f, o, g, i = jnp.split(nn.Dense(4 * DIM)(jnp.concatenate([h, x], -1)), 4, -1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h

    def initialize_carry(self, rng: Any, input_shape: tuple[int, ...]) -> Any:
        zeros = jnp.zeros((*input_shape[:-1], DIM))
        return zeros, zeros

    @property
    def num_feature_axes(self) -> int:
        return 1


def tied(tokens: Any) -> Any:
    embed = hk.Embed(CLASSES, DIM)
    return jnp.tanh(hk.Linear(DIM)(embed(tokens))) @ embed.embeddings.T


def untied_linen() -> nn.Module:
    return Inline(
        lambda _, x: nn.Dense(CLASSES, use_bias=False, name="out")(
            jnp.tanh(nn.Dense(DIM, name="hidden")(nn.Embed(CLASSES, DIM)(x)))
        )
    )


def untied(tokens: Any) -> Any:
    return hk.Linear(CLASSES, with_bias=False)(jnp.tanh(hk.Linear(DIM, name="hidden")(hk.Embed(CLASSES, DIM)(tokens))))


def tied_linen() -> nn.Module:
    def run(_: Any, x: Any) -> Any:
        embed = nn.Embed(CLASSES, DIM)
        return embed.attend(jnp.tanh(nn.Dense(DIM)(embed(x))))

    return Inline(run)


def towers(left: str, right: str) -> Callable[..., Any]:
    def run(a: Any, b: Any) -> Any:
        one, two = (hk.nets.MLP([DIM, DIM], name=name) for name in (left, right))
        return jnp.einsum("id,jd->ij", one(a), jnp.tanh(two(b)))

    return run


class Towers(nn.Module):
    @nn.compact
    def __call__(self, a: Any, b: Any) -> Any:
        one = nn.Sequential([nn.Dense(DIM, name="right_0"), nn.relu, nn.Dense(DIM, name="right_1")])(a)
        two = nn.Sequential([nn.Dense(DIM, name="left_0"), nn.relu, nn.Dense(DIM, name="left_1")])(b)
        return one @ jnp.tanh(two).T


SEEN = np.tri(LENGTH, dtype=bool)


def masked(x: Any) -> Any:
    """Attention with a learned bias, hidden by a number that is added."""
    bias = hk.get_parameter("bias", (LENGTH, LENGTH), init=hk.initializers.RandomNormal())
    scores = hk.Linear(DIM, name="q")(x) @ x.swapaxes(1, 2) + (bias + jnp.where(SEEN, 0.0, -1e10))
    return jax.nn.softmax(scores) @ hk.Linear(CLASSES, name="v")(x)


def masked_linen() -> nn.Module:
    """The same, hidden by a number in its place."""

    def run(m: Any, x: Any) -> Any:
        bias = m.param("bias", nn.initializers.normal(), (LENGTH, LENGTH))
        scores = jnp.einsum("bqd,bkd->bqk", nn.Dense(DIM, name="query")(x), x)
        weights = nn.softmax(scores + jnp.where(SEEN, bias, -1e30))
        return jnp.einsum("bqk,bkd->bqd", weights, nn.Dense(CLASSES, name="value")(x))

    return Inline(run)


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


SERIES, IMAGES, TOKENS = (_normal(2, LENGTH, DIM),), (_normal(2, 8, 8, 3),), (np.array([[1, 4, 2, 7]], np.int32),)
BOTH = (_normal(3, DIM), _normal(4, DIM) + 1)


def _encoders(verdicts: tuple[str, ...], says: str = "", source: dict[str, Any] | None = None, **target: Any) -> Miss:
    return Miss(of_haiku(encoder, **source or {}), of_linen(encoder, **target), SERIES, verdicts, says)


def _images(verdicts: tuple[str, ...], says: str = "", **target: Any) -> Miss:
    return Miss(of_haiku(image), of_linen(image, **target), IMAGES, verdicts, says)


MISSES = {
    "a transformer, the same": _encoders((SAME,)),
    "a convolutional network, the same": _images((SAME,)),
    "an LSTM, the same": Miss(recurrent(hk.LSTM), rolled(nn.OptimizedLSTMCell(DIM)), SERIES, (SAME,)),
    "another epsilon": _encoders((PARTS,), "1e-0?3|0.001", epsilon=1e-3),
    "gelu, exact": _encoders(
        (PARTS,), "tanh where the target has neg, erfc", act=lambda x: nn.gelu(x, approximate=False)
    ),
    "silu for gelu": _encoders((PARTS,), "where the target has logistic", act=nn.silu),
    "silu for relu": _encoders((PARTS,), "max where the target has logistic", source={"act": jax.nn.relu}, act=nn.silu),
    "a layer more": _encoders((PARTS, PARTIAL), layers=2),
    "a layer less": _encoders((PARTS, PARTIAL), source={"layers": 2}),
    "norms last": _encoders((PARTS,), first=False),
    "a residual missing": _encoders((PARTS,), residual=False),
    "another base of rotations": _encoders((PARTS,), base=500.0),
    "no 1/sqrt(d)": _encoders(
        (SAME, PARTS), scaled=False
    ),  # the query's weights can take it: by a power of two, or not
    "names of q and k exchanged": _encoders((SAME,), named="kqv"),
    "heads from the last to the first": _encoders((SAME,), backwards=True),
    "a head that is not used, in the source": _encoders((SAME, PARTIAL), "params/unused", source={"head": "unused"}),
    "a head that is not used, in the target": _encoders((PARTIAL,), "unused", head="unused"),
    "other padding": _images((PARTS,), padding=[(2, 0), (2, 0)]),
    "other norm groups": _images((PARTS,), groups=4),
    "max for average": _images((PARTS,), pool="max"),
    "backwards in time": Miss(recurrent(hk.LSTM), rolled(nn.OptimizedLSTMCell(DIM), reverse=True), SERIES, (PARTS,)),
    "gates in another order": Miss(recurrent(hk.LSTM), rolled(Cell()), SERIES, (SAME,)),
    "the reset gate elsewhere": Miss(recurrent(hk.GRU), rolled(nn.GRUCell(DIM)), SERIES, (PARTS,)),
    "tied, then untied": Miss(tied, untied_linen(), TOKENS, (SAME, PARTIAL)),
    "untied, then tied": Miss(untied, tied_linen(), TOKENS, (PARTS, PARTIAL)),
    "hidden by another number": Miss(masked, masked_linen(), SERIES, (SAME,)),
    "towers of exchanged names": Miss(towers("left", "right"), Towers(), BOTH, (SAME,)),
}
