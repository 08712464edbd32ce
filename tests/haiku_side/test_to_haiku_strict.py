"""Parts as Haiku modules: what is missing, extra, misshapen or in the wrong place is an error."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import bridges as br
from bridges.haiku_adapter import ToHaiku
from tests.haiku_side.models import same
from tests.haiku_side.to_haiku_models import (
    CORE,
    KEY,
    NET,
    NNX_NET,
    X,
    linen,
    without,
)

CASES = {
    "linen": (NET, "net/Dense_0", "kernel", "net/params/Dense_0/kernel"),
    "nnx": (NNX_NET, "net/linear", "kernel", "net/params/linear/kernel"),
    "core's own": (CORE, "net", "bias", "params/net/bias"),
    "Haiku in core": (CORE, "net/enc/params/mlp/~/linear_0", "w", "params/net/enc/params/mlp/~/linear_0/w"),
    "Linen in core": (CORE, "net/head/params", "kernel", "params/net/head/params/kernel"),
}


@pytest.mark.parametrize("case", CASES)
def test_missing_extra_and_misshapen_parameters_are_errors(case):
    f, module, leaf, path = CASES[case]
    params, state = f.init(KEY, X)
    key = KEY
    with pytest.raises(br.MissingEntryError, match=path) as err:
        f.apply(without(params, module, leaf), state, key, X)
    assert "'net'" in "".join(err.value.__notes__)
    with pytest.raises(br.EntryShapeError, match=path):
        f.apply({**params, module: {**params[module], leaf: jnp.ones((7, 7))}}, state, key, X)
    extra = {**params, module: {**params[module], "stranger": jnp.ones(2)}}
    with pytest.raises(br.StructureError, match=path.rpartition("/")[0] + "/stranger"):
        f.apply(extra, state, key, X)


@pytest.mark.parametrize("case", ["linen", "nnx"])
def test_missing_extra_and_misshapen_state_are_errors(case):
    f, module, leaf, path = {
        "linen": (NET, "net/batch_stats/BatchNorm_0", "mean", "net/batch_stats/BatchNorm_0/mean"),
        "nnx": (NNX_NET, "net/batch_stats/norm", "mean", "net/batch_stats/norm/mean"),
    }[case]
    params, state = f.init(KEY, X)
    with pytest.raises(br.MissingEntryError, match=path):
        f.apply(params, without(state, module, leaf), KEY, X)
    with pytest.raises(br.EntryShapeError, match=path):
        f.apply(params, {**state, module: {**state[module], leaf: jnp.ones((7,))}}, KEY, X)
    with pytest.raises(br.StructureError, match="stranger"):
        f.apply(params, {**state, module: {**state[module], "stranger": jnp.ones(2)}}, KEY, X)
    with pytest.raises(br.MissingEntryError):
        f.apply(params, {}, KEY, X)
    with pytest.raises(br.MissingEntryError):
        f.apply({}, {}, KEY, X)


def test_state_of_core_parts():
    params, state = CORE.init(KEY, X)
    with pytest.raises(br.MissingEntryError, match="state/net/calls"):
        CORE.apply(params, {}, None, X)
    with pytest.raises(br.EntryShapeError, match="state/net/calls"):
        CORE.apply(params, {"net": {"calls": jnp.zeros(3, jnp.int32)}}, None, X)
    with pytest.raises(br.StructureError, match="state/net/strange"):
        CORE.apply(params, {"net": {**state["net"], "strange": jnp.zeros(3)}}, None, X)


def test_parameters_among_the_state():
    params, state = NET.init(KEY, X)
    moved = {**state, "net/params/Dense_0": params["net/Dense_0"]}
    rest = {name: leaves for name, leaves in params.items() if name != "net/Dense_0"}
    for given in (params, rest):
        with pytest.raises(br.StructureError, match="'state/net/params/Dense_0/kernel'"):
            NET.apply(given, moved, None, X)
    params, state = CORE.init(KEY, X)
    rest = without(params, "net", "bias")
    moved = {"net": {**state["net"], "bias": params["net"]["bias"]}}
    with pytest.raises(br.StructureError, match="'state/net/bias' belongs into 'params/net/bias'"):
        CORE.apply({name: leaves for name, leaves in rest.items() if leaves}, moved, None, X)
    with pytest.raises(br.StructureError, match="'params/net/bias'"):
        CORE.apply(params, moved, None, X)


def test_what_only_a_training_call_records_is_not_unknown():
    class Recording(br.Module):
        def __call__(self, x):
            if br.flag("train"):
                self.put("last", x, kind=br.Intermediate)
            return x * self.get("w", jnp.ones, (3,))

    f = linen(Recording())
    params, state = f.init(KEY, X, train=True)
    assert set(state["net"]) == {"last"}
    assert same(f.apply(params, state, None, X, train=False)[0], X)
    assert same(f.apply(params, {}, None, X)[1], {})
    with pytest.raises(br.StructureError, match="state/net/lost"):
        f.apply(params, {"net": {"lost": X}}, None, X, train=False)


def test_nothing_is_initialised_in_a_call():
    made = []

    def noted(key, shape, dtype=jnp.float32):
        made.append(shape)
        return jnp.ones(shape, dtype)

    f = linen(nn.Dense(2, kernel_init=noted))
    params, state = f.init(KEY, X)
    assert made
    made.clear()
    f.apply(params, state, None, X)
    assert not [v for v in jax.make_jaxpr(f.apply)(params, state, None, X).eqns if "random" in str(v)]


def test_parameters_cannot_be_set_in_a_call():
    class Setting(br.Module):
        def __call__(self, x):
            self.put("w", self.get("w", jnp.ones, ()) + x)
            return x

    f = linen(Setting())
    with pytest.raises(br.UnsupportedError, match="'params/net/w'"):
        f.init(KEY, jnp.ones(()))


def test_errors_of_the_constructor():
    with pytest.raises(br.FieldError, match="ToHaiku"):
        hk.transform(lambda x: ToHaiku(nn.Dense(2), 3)(x)).init(KEY, X)
    with pytest.raises(br.UnsupportedError, match="cannot be hosted"):
        hk.transform(lambda x: ToHaiku(3)(x)).init(KEY, X)


def test_what_a_call_would_create_outside_of_init_is_refused_with_the_way():
    class Decoder(nnx.Module):
        def __init__(self, rngs):
            self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)

        def __call__(self, x):
            return self.attention(x)

        def start(self, shape):
            self.attention.init_cache(shape)

    def both(with_init):
        def f():
            net = br.ToHaiku(Decoder, name="net")

            def init(x):
                net.start(x.shape) if with_init else None
                return net(x)

            return init, (net.start, net)

        return hk.multi_transform_with_state(f)

    x = jnp.ones((2, 3, 4))
    params, state = both(False).init(KEY, x)
    with pytest.raises(br.CreateError) as err:
        both(False).apply[0](params, state, None, x.shape)
    assert "if hk.running_init(): net.start(" in "".join(err.value.__notes__)
    params, state = both(True).init(KEY, x)
    both(True).apply[0](params, state, None, x.shape)
    assert state["net/cache/attention"]["cached_key"].shape == (2, 3, 2, 2)
