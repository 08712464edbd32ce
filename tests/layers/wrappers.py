"""Rows of what has no weights of its own, or many layers: Sequential, MLP, nets, remat, tied and quantising modules."""

import functools

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

from tests.case import (
    EVALUATION,
    HL,
    HN,
    IMAGE,
    Case,
    Chain,
    Inline,
    Parts,
)


class Dropped(nnx.Module):
    """Has random state that nobody else has."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(6, 4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.first(x))


class Hoisted(nn.Module):
    """Takes its inner module's names for its own."""

    def setup(self):
        self.inner = Chain([lambda: nn.Dense(5), lambda: jnp.tanh, lambda: nn.Dense(4)])
        nn.share_scope(self, self.inner)

    def __call__(self, x):
        return self.inner(x)


def quantised(x, table, cost=0.25):
    """The output of `hk.nets.VectorQuantizer` plus its loss (dm-haiku 0.0.17); `table` has a column a code."""
    flat, stop = x.reshape(-1, x.shape[-1]), jax.lax.stop_gradient
    distances = jnp.sum(flat**2, 1, keepdims=True) - 2 * flat @ table + jnp.sum(table**2, 0, keepdims=True)
    codes = jnp.argmax(-distances, 1)
    nearest = table.T[codes].reshape(x.shape)
    loss = jnp.mean((nearest - stop(x)) ** 2) + cost * jnp.mean((stop(nearest) - x) ** 2)
    return x + stop(nearest - x) + loss, flat, jax.nn.one_hot(codes, table.shape[1], dtype=x.dtype), nearest


def vq_haiku(x):
    out = hk.nets.VectorQuantizer(6, 5, 0.25)(x, True)
    return out["quantize"] + out["loss"]


def vq_ema_haiku(x):
    out = hk.nets.VectorQuantizerEMA(6, 5, 0.25, 0.9)(hk.Linear(6)(x), True)
    return out["quantize"] + out["loss"]


def moved(hidden, counter, value, decay=0.9):
    """The step of `hk.ExponentialMovingAverage`: hidden, average, counter."""
    counter = counter + 1
    decay = jnp.asarray(decay, value.dtype)
    hidden = hidden * decay + value * (1 - decay)
    return hidden, hidden / (1 - decay**counter), counter


def vq_ema(m, x, sizes, sums, table):
    """The step of `hk.nets.VectorQuantizerEMA`; `sizes`, `sums` and `table` can be read and written."""
    x = m.linear(x)
    stop = jax.lax.stop_gradient
    _, flat, codes, nearest = quantised(x, stop(table()))
    sizes(moved(*sizes(), jnp.sum(codes, 0)))
    sums(moved(*sums(), flat.T @ codes))
    count, total = sizes(average=True), sums(average=True)
    n = jnp.sum(count)
    table(stop(total / ((count + 1e-5) / (n + 5 * 1e-5) * n)[None]))
    return x + stop(nearest - x) + 0.25 * jnp.mean((stop(nearest) - x) ** 2)


class AverageLinen(nn.Module):
    """The entries of `hk.ExponentialMovingAverage`, in a collection of the user's choice."""

    shape: tuple

    @nn.compact
    def __call__(self, new=None, average=False):
        kinds = {"hidden": jnp.float32, "average": jnp.float32, "counter": jnp.int32}
        made = {
            name: self.variable("codes", name, jnp.zeros, () if name == "counter" else self.shape, dtype)
            for name, dtype in kinds.items()
        }
        if average:
            return made["average"].value
        if new is not None and not self.is_initializing():
            for name, value in zip(made, new, strict=True):
                made[name].value = value
        return made["hidden"].value, made["counter"].value


class VQEMALinen(nn.Module):
    """`hk.nets.VectorQuantizerEMA` after a Dense, in Linen, with its entries."""

    def setup(self):
        self.linear = nn.Dense(6)
        self.ema_cluster_size, self.ema_dw = AverageLinen((5,)), AverageLinen((6, 5))
        self.embeddings = self.variable("codes", "embeddings", jnp.ones, (6, 5))

    def table(self, new=None):
        if new is not None and not self.is_initializing():
            self.embeddings.value = new
        return self.embeddings.value

    def __call__(self, x):
        return vq_ema(self, x, self.ema_cluster_size, self.ema_dw, self.table)


class AverageNNX(nnx.Module):
    """The entries of `hk.ExponentialMovingAverage`."""

    def __init__(self, shape):
        self.hidden, self.average = nnx.BatchStat(jnp.zeros(shape)), nnx.BatchStat(jnp.zeros(shape))
        self.counter = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, new=None, average=False):
        if average:
            return self.average[...]
        if new is not None:
            self.hidden[...], self.average[...], self.counter[...] = new
        return self.hidden[...], self.counter[...]


