"""Pairs of models made to mislead: a plan is refused, or the converted model computes the same."""

from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import numpy as np
import pytest
from flax import nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter
from bridges.core._errors import MappingError

ADAPTERS = {"haiku": haiku_adapter, "linen": linen_adapter, "nnx": nnx_adapter}
X = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
IMAGE = np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32)


def framework(model):
    if isinstance(model, nn.Module):
        return "linen"
    return "nnx" if isinstance(model, nnx.Module) else "haiku"


def planned(src, dst, x):
    ends = framework(src), framework(dst)
    return br.conventions(*ends).plan(*(ADAPTERS[f].spec(m, x) for f, m in zip(ends, (src, dst), strict=True)))


def agree(src, dst, x=X):
    """Plans, converts random variables, and compares what both models compute."""
    plan = planned(src, dst, x)
    rng = np.random.default_rng(1)
    old = br.State(
        {p: (rng.uniform(0.2, 1, v.shape) * rng.choice([-1, 1], v.shape)).astype(v.dtype) for p, v in plan.src.items()},
        plan.src.declared,
    )
    ends = framework(src), framework(dst)
    outs = [
        ADAPTERS[f].apply(m, state, x)[0]
        for f, m, state in zip(ends, (src, dst), (old, plan.forward(old)), strict=True)
    ]
    np.testing.assert_allclose(outs[1], outs[0], rtol=1e-4, atol=1e-4 * np.abs(outs[0]).max())  # float32, some layers
    assert np.ptp(outs[0]) > 0


def refused(src, dst, words, x=X):
    with pytest.raises(MappingError, match=words):
        planned(src, dst, x)


# Layers that derive from a framework's ---------------------------------------------------------------------------------


class Doubled(hk.Linear):
    def __call__(self, x: Any) -> Any:
        return 2 * super().__call__(x)


class Named(hk.Linear):
    def __init__(self, size: int):
        super().__init__(size, name="projection")


class Transposed(nn.Dense):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return x @ self.param("kernel", nn.initializers.ones, (self.features, 8)).T + self.param(
            "bias", nn.initializers.ones, (self.features,)
        )


class Configured(nn.Dense):
    kernel_init: Any = nn.initializers.ones


class Tripled(nnx.Linear):
    def __call__(self, x: Any) -> Any:
        return 3 * super().__call__(x)


class Holder(nn.Module):
    """Takes a class, as `norm: ModuleDef = nn.BatchNorm` does in many models."""

    layer: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return self.layer(8)(x)


def test_a_layer_with_a_method_of_its_own_is_not_taken_for_the_one_that_it_derives_from():
    refused(
        lambda x: Doubled(8)(x), Holder(nn.Dense), "'doubled' is a .*Doubled, a haiku.Linear with a method of its own"
    )
    refused(Holder(nn.Dense), Holder(Transposed), "'Transposed_0' is a .*Transposed, a linen.Dense")
    refused(Holder(nn.Dense), Tripled(8, 8, rngs=nnx.Rngs(0)), "Tripled, a nnx.Linear")
    model = Holder(Transposed)
    agree(model, model)
    agree(lambda x: Named(8)(x), Holder(Configured))
    agree(lambda x: hk.Linear(8)(x), Holder(nn.remat(nn.Dense)))
    said = br.Mapping.of(modules={"doubled": "Dense_0"}) | br.conventions("haiku", "linen")
    ends = haiku_adapter.spec(lambda x: Doubled(8)(x), X), linen_adapter.spec(Holder(nn.Dense), X)
    assert said.plan(*ends).verdict == "exact"


# Settings that change what the same shapes mean ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("src", "dst", "words"),
    [
        (lambda x: hk.Linear(8)(x), nn.DenseGeneral(8, axis=0), "has axis"),
        (nn.Dense(8), nn.DenseGeneral(8, axis=0), "has axis"),
        (nn.Dense(8), nnx.LinearGeneral(8, 8, axis=0, rngs=nnx.Rngs(0)), "has axis"),
        (nn.GroupNorm(None, group_size=1), nnx.GroupNorm(4, 2, rngs=nnx.Rngs(0)), "has group_size"),
        (
            lambda x: hk.GroupNorm(2)(x),
            nn.GroupNorm(None, group_size=1, epsilon=1e-5, use_fast_variance=False),
            "has group_size",
        ),
        (nn.Einsum((8, 8), "ab,bc->ac"), nnx.Einsum("xy,zy->xz", (8, 8), (8,), rngs=nnx.Rngs(0)), "has einsum"),
    ],
    ids=["axis", "axis, flax", "axis, nnx", "group size", "group size, haiku", "equation"],
)
def test_settings_that_shapes_do_not_show_must_agree(src, dst, words):
    refused(src, dst, words, IMAGE if "group" in words else X)


