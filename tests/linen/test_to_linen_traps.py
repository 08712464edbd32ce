"""Traps met in public models, with `ToLinen`: names, dtypes, keys in the state, frozen and foreign variables."""

from __future__ import annotations

import copy
import pickle

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import freeze

import bridges as br
from bridges.linen_adapter import ToLinen
from tests.linen.models import same
from tests.linen.to_linen_models import KEY, Core, Net, X, batch_net, flat, initial, mlp


class MethodScopes(hk.Module):
    """Modules made in methods of their own: Haiku calls them `module/~encode/linear`."""

    def __call__(self, x):
        return self.decode(self.encode(x))

    def encode(self, x):
        return hk.Linear(4)(x)

    def decode(self, x):
        return hk.Linear(3)(x)


def test_scopes_of_haiku_methods():
    def native(x):
        return MethodScopes()(x)

    variables = initial(ToLinen(MethodScopes), X)
    params, _ = br.haiku_adapter.unflatten(br.State(flat(variables)))
    assert "method_scopes/~encode/linear" in params
    assert same(ToLinen(MethodScopes).apply(variables, X), hk.without_apply_rng(hk.transform(native)).apply(params, X))


def test_names_with_separators():
    def haiku(x):
        w = hk.get_parameter("c/w", (3,), init=hk.initializers.RandomNormal())
        return x * w * hk.get_parameter("100%", (), init=jnp.ones)

    class Odd(nnx.Module):
        def __init__(self):
            self.names = nnx.data({"a/b": nnx.Param(jnp.ones(3)), "100%": nnx.Param(jnp.ones(()))})
            self.h = nnx.List([nnx.Dict(attention=nnx.Param(jnp.ones(3)))])

        def __call__(self, x):
            return x * self.names["a/b"] * self.names["100%"] * self.h[0]["attention"]

    variables = initial(ToLinen(haiku), X)
    params = hk.transform(haiku).init(KEY, X)
    assert sorted(flat(variables)) == sorted(br.haiku_adapter.flatten(params))
    native, _ = br.haiku_adapter.unflatten(br.State(flat(variables)))
    assert same(ToLinen(haiku).apply(variables, X), hk.transform(haiku).apply(native, None, X))
    variables = initial(ToLinen(Odd), X)
    p = variables["params"]
    assert sorted(p["names"]) == ["100%", "a/b"] and list(p["h"]) == ["0"]
    want = X * p["names"]["a/b"] * p["names"]["100%"] * p["h"]["0"]["attention"]
    assert same(ToLinen(Odd).apply(variables, X), want)


@pytest.mark.parametrize("part", [batch_net, Net, Core])
def test_frozen_and_numpy_variables(part):
    model, variables = ToLinen(part), initial(ToLinen(part), X)
    given = {"rngs": {"dropout": KEY}, "mutable": ["state", "batch_stats", "Calls"]}
    want, new = model.apply(variables, X, **given)
    assert same(model.apply(freeze(variables), X, **given), (want, new))
    out, again = model.apply(jax.tree.map(np.asarray, variables), np.asarray(X), **given)
    assert same((out, again), (want, new))


@pytest.mark.parametrize("part", [batch_net, Core])
def test_bfloat16_state(part):
    variables = initial(ToLinen(part), X)
    low = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a, variables)
    _, new = ToLinen(part).apply(low, X, mutable=["state", "Calls"])
    kept = {p: v for p, v in flat(low).items() if not p.startswith("params")}
    assert {p: v.dtype for p, v in flat(new).items()} == {p: v.dtype for p, v in kept.items()}


def test_random_keys_in_the_state():
    class Noisy(br.Module):
        def __call__(self, x):
            key = self.get("key", lambda: jax.random.key(3))
            key, now = jax.random.split(key)
            self.put("key", key)
            return x + jax.random.normal(now, x.shape)

    def haiku(x):
        key = hk.get_state("key", (), init=lambda *_: jax.random.key(3))
        key, now = jax.random.split(key)
        hk.set_state("key", key)
        return x + jax.random.normal(now, x.shape)

    native = hk.transform_with_state(haiku)
    state = native.init(None, X)[1]
    for part, collection in ((Noisy, "rng_state"), (haiku, "state")):
        variables = ToLinen(part).init(KEY, X)
        one, variables = ToLinen(part).apply(variables, X, mutable=[collection])
        two, variables = ToLinen(part).apply(variables, X, mutable=[collection])
        want, after = native.apply({}, state, None, X)
        assert same(one, want) and same(two, native.apply({}, after, None, X)[0])