class VQEMANNX(nnx.Module):
    """`hk.nets.VectorQuantizerEMA` after a Linear, in NNX, with its entries."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(6, 6, rngs=rngs)
        self.ema_cluster_size, self.ema_dw = AverageNNX((5,)), AverageNNX((6, 5))
        self.embeddings = nnx.BatchStat(jnp.zeros((6, 5)))

    def __call__(self, x):
        def table(new=None):
            if new is not None:
                self.embeddings[...] = new
            return self.embeddings[...]

        return vq_ema(self, x, self.ema_cluster_size, self.ema_dw, table)


def ema_haiku(x):
    return hk.ExponentialMovingAverage(0.9, zero_debias=False, warmup_length=1)(x)


class EMANNX(nnx.Module):
    """`nnx.EMA` of what is passed in; it begins as a copy of a first value."""

    def __init__(self, rngs):
        self.ema = nnx.EMA(nnx.State({"value": nnx.BatchStat(jnp.ones((2, 5, 6)))}), decay=0.9)

    def __call__(self, x):
        self.ema.update(nnx.State({"value": nnx.BatchStat(x)}))
        return self.ema.params["value"][...]


NORM = {"use_running_average": True}
BN = dict(bn_config={"decay_rate": 0.9})


def block(version, training, x):
    block = getattr(hk.nets.ResNet, f"BlockV{version}")
    return block(16, 2, use_projection=True, bottleneck=True, **BN)(x, training, False)


class BlockLinen(nn.Module):
    """A bottleneck block of a ResNet of version 1 or 2."""

    version: int

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(nn.BatchNorm, momentum=0.9, **NORM)
        convs = [conv(4, (1, 1), name="conv_0"), conv(4, (3, 3), 2, name="conv_1"), conv(16, (1, 1), name="conv_2")]
        norms = [norm(name=f"batchnorm_{i}") for i in range(3)]
        return residual(
            self.version,
            x,
            conv(16, (1, 1), 2, name="shortcut_conv"),
            convs,
            norms,
            norm(name="shortcut_batchnorm") if self.version == 1 else None,
        )


def residual(version, x, shortcut, convs, norms, norm):
    out = x
    if version == 1:
        for i, (conv, after) in enumerate(zip(convs, norms, strict=True)):
            out = after(conv(out))
            out = jax.nn.relu(out) if i < 2 else out
        return jax.nn.relu(out + norm(shortcut(x)))
    side = None
    for i, (conv, before) in enumerate(zip(convs, norms, strict=True)):
        out = jax.nn.relu(before(out))
        side = shortcut(out) if i == 0 else side
        out = conv(out)
    return out + side


class BlockNNX(nnx.Module):
    def __init__(self, version, rngs):
        self.version = version
        conv = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)
        norm = functools.partial(nnx.BatchNorm, momentum=0.9, rngs=rngs, **NORM)
        self.shortcut = conv(4, 16, (1, 1), 2)
        self.convs = nnx.List([conv(4, 4, (1, 1)), conv(4, 4, (3, 3), 2), conv(4, 16, (1, 1))])
        self.norms = nnx.List([norm(4), norm(4), norm(16)] if version == 1 else [norm(4), norm(4), norm(4)])
        self.norm = norm(16) if version == 1 else None

    def __call__(self, x):
        return residual(self.version, x, self.shortcut, self.convs, self.norms, self.norm)


def mobile(training, x):
    return hk.nets.MobileNetV1((1, 2), (6, 5), 3)(x, training)


def mobile_linen(m, x):
    norm = functools.partial(nn.BatchNorm, momentum=0.999, **NORM)
    x = jax.nn.relu(norm()(nn.Conv(32, (3, 3), 2, "VALID", use_bias=False)(x)))
    for width, stride in ((6, 1), (5, 2)):
        x = nn.Conv(x.shape[-1], (3, 3), stride, 1, feature_group_count=x.shape[-1], use_bias=False)(x)
        x = jax.nn.relu(norm()(x))
        x = jax.nn.relu(norm()(nn.Conv(width, (1, 1), use_bias=False)(x)))
    return nn.Dense(3)(x.mean((1, 2)))


def mobile_nnx(rngs):
    conv = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)
    norm = functools.partial(nnx.BatchNorm, momentum=0.999, rngs=rngs, **NORM)
    layers = [conv(4, 32, (3, 3), 2, padding="VALID"), norm(32), nnx.relu]
    for old, new, stride in ((32, 6, 1), (6, 5, 2)):
        layers += [conv(old, old, (3, 3), stride, padding=1, feature_group_count=old), norm(old), nnx.relu]
        layers += [conv(old, new, (1, 1)), norm(new), nnx.relu]
    return nnx.Sequential(*layers, lambda x: x.mean((1, 2)), nnx.Linear(5, 3, rngs=rngs))


STATS = {HL: EVALUATION, HN: EVALUATION}
WRAPPERS: dict[str, Case] = {
    "MLP": Case(
        lambda x: hk.nets.MLP([5, 4, 3])(x),
        Chain([functools.partial(nn.Dense, 5), lambda: nn.relu, functools.partial(nn.Dense, 4), lambda: nn.relu,
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
    "sequential, inline": Case(
        lambda x: hk.Sequential([hk.Linear(6), jnp.tanh, hk.Linear(6), jnp.tanh, hk.Linear(6)])(x),
        Inline(lambda m, x: nn.Sequential([nn.Dense(6), jnp.tanh, nn.Dense(6), jnp.tanh, nn.Dense(6)])(x)),
        None,
    ),
    "MLP without biases": Case(
        lambda x: hk.nets.MLP([5, 5, 5, 5], with_bias=False, activation=jnp.tanh, activate_final=True)(x),
        Inline(lambda m, x: functools.reduce(lambda x, _: jnp.tanh(nn.Dense(5, use_bias=False)(x)), range(4), x)),
        lambda rngs: nnx.Sequential(
            *(f for i in range(4) for f in (nnx.Linear(5 + (i == 0), 5, use_bias=False, rngs=rngs), jnp.tanh))
        ),
    ),
    "remat": Case(
        lambda x: hk.remat(hk.Linear(4))(jnp.tanh(hk.remat(hk.Linear(5))(x))),
        Inline(lambda m, x: nn.remat(nn.Dense)(4)(jnp.tanh(nn.remat(nn.Dense)(5)(x)))),
        lambda rngs: Parts(
            lambda m, x: nnx.remat(lambda m, x: m(x))(m.second, jnp.tanh(nnx.remat(lambda m, x: m(x))(m.first, x))),
            first=nnx.Linear(6, 5, rngs=rngs),
            second=nnx.Linear(5, 4, rngs=rngs),
        ),
    ),
    "jitted": Case(
        lambda x: hk.Linear(4)(jnp.tanh(hk.Linear(5)(x))),
        Inline(lambda m, x: nn.jit(nn.Dense)(4)(jnp.tanh(nn.jit(nn.Dense)(5)(x)))),
        None,
    ),
    "shared scope": Case(
        lambda x: hk.nets.MLP([5, 4], activation=jnp.tanh)(x), Hoisted(), None
    ),
    "vector quantizer": Case(
        vq_haiku,
        Inline(lambda m, x: quantised(x, nn.Embed(5, 6).embedding.T)[0]),
        lambda rngs: Parts(lambda m, x: quantised(x, m.codes.embedding.T)[0], codes=nnx.Embed(5, 6, rngs=rngs)),
    ),
    "vector quantizer, averaged": Case(
        vq_ema_haiku,
        VQEMALinen(),
        VQEMANNX,
        own={
            "haiku": ("vector_quantizer_ema", "linear"),
            "linen": ("", "linear"),
            "nnx": ("", "linear"),
        },
    ),
    "moving average": Case(
        ema_haiku,
        None,
        EMANNX,
        x64=False,
        mapping={
            HN: {
                "rules": [{
                    "src": [f"state/exponential_moving_average/{k}" for k in ("hidden", "average")],
                    "dst": "batch_stats/ema/params/value",
                    "ops": ["pick"],
                    "reason": "nnx.EMA does not count its values, and need not after the first",
                }],
                "drop": [{"src": "state/exponential_moving_average/counter", "value": 1, "reason": "as above"}],
            }
        },
        verdicts={HN: EVALUATION},
    ),
    "ResNet block, version 1": Case(
        functools.partial(block, 1, False),
        BlockLinen(1),
        functools.partial(BlockNNX, 1),
        IMAGE,
        train=functools.partial(block, 1, True),
        verdicts=STATS,
    ),
    "ResNet block, version 2": Case(
        functools.partial(block, 2, False),
        BlockLinen(2),
        functools.partial(BlockNNX, 2),
        IMAGE,
        train=functools.partial(block, 2, True),
        verdicts=STATS,
    ),
    "MobileNet": Case(
        functools.partial(mobile, False),
        Inline(mobile_linen),
        mobile_nnx,
        IMAGE,
        train=functools.partial(mobile, True),
        own={  # two widths occur twice, and nothing but the order tells their norms apart
            "haiku": tuple(
                f"mobile_net_v1/{name}"
                for name in (
                    "batch_norm",
                    *(f"mobile_net_v1_block{i}/batch_norm{j}" for i in ("", "_1") for j in ("", "_1")),
                )
            ),
            "linen": tuple(f"BatchNorm_{i}" for i in range(5)),
            "nnx": tuple(f"layers/{i}" for i in (1, 4, 7, 10, 13)),
        },
        verdicts=STATS,
    ),
}  # fmt: skip