@pytest.mark.parametrize(
    ("src", "dst", "x"),
    [
        (lambda x: hk.Linear(8)(x), nn.DenseGeneral(8), X),
        (nn.DenseGeneral(4, axis=(2, 3)), nn.DenseGeneral(4, axis=(-2, -1)), IMAGE),
        (nn.DenseGeneral(4, axis=(-2, -1)), nnx.LinearGeneral((4, 4), 4, axis=(-1, -2), rngs=nnx.Rngs(0)), IMAGE),
        (nn.Einsum((8, 8), "ab,bc->ac"), nnx.Einsum("xy,yz->xz", (8, 8), (8,), rngs=nnx.Rngs(0)), X),
    ],
    ids=["last axis", "positive", "last axes", "letters"],
)
def test_settings_that_mean_the_same_agree(src, dst, x):
    agree(src, dst, x)


def test_layers_without_variables_are_compared():
    """`elementwise_affine=False`: there is nothing to convert, and every output depends on epsilon."""

    def net(x):
        return hk.Linear(8)(hk.LayerNorm(-1, False, False)(x))

    def ported(epsilon):
        norm = nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, use_scale=False, use_bias=False)
        return nn.Sequential([norm, nn.Dense(8)])

    agree(net, ported(1e-5))
    refused(net, ported(1e-2), "LayerNorm at 'layers_0' has epsilon 0.01")
    agree(net, nn.Sequential([lambda x: jax.nn.standardize(x, epsilon=1e-5), nn.Dense(8)]))  # no layer to compare


# Order: of names, of calls, of data ------------------------------------------------------------------------------------


def in_turn(x):
    first, second = hk.Linear(8), hk.Linear(8)
    return second(jax.nn.relu(first(x)))


def nested(x):
    return hk.Linear(8)(jax.nn.relu(hk.Linear(8)(x)))  # makes the outer one first


def words(x):
    return hk.Linear(8, name="out")(jax.nn.relu(hk.Linear(8, name="in")(x)))