def test_streams_of_an_nnx_part_inside_a_core_part_are_its_state():
    class Around(br.Module):
        def __call__(self, x):
            return self.get("drop", br.FromNNX(nnx.Dropout), 0.5)(x)

    variables = ToLinen(Around).init(KEY, X)
    assert sorted(variables) == ["RngCount", "RngKey"]
    state = br.init(Around())({}, X, seed=KEY)
    state, want = br.pure(Around())(state, X)
    out, new = ToLinen(Around).apply(variables, X, mutable=["RngCount"])
    assert same(out, want)
    assert not same(ToLinen(Around).apply({**variables, **new}, X, mutable=["RngCount"])[0], out)
    with pytest.raises(br.PermissionsError, match="RngCount"):
        ToLinen(Around).apply(variables, X)


def test_keys_of_an_nnx_part_that_are_no_streams_are_variables():
    class Own(nnx.RngState): ...

    class Keyed(nnx.Module):
        def __init__(self, rngs):
            self.key, self.own = nnx.RngKey(jax.random.key(1), tag="own"), Own(jnp.zeros((), jnp.int32))
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            self.own[...] += 1
            return self.drop(x) + jax.random.normal(jax.random.fold_in(self.key[...], self.own[...]), x.shape)

    for init in (KEY, {"params": KEY, "dropout": KEY}):
        variables = ToLinen(Keyed).init(init, X)
        assert sorted(flat(variables)) == ["Own/own", "RngKey/key"]
    out, new = ToLinen(Keyed).apply(variables, X, rngs={"dropout": KEY}, mutable=["Own"])
    module = Keyed(nnx.Rngs(dropout=0))
    nnx.reseed(module, dropout=KEY)
    assert same(out, module(X)) and int(new["Own"]["own"]) == 1
    with pytest.raises(br.SeedError, match="dropout"):
        ToLinen(Keyed).apply(variables, X, mutable=["Own"])


def test_trees_in_the_state():
    class Trees(br.Module):
        def __call__(self, x):
            tree = self.get("tree", lambda: {"a": jnp.zeros(2), "b": (jnp.ones(3), jnp.zeros(()))})
            self.put("tree", jax.tree.map(lambda a: a + 1, tree))
            return x + tree["b"][0]

    def haiku(x):
        tree = hk.get_state("tree", (), init=lambda *_: {"a": jnp.zeros(2), "b": (jnp.ones(3), jnp.zeros(()))})
        hk.set_state("tree", jax.tree.map(lambda a: a + 1, tree))
        return x + tree["b"][0]

    for part, collection in ((Trees, "variables"), (haiku, "state")):
        variables = ToLinen(part).init(KEY, X)
        for i in range(2):
            out, variables = ToLinen(part).apply(variables, X, mutable=[collection])
            assert same(out, X + 1 + i)


def test_perturbations():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            return self.perturb("h", self.dense(x)) ** 2

    model, variables = ToLinen(Model), ToLinen(Model).init(KEY, X)
    assert sorted(variables) == ["params", "perturbations"]
    out = model.apply({"params": variables["params"]}, X)  # As in Linen: without any, nothing is perturbed.
    assert same(out, model.apply(variables, X))

    def loss(perturbations):
        return model.apply({"params": variables["params"], "perturbations": perturbations}, X).sum()

    grads = jax.grad(loss)(variables["perturbations"])
    dense = variables["params"]["dense"]
    np.testing.assert_allclose(grads["h"], 2 * (X @ dense["kernel"] + dense["bias"]), rtol=1e-5)


def test_copies_equality_and_pickles():
    model, variables = ToLinen(Net, 5), initial(ToLinen(Net, 5), X)
    want = model.apply(variables, X, train=False)
    for other in (model.copy(name="other"), model.clone(), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is ToLinen and same(other.apply(variables, X, train=False), want)
    assert model == ToLinen(Net, 5) and hash(model) == hash(ToLinen(Net, 5))
    assert model != ToLinen(Net, 6) and model != ToLinen(Net, size=5.0) and ToLinen(mlp) != ToLinen(batch_net)
    assert "host = Net" in repr(model)


def test_statistics_that_evaluation_reads_must_be_there():
    variables = initial(ToLinen(nnx.BatchNorm, 3), X)
    with pytest.raises(br.MissingEntryError, match="batch_stats/mean"):
        ToLinen(nnx.BatchNorm, 3).apply({"params": variables["params"]}, X, use_running_average=True)
    with pytest.raises(br.EntryShapeError, match=r"batch_stats/mean.*float32\[4\].*float32\[3\]"):
        wrong = {"mean": jnp.ones(4), "var": jnp.ones(3)}
        ToLinen(nnx.BatchNorm, 3).apply({**variables, "batch_stats": wrong}, X, use_running_average=True)


def test_an_error_says_where_the_part_stands():
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x):
            return ToLinen(mlp, name="deep")(x)

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Inner(name="middle")(x)

    with pytest.raises(br.MissingEntryError) as err:
        Outer().apply({"params": {}}, X)
    assert any("ToLinen(mlp) at 'middle/deep'" in note for note in err.value.__notes__)