class Compact(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(8)(jax.nn.relu(nn.Dense(8)(x)))


class Backwards(nn.Module):
    def setup(self) -> None:
        self.fc1, self.fc2 = nn.Dense(8), nn.Dense(8)

    def __call__(self, x: Any) -> Any:
        return self.fc1(jax.nn.relu(self.fc2(x)))


class Forwards(Backwards):
    def __call__(self, x: Any) -> Any:
        return self.fc2(jax.nn.relu(self.fc1(x)))


class Words(nn.Module):
    names: tuple[str, ...]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for name in self.names:
            x = jax.nn.relu(nn.Dense(8, name=name)(x))
        return x


class Numbered(nn.Module):
    """Numbers that are none, of layers in a chain."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for name in ("layer_2d", "fc10", "fc2", "fc1"):
            x = jax.nn.relu(nn.Dense(8, name=name)(x))
        return x


class Attributes(nnx.Module):
    def __init__(self) -> None:
        self.fc2, self.fc1 = (nnx.Linear(8, 8, rngs=nnx.Rngs(0)) for _ in range(2))

    def __call__(self, x: Any) -> Any:
        return self.fc1(jax.nn.relu(self.fc2(x)))


class Reversed(nnx.Module):
    def __init__(self) -> None:
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=nnx.Rngs(0)) for _ in range(4)])

    def __call__(self, x: Any) -> Any:
        for layer in reversed(self.layers):
            x = jax.nn.relu(layer(x))
        return x


CHAINS = [in_turn, nested, words, Compact(), Backwards(), Forwards(), Attributes()]


@pytest.mark.parametrize("dst", CHAINS, ids=lambda m: getattr(m, "__name__", type(m).__name__))
@pytest.mark.parametrize("src", CHAINS, ids=lambda m: getattr(m, "__name__", type(m).__name__))
def test_layers_in_a_chain_go_by_the_flow_of_data(src, dst):
    agree(src, dst)


def test_longer_chains_go_by_the_flow_of_data():
    agree(lambda x: hk.nets.MLP([8] * 4, activate_final=True)(x), Numbered())
    agree(Numbered(), Reversed())


def test_equal_names_that_data_pass_the_other_way_are_a_doubt():
    refused(
        Words(("up", "down")), Words(("down", "up")), "'down', 'up' and 'down', 'up' bear the same names, but data flow"
    )
    agree(Words(("fc1", "fc2")), Words(("fc2", "fc1")))  # numbers only count


class Pair(nnx.Module):
    def __init__(self, order: tuple[int, int]):
        self.q = nnx.List([nnx.Linear(8, 8, rngs=nnx.Rngs(0)) for _ in range(2)])
        self.order = order

    def __call__(self, x: Any) -> Any:
        a, b = (self.q[n](x) for n in self.order)
        return a - 2 * b


def test_side_by_side_numbers_and_calls_must_agree():
    """Neither feeds the other, so that only the order of calls contradicts the numbers."""

    def net(x):
        return hk.Linear(8)(x) - 2 * hk.Linear(8)(x)

    agree(net, Pair((0, 1)))
    refused(net, Pair((1, 0)), "numbered in one order and called in another")


def actor_first(x):
    actor = hk.Linear(4)(jax.nn.relu(hk.Linear(8)(x)))
    return jax.numpy.concatenate([actor, hk.Linear(1)(jax.nn.relu(hk.Linear(8)(x)))], -1)


class CriticFirst(nn.Module):
    """Numbers and calls agree, and the first layer is the critic's."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        critic = nn.Dense(1)(jax.nn.relu(nn.Dense(8)(x)))
        return jax.numpy.concatenate([nn.Dense(4)(jax.nn.relu(nn.Dense(8)(x))), critic], -1)


class ActorCritic(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.value, self.policy = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        self.actor, self.critic = nnx.Linear(8, 4, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        outs = self.actor(jax.nn.relu(self.policy(x))), self.critic(jax.nn.relu(self.value(x)))
        return jax.numpy.concatenate(outs, -1)


def test_layers_side_by_side_are_told_apart_by_what_they_feed():
    agree(actor_first, CriticFirst())
    agree(CriticFirst(), ActorCritic())
    agree(ActorCritic(), actor_first)


class Attention(nn.Module):
    names: tuple[str, ...]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        q, k, v = (nn.Dense(8, name=name)(x) for name in self.names)
        return nn.Dense(8, name="out" + self.names[0])(jax.nn.softmax(q @ k.T) @ v)


def test_side_by_side_other_names_are_a_doubt():
    doubt = "'to_k', 'to_q', 'to_v' and 'wk', 'wq', 'wv' fit each other in several ways"  # and nothing but these
    refused(Attention(("to_q", "to_k", "to_v")), Attention(("wk", "wq", "wv")), doubt)


def test_another_dtype_is_named_as_such():
    refused(lambda x: hk.Linear(8)(x), nn.Dense(8, param_dtype=jax.numpy.bfloat16), "name the target under `cast`")


class Scanned(nn.Module):
    reverse: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        layers = nn.scan(
            lambda m, c, _: (jax.nn.relu(m(c)), None),
            variable_axes={"params": 1},
            split_rngs={"params": True},
            length=3,
            reverse=self.reverse,
        )
        return layers(nn.Dense(8, name="layer"), x, None)[0]


def test_a_scan_from_the_last_copy_to_the_first_is_not_taken_for_one_from_the_first():
    def stacked(x):
        return hk.experimental.layer_stack(3)(lambda x: jax.nn.relu(hk.Linear(8)(x)))(x)

    def listed(x):
        return hk.nets.MLP([8] * 3, activate_final=True)(x)

    for model in (stacked, listed):
        agree(model, Scanned(False))
        refused(model, Scanned(True), "order|other way")
