"""Parts of every framework as Linen modules: initial values, collections, `mutable`, streams, methods, strictness."""

from __future__ import annotations

import functools
import threading
import warnings

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors as flax_errors
from flax import linen as nn
from flax import nnx

import bridges as br
from bridges.linen_adapter import ToLinen
from tests.linen import models
from tests.linen.models import inputs, randomised, same
from tests.linen.to_linen_models import (
    KEY,
    Calls,
    Core,
    LinenNet,
    Net,
    X,
    batch_net,
    dropping,
    flat,
    initial,
    mlp,
)
from tests.nnx_side import models as nnx_models

OTHER = jax.random.key(3)


def nnx_entries(module):
    """Returns what `ToLinen` stores of an NNX module: all but random streams, and what calls record."""
    return {p: v for p, v in br.nnx_adapter.flatten(module).items() if not p.startswith(("Rng", "intermediates"))}


def core_entries(state):
    """Returns the entries of a core state under the collections of their kinds."""
    names, kinds = {br.Param: "params", Calls: "Calls"}, state.kinds
    return {f"{names[kinds[p]]}/{p}": v for p, v in state.items() if kinds[p] in names}


def native_call(module, *args):
    """Calls an NNX module; NNX warns of sowing without `nnx.capture`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Using 'Module\.sow", DeprecationWarning)
        return module(*args)


def native_net(variables, key=None):
    """Returns the NNX module of the variables of `ToLinen(Net)`, with the key of a call."""
    module = Net(rngs=nnx.Rngs(params=0, dropout=0))
    entries = {p: v for p, v in br.nnx_adapter.flatten(module).items() if p.startswith("Rng")} | flat(variables)
    nnx.update(module, br.nnx_adapter.unflatten(br.State(entries), nnx.state(module)))
    if key is not None:
        nnx.reseed(module, dropout=key)
    return module


# Initial values ------------------------------------------------------------------------------------------------------


def test_initial_values_are_the_native_ones():
    native = hk.transform_with_state(batch_net).init(KEY, X)
    assert same(flat(ToLinen(batch_net).init(KEY, X)), dict(br.haiku_adapter.flatten(*native)))
    assert same(flat(ToLinen(Net).init(KEY, X)), nnx_entries(Net(rngs=nnx.Rngs(KEY))))
    assert same(flat(ToLinen(Core()).init(KEY, X)), core_entries(br.init(Core())({}, X, seed=KEY)))
    assert same(ToLinen(LinenNet()).init(KEY, X), LinenNet().init(KEY, X))


def test_initial_values_of_several_streams_are_the_native_ones():
    keys = {"params": KEY, "dropout": OTHER}
    assert same(flat(ToLinen(Net).init(keys, X)), nnx_entries(Net(rngs=nnx.Rngs(**keys))))
    assert same(flat(ToLinen(Core).init(keys, X)), core_entries(br.init(Core())({}, X, seed=keys)))
    assert same(ToLinen(LinenNet).init(keys, X, train=True), LinenNet().init(keys, X, train=True))


def test_initial_values_of_an_old_style_key():
    key = jax.random.PRNGKey(3)
    assert same(flat(ToLinen(mlp).init(key, X)), dict(br.haiku_adapter.flatten(hk.transform(mlp).init(key, X))))
    assert same(flat(ToLinen(Net).init(key, X)), nnx_entries(Net(rngs=nnx.Rngs(key))))


def test_the_first_output_is_that_of_a_new_module():
    out, variables = ToLinen(Net).init_with_output({"params": KEY, "dropout": OTHER}, X)
    assert same(out, native_call(Net(rngs=nnx.Rngs(params=KEY, dropout=OTHER)), X))
    assert sorted(variables) == ["batch_stats", "params"]  # What is sown is not, as Linen's init has it.
    out, variables = ToLinen(batch_net).init_with_output(KEY, X)
    params, state = hk.transform_with_state(batch_net).init(KEY, X)
    assert same(out, hk.transform_with_state(batch_net).apply(params, state, None, X)[0])
    assert same(flat({"state": variables["state"]}), dict(br.haiku_adapter.flatten({}, state)))


@pytest.mark.parametrize("part", [batch_net, Net, Core, LinenNet])
def test_init_in_abstract_and_compiled(part):
    model = ToLinen(part)
    want = model.init(KEY, X)
    shapes = jax.eval_shape(model.init, KEY, X)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), shapes) == jax.tree.map(lambda a: (a.shape, a.dtype), want)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jax.jit(model.init)(KEY, X), want)


def test_lazy_init_takes_shapes():
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    for part in (mlp, Net, Core):
        assert same(ToLinen(part).lazy_init(KEY, shape), ToLinen(part).init(KEY, X))


def test_streams_among_the_arguments_stay_as_they_are():
    rngs = nnx.Rngs(0)
    model = ToLinen(nnx.Linear, 3, 2, rngs=rngs)
    want = nnx_entries(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    assert same(flat(model.init(KEY, X)), want) and same(flat(model.init(OTHER, X)), want)
    assert model.apply(model.init(KEY, X), X).shape == (4, 2)
    assert int(rngs.default.count[...]) == 0


def test_values_of_an_instance_become_the_initial_ones():
    module = Net(rngs=nnx.Rngs(5))
    assert same(flat(ToLinen(module).init(KEY, X)), nnx_entries(module))


# Calls ---------------------------------------------------------------------------------------------------------------


def test_haiku_calls_are_native():
    native = hk.transform_with_state(batch_net)
    model, variables = ToLinen(batch_net), initial(ToLinen(batch_net), X)
    params, state = br.haiku_adapter.unflatten(br.State(flat(variables)))
    for _ in range(2):
        want, state = native.apply(params, state, None, X)
        out, new = model.apply(variables, X, mutable=["state"])
        assert same(out, want) and same(flat(new), dict(br.haiku_adapter.flatten({}, state)))
        variables = {**variables, **new}
    assert same(model.apply(variables, X, is_training=False), native.apply(params, state, None, X, False)[0])


def test_haiku_draws_the_key_that_apply_is_given():
    native = hk.transform(dropping)
    variables = initial(ToLinen(dropping), X)
    params, _ = br.haiku_adapter.unflatten(br.State(flat(variables)))
    want = native.apply(params, OTHER, X)
    for rngs in ({"dropout": OTHER}, {"default": OTHER}, OTHER):
        assert same(ToLinen(dropping).apply(variables, X, rngs=rngs), want)
    assert not same(ToLinen(dropping).apply(variables, X, rngs={"dropout": KEY}), want)


def test_nnx_calls_are_native():
    model, variables = ToLinen(Net), initial(ToLinen(Net), X)
    for key in (KEY, OTHER):
        module = native_net(variables, key)
        out, new = model.apply(variables, X, rngs={"dropout": key}, mutable=["batch_stats"])
        assert same(out, native_call(module, X))
        assert same(flat(new), {p: v for p, v in nnx_entries(module).items() if p.startswith("batch_stats")})
        variables = {**variables, **new}
    module.eval()
    assert same(model.apply(variables, X, train=False), native_call(module, X))


def test_core_calls_are_native():
    model, variables = ToLinen(Core), initial(ToLinen(Core), X)
    state = {p.partition("/")[2]: v for p, v in flat(variables).items()}
    state, want = br.pure(Core())(state, X)
    out, new = model.apply(variables, X, mutable=["Calls", "intermediates"])
    assert same(out, want)
    assert int(new["Calls"]["core"]["calls"]) == 1
    assert same(new["intermediates"]["core"]["out"], state["core/out"])


def test_linen_parts_are_handed_through():
    model, variables = ToLinen(LinenNet()), initial(LinenNet(), X)
    assert same(model.apply(variables, X), LinenNet().apply(variables, X))
    given = {"train": True, "rngs": {"dropout": KEY}, "mutable": ["batch_stats", "intermediates"]}
    assert same(model.apply(variables, X, **given), LinenNet().apply(variables, X, **given))
    for module in (LinenNet(), model):
        with pytest.raises(flax_errors.ModifyScopeVariableError, match="batch_stats"):
            module.apply(variables, X, train=True, rngs={"dropout": KEY})
        with pytest.raises(flax_errors.ScopeCollectionNotFound):
            module.apply({}, X)
    given = {"capture_intermediates": True, "mutable": ["intermediates"]}
    assert same(model.apply(variables, X, **given), LinenNet().apply(variables, X, **given))


def test_a_linen_part_that_decides_by_mutability():
    class ByMutability(nn.Module):
        @nn.compact
        def __call__(self, x):
            train = self.is_mutable_collection("batch_stats")
            return nn.BatchNorm(use_running_average=not train)(x)

    variables = initial(ByMutability(), X)
    for mutable in (False, ["batch_stats"], True):
        want = ByMutability().apply(variables, X, mutable=mutable)
        assert same(ToLinen(ByMutability).apply(variables, X, mutable=mutable), want)


LINEN = {
    "conv_net": (models.ConvNet(), inputs(2, 6, 6, 3), {"train": True}),
    "sower": (models.Sower(), X, {}),
    "two_collections": (models.TwoCollections(), X, {}),
    "partitioned": (models.Partitioned(), X, {}),
    "t5x": (models.T5X(), X, {}),
    "tuple_cache": (models.TupleCache(), X, {}),
    "lora": (models.Lora(), X, {}),
    "stacked": (models.Stacked(), X, {}),
}


@pytest.mark.parametrize("name", LINEN)
def test_every_linen_model_is_handed_through(name):
    model, x, kwargs = LINEN[name]
    keys = {"params": KEY, "dropout": OTHER}
    variables = model.init(keys, x, **kwargs)
    assert same(ToLinen(model).init(keys, x, **kwargs), variables)
    for mutable in (True, [*variables]):
        want = model.apply(variables, x, rngs=keys, mutable=mutable, **kwargs)
        assert same(ToLinen(model).apply(variables, x, rngs=keys, mutable=mutable, **kwargs), want)


@pytest.mark.parametrize("name", ["sower", "two_collections", "partitioned", "t5x", "tuple_cache", "lora"])
def test_linen_models_inside_a_core_part(name):
    """Boxes, tuples, integer keys, objects without arrays, losses that are summed up: all go there and back."""
    model, x, _ = LINEN[name]

    class Around(br.Module):
        def __call__(self, x):
            return self.get("inner", br.FromFlax(model))(x)

    variables = model.init(KEY, x)
    around = ToLinen(Around).init(KEY, x)
    state = br.init(Around())({}, x, seed=KEY)
    assert sorted(around) == sorted(variables)
    for _ in range(2):
        state, want = br.pure(Around())(state, x)
        out, new = ToLinen(Around).apply(around, x, mutable=True)
        assert same(out, want)
        around = {**around, **new}
    kept = {p.partition("/")[2]: v for p, v in flat(new).items() if p.startswith(("stats", "memory"))}
    assert all(same(v, state[p]) for p, v in kept.items()) and bool(kept) is (
        name in ("two_collections", "tuple_cache")
    )


NNX = {
    "conv_net": (nnx_models.ConvNet, inputs(2, 6, 6, 3)),
    "sower": (nnx_models.Sower, X),
    "tied": (nnx_models.Tied, inputs(2, 2)),
    "names": (nnx_models.ReservedNames, X),
    "odd": (nnx_models.Odd, inputs(2, 2)),
}


@pytest.mark.parametrize("name", NNX)
def test_every_nnx_model_is_native(name):
    cls, x = NNX[name]
    keys = {"params": KEY, "dropout": OTHER}
    model, module = ToLinen(cls), cls(rngs=nnx.Rngs(default=1, **keys))
    variables = model.init({"default": jax.random.key(1), **keys}, x)
    if name == "names":  # Linen takes {'params': {'params': …}} for a mistake.
        variables["params"]["params"] = variables["params"].pop("params%")
    assert same(flat(variables), nnx_entries(module))
    variables = model.init({"default": jax.random.key(1), **keys}, x)
    nnx.reseed(module, dropout=KEY, default=KEY, params=KEY)
    out, new = model.apply(variables, x, rngs=KEY, mutable=True)
    assert same(out, native_call(module, x))
    new = {collection: tree for collection, tree in new.items() if collection != "intermediates"}
    if name != "names":
        assert same(flat(new), nnx_entries(module))


def test_sown_values_have_the_structure_that_they_have_in_nnx():
    variables = ToLinen(nnx_models.Sower).init(KEY, X)
    module = nnx_models.Sower(rngs=nnx.Rngs(KEY))
    native_call(module, X)
    _, new = ToLinen(nnx_models.Sower).apply(variables, X, mutable=["intermediates"])
    assert same(new["intermediates"], {n: getattr(module, n).get_value() for n in ("h", "l2", "last")})


def test_jit_grad_and_vmap_of_apply():
    model, variables = ToLinen(batch_net), initial(ToLinen(batch_net), X)
    params, state = br.haiku_adapter.unflatten(br.State(flat(variables)))
    native = hk.transform_with_state(batch_net)

    def loss(params):
        out, new = model.apply({"params": params, "state": variables["state"]}, X, mutable=["state"])
        return (out**2).sum(), new

    grads, new = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    want = jax.jit(jax.grad(lambda p: (native.apply(p, state, None, X)[0] ** 2).sum()))(params)
    assert same(flat({"params": grads}), dict(br.haiku_adapter.flatten(want)))
    assert not same(new["state"], variables["state"])
    xs = jnp.stack([X, X + 1])
    outs = jax.vmap(lambda x: model.apply(variables, x, is_training=False))(xs)
    np.testing.assert_allclose(outs[1], model.apply(variables, X + 1, is_training=False), rtol=1e-5)


# Mutability ----------------------------------------------------------------------------------------------------------


def test_all_that_is_modified_comes_back():
    variables = initial(ToLinen(Net), X)
    _, new = ToLinen(Net).apply(variables, X, rngs={"dropout": KEY}, mutable=True)
    assert sorted(new) == ["batch_stats", "intermediates", "params"]
    assert same(new["params"], variables["params"])
    _, new = ToLinen(Net).apply(variables, X, rngs={"dropout": KEY}, mutable=nn.DenyList(["params", "intermediates"]))
    assert sorted(new) == ["batch_stats"]


@pytest.mark.parametrize(("part", "collection"), [(batch_net, "state"), (Net, "batch_stats"), (Core, "Calls")])
def test_a_collection_that_is_modified_and_not_mutable(part, collection):
    variables = initial(ToLinen(part), X)
    with pytest.raises(br.PermissionsError, match=rf"'{collection}/.*\n.*mutable=\['{collection}'\]"):
        ToLinen(part).apply(variables, X, rngs={"dropout": KEY})
    with pytest.raises(flax_errors.ModifyScopeVariableError, match=rf'collection "{collection}" is immutable'):
        ToLinen(part).apply(variables, X, rngs={"dropout": KEY}, mutable=["params"])


def test_errors_say_where_they_are_explained():
    variables = initial(ToLinen(Net), X)
    with pytest.raises(br.PermissionsError) as err:
        ToLinen(Net).apply(variables, X, rngs=KEY)
    assert err.value.help == "docs/errors.md#permissionserror"
    with pytest.raises(br.SeedError) as err:
        ToLinen(Net).apply(variables, X, mutable=True)
    assert err.value.help == "docs/errors.md#seederror"


def test_init_makes_what_is_mutable():
    with pytest.raises(br.PermissionsError, match="batch_stats"):
        ToLinen(Net).init(KEY, X, mutable=["params"])


def test_what_is_sown_comes_back_when_it_is_mutable():
    variables = initial(ToLinen(Net), X)
    call = functools.partial(ToLinen(Net).apply, rngs={"dropout": KEY})
    _, new = call(variables, X, mutable=["batch_stats", "intermediates"])
    module = native_net(variables, KEY)
    native_call(module, X)
    assert same(new["intermediates"]["normed"], module.normed.get_value())
    _, new = call(variables, X, mutable=["batch_stats"])
    assert sorted(new) == ["batch_stats"]


def test_what_is_sown_does_not_grow_and_traces_once():
    model, variables, traces = ToLinen(Net), initial(ToLinen(Net), X), []

    @jax.jit
    def step(variables):
        traces.append(1)
        _, new = model.apply(variables, X, rngs={"dropout": KEY}, mutable=["batch_stats", "intermediates"])
        return {**variables, **new}

    for _ in range(3):
        variables = step(variables)
    assert len(traces) == 2  # With and without intermediates among the variables.
    assert len(variables["intermediates"]["normed"]) == 1


def test_what_several_calls_of_one_apply_record_is_kept():
    class Twice(nn.Module):
        def setup(self):
            self.net, self.core = ToLinen(Net), ToLinen(Core)

        def __call__(self, x):
            return self.net(x), self.net(x + 1), self.core(x), self.core(x + 1)

    model, variables = Twice(), initial(Twice(), X)
    given = {"mutable": ["Calls", "batch_stats", "intermediates"], "rngs": {"dropout": KEY}}
    outs, new = model.apply(variables, X, **given)
    assert int(new["Calls"]["core"]["core"]["calls"]) == 2
    bias = variables["params"]["core"]["core"]["bias"]
    np.testing.assert_allclose(new["intermediates"]["core"]["core"]["out"] + bias, outs[3])
    one, two = new["intermediates"]["net"]["normed"]
    assert one.shape == two.shape and not np.array_equal(one, two)
    _, again = model.apply({**variables, **new}, X, **given)
    assert len(again["intermediates"]["net"]["normed"]) == 2


def test_what_is_recorded_is_not_given_back():
    class Probe(br.Intermediate): ...

    class Mark(nnx.Intermediate): ...

    class CoreProbe(br.Module):
        def __call__(self, x):
            self.put("seen", x, kind=Probe)
            return x * self.get("w", jnp.ones, ())

    class NNXProbe(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(()))

        def __call__(self, x):
            self.seen = Mark(x)
            return x * self.w

    for part, collection in ((CoreProbe, "Probe"), (NNXProbe, "Mark"), (functools.partial(SownLosses), "losses")):
        model = ToLinen(part)
        variables = model.init(KEY, X)
        _, new = model.apply(variables, X, mutable=[collection])
        _, again = model.apply({**variables, **new}, X + 1, mutable=[collection])
        assert jax.tree.structure(again) == jax.tree.structure(new) and not same(again, new)


class SownLosses(br.Module):
    def __call__(self, x):
        return self.get("sower", br.FromFlax(models.Sower))(x)


def test_capture_intermediates():
    variables = initial(ToLinen(mlp), X)
    out, new = ToLinen(mlp).apply(variables, X, capture_intermediates=True, mutable=["intermediates"])
    assert same(new["intermediates"]["__call__"], (out,))


# Streams -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [batch_net, functools.partial(Net), Core])
def test_who_draws_nothing_needs_no_key(part):
    variables = initial(ToLinen(part), X)
    train = {"train": False}
    out, _ = ToLinen(part).apply(variables, X, mutable=True, **train)
    assert out.shape == (4, 2)
    jaxpr = jax.make_jaxpr(lambda v, x: ToLinen(part).apply(v, x, mutable=True, **train)[0])(variables, X)
    assert "random" not in str(jaxpr)


@pytest.mark.parametrize(("part", "stream"), [(dropping, "default"), (Net, "dropout")])
def test_who_draws_without_a_key_is_told_so(part, stream):
    variables = initial(ToLinen(part), X)
    for rngs in (None, {}) if part is dropping else (None, {"noise": KEY}):
        with pytest.raises(br.SeedError, match=rf'"{stream}".*rngs=\{{\'{stream}\': key\}}'):
            ToLinen(part).apply(variables, X, rngs=rngs, mutable=True)
        with pytest.raises(flax_errors.InvalidRngError):
            ToLinen(part).apply(variables, X, rngs=rngs, mutable=True)


def test_a_key_that_is_drawn_and_never_used_is_not_asked_for():
    class Recurrent(nnx.Module):
        """A cell of NNX draws a key for its first carry, which is zeros; `noisy` uses such a key."""

        def __init__(self, noisy=False, *, rngs):
            self.noisy, self.rngs, self.rnn = noisy, rngs, nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs))

        def __call__(self, x):
            return self.rnn(x + jax.random.normal(self.rngs.carry(), x.shape)) if self.noisy else self.rnn(x)

    x = inputs(2, 5, 3)
    model, variables = ToLinen(Recurrent), initial(ToLinen(Recurrent), x)
    module = Recurrent(rngs=nnx.Rngs(0))
    kept = {p: v for p, v in br.nnx_adapter.flatten(module).items() if p.startswith("Rng")}
    nnx.update(module, br.nnx_adapter.unflatten(br.State(kept | flat(variables)), nnx.state(module)))
    np.testing.assert_allclose(model.apply(variables, x), module(x), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), module(x), rtol=1e-5)
    noisy = ToLinen(Recurrent, noisy=True)
    with pytest.raises(br.SeedError, match="rngs/default"):
        noisy.apply(variables, x)
    assert not same(noisy.apply(variables, x, rngs={"carry": KEY}), noisy.apply(variables, x, rngs={"carry": OTHER}))


def test_init_without_a_key():
    assert ToLinen(lambda x: x + 1).init({}, X) == {}
    for part in (mlp, Net, Core):
        with pytest.raises(br.SeedError, match=r"model\.init\(key, x\)"):
            ToLinen(part).init({}, X)


def test_streams_fall_back_as_in_linen():
    variables = initial(ToLinen(Net), X)
    call = functools.partial(ToLinen(Net).apply, variables, X, mutable=["batch_stats"])
    assert same(call(rngs=KEY), call(rngs={"params": KEY}))
    assert same(call(rngs=KEY), call(rngs={"dropout": KEY}))
    assert same(call(rngs={"params": OTHER, "dropout": KEY}), call(rngs={"dropout": KEY}))


def test_several_streams_of_an_nnx_part_are_reseeded_in_nnx_order():
    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.b = nnx.Dropout(0.5, rngs=rngs)
            self.a = nnx.Dropout(0.5, rngs=rngs)
            self.n = nnx.Dropout(0.5, rng_collection="noise", rngs=rngs)
            self.rngs = rngs

        def __call__(self, x):
            return self.n(self.b(self.a(x))) + jax.random.normal(self.rngs.dropout(), x.shape)

    rngs = {"dropout": KEY, "noise": OTHER}
    variables = ToLinen(Noisy).init({"params": KEY, **rngs}, X)
    assert variables == {}
    module = Noisy(nnx.Rngs(default=0, params=1, dropout=2, noise=3))
    nnx.reseed(module, **rngs)
    assert same(ToLinen(Noisy).apply({}, X, rngs=rngs), module(X))
    assert ToLinen(Noisy).apply({}, X, rngs=KEY).shape == X.shape


def test_calls_of_one_apply_draw_anew():
    class Twice(nn.Module):
        def setup(self):
            self.drop = ToLinen(nnx.Dropout, 0.5)

        def __call__(self, x):
            return self.drop(x), self.drop(x)

    one, two = Twice().apply({}, jnp.ones((8, 8)), rngs={"dropout": KEY})
    assert not np.array_equal(one, two)

    def haiku(x):
        return hk.dropout(hk.next_rng_key(), 0.5, x)

    class Both(nn.Module):
        @nn.compact
        def __call__(self, x):
            first = ToLinen(haiku)
            return first(x), first(x), ToLinen(haiku)(x), nn.Dropout(0.5, deterministic=False)(x)

    outs = Both().apply({}, jnp.ones((8, 8)), rngs={"dropout": KEY})
    assert all(not np.array_equal(a, b) for i, a in enumerate(outs) for b in outs[i + 1 :])


# Training or not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["is_training", "train", "training", "deterministic", "use_running_average"])
def test_every_word_for_training_reaches_the_part(word):
    off = word in ("deterministic", "use_running_average")
    native = hk.transform_with_state(batch_net)
    variables = initial(ToLinen(batch_net), X)
    pair = br.haiku_adapter.unflatten(br.State(flat(variables)))
    for train in (True, False):
        out, _ = ToLinen(batch_net).apply(variables, X, mutable=["state"], **{word: train is not off})
        assert same(out, native.apply(*pair, None, X, train)[0])
    if word != "use_running_average":  # Dropout has no such attribute.
        variables = initial(ToLinen(Net), X)
        module = native_net(variables, KEY)
        module.set_attributes(deterministic=True, **({} if off else {"use_running_average": True}))
        given = {word: off, "rngs": {"dropout": KEY}, "mutable": ["batch_stats"]}
        assert same(ToLinen(Net).apply(variables, X, **given)[0], native_call(module, X))


def test_words_that_the_call_takes_are_passed_on():
    x = inputs(4, 6)
    variables = initial(ToLinen(nnx.BatchNorm, 6), x, use_running_average=True)
    module = nnx.BatchNorm(6, rngs=nnx.Rngs(0))
    nnx.update(module, br.nnx_adapter.unflatten(br.State(flat(variables)), nnx.state(module)))
    model = ToLinen(nnx.BatchNorm, 6)
    assert same(model.apply(variables, x, use_running_average=True), module(x, use_running_average=True))
    out, _ = model.apply(variables, x, mutable=["batch_stats"])
    assert same(out, module(x))
    with pytest.raises(TypeError, match="train"):
        ToLinen(mlp).apply(initial(ToLinen(mlp), X), X, train=True)


def test_modes_that_a_call_sets_last_as_long_as_the_call():
    class Moody(nnx.Module):
        def __init__(self, rngs):
            self.norm, self.count = nnx.BatchNorm(3, rngs=rngs), 0

        def __call__(self, x, train):
            self.train() if train else self.eval()
            return self.norm(x)

        def counted(self, x):
            self.count += 1
            return self.norm(x, use_running_average=True)

    model = ToLinen(Moody)
    variables = randomised(model.init(KEY, X, True))
    stats = variables["batch_stats"]["norm"]
    want = (X - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-5)
    want = want * variables["params"]["norm"]["scale"] + variables["params"]["norm"]["bias"]
    for _ in range(2):
        np.testing.assert_allclose(model.apply(variables, X, False), want, rtol=1e-5)
        _, new = model.apply(variables, X, True, mutable=["batch_stats"])
        assert not same(new["batch_stats"]["norm"], stats)
    with pytest.raises(br.UnsupportedError, match="count: 0 -> 1"):
        model.apply(variables, X, method="counted")


def test_core_flags():
    class Flagged(br.Module):
        def __call__(self, x):
            return x * (2 if br.flag("train", False) else 1)

    assert same(ToLinen(Flagged).apply({}, X, train=True), X * 2)
    assert same(ToLinen(Flagged).apply({}, X), X)


# Methods -------------------------------------------------------------------------------------------------------------


class HaikuCoder(hk.Module):
    def __init__(self):
        super().__init__(name="coder")
        self.enc, self.dec = hk.Linear(4), hk.Linear(3)

    def __call__(self, x):
        return self.dec(self.enc(x))

    def encode(self, x):
        return self.enc(x)


@pytest.mark.parametrize("part", [Net, Core, HaikuCoder])
def test_methods(part):
    model, variables = ToLinen(part), initial(ToLinen(part), X)
    want = model.apply(variables, X, method="encode")
    assert same(want, model.apply(variables, X, method=model.encode))
    assert same(want, model.apply(variables, X, method=lambda m, x: m.encode(x)))
    assert same(want, model.apply(variables, X, method=lambda m, x: m(x, method="encode")))
    assert same(want, model.bind(variables).encode(X))
    assert same(want, model.apply(variables, X, method=part.encode))
    assert same(model.init(KEY, X, method=part.encode), model.init(KEY, X, method="encode"))
    with pytest.raises(AttributeError, match="encod"):
        model.apply(variables, X, method="encod")


def test_methods_of_submodules_and_functions_of_the_native_module():
    model, variables = ToLinen(Net), initial(ToLinen(Net), X)
    want = model.apply(variables, X, method="encode")
    assert same(model.apply(variables, X, method="dense"), want)
    assert same(model.apply(variables, X, method=lambda m, x: m(x, method=lambda net, x: net.dense(x))), want)
    assert same(model.apply(variables, X, method=lambda m, x: m(x, method=Net.encode)), want)
    assert model.part is Net
    assert ToLinen(Core(size=5)).size == 5


def test_haiku_multi_transform():
    @hk.multi_transform
    def two():
        encoder, decoder = hk.Linear(4, name="encoder"), hk.Linear(3, name="decoder")

        def init(x):
            return decoder(encoder(x))

        return init, {"encode": encoder, "decode": decoder}

    variables = ToLinen(two).init(KEY, X)
    params = two.init(KEY, X)
    assert same(flat(variables), dict(br.haiku_adapter.flatten(params)))
    code = two.apply["encode"](params, None, X)
    assert same(ToLinen(two).apply(variables, X, method="encode"), code)
    assert same(ToLinen(two).apply(variables, code, method="decode"), two.apply["decode"](params, None, code))


def test_haiku_transformed():
    native = hk.transform_with_state(batch_net)
    variables = ToLinen(native).init(KEY, X)
    assert same(flat(variables), dict(br.haiku_adapter.flatten(*native.init(KEY, X))))
    assert same(
        ToLinen(native).apply(variables, X, mutable=["state"]),
        ToLinen(batch_net).apply(variables, X, mutable=["state"]),
    )
    native = hk.without_apply_rng(hk.transform(mlp))
    params = native.init(KEY, X)
    variables = ToLinen(native).init(KEY, X)
    assert same(flat(variables), dict(br.haiku_adapter.flatten(params)))
    assert same(ToLinen(native).apply(variables, X), native.apply(params, X))


def test_initialised_by_one_method():
    model = ToLinen(HaikuCoder)
    variables = model.init(KEY, X, method="encode")
    assert sorted(flat(variables)) == ["params/coder/~/linear/b", "params/coder/~/linear/w"] or "linear" in str(
        variables
    )
    code = model.apply(variables, X, method="encode")
    assert code.shape == (4, 4)
    with pytest.raises(br.MissingEntryError, match="params/coder"):
        model.apply(variables, X)


def test_a_cache_made_by_a_method():
    class Decoder(nnx.Module):
        def __init__(self, rngs):
            self.attention = nnx.MultiHeadAttention(2, 4, decode=True, rngs=rngs)

        def __call__(self, x):
            return self.attention(x)

        def start(self, shape):
            self.attention.init_cache(shape)

    model, x = ToLinen(Decoder), inputs(2, 1, 4)
    variables = model.init(KEY, (2, 5, 4), method="start")
    assert sorted(variables) == ["cache", "params"]
    module = Decoder(nnx.Rngs(KEY))
    module.start((2, 5, 4))
    for _ in range(2):
        out, new = model.apply(variables, x, mutable=["cache"])
        assert same(out, module(x))
        variables = {**variables, **new}
    _, made = model.apply({"params": variables["params"]}, (2, 7, 4), method="start", mutable=["cache"])
    assert made["cache"]["attention"]["cached_key"].shape == (2, 7, 2, 2)
    with pytest.raises(br.PermissionsError, match="cache/attention/cached_key"):
        model.apply({"params": variables["params"]}, (2, 7, 4), method="start")


# Every failure of the peers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [mlp, batch_net, Net, Core])
def test_nothing_is_made_up(part):
    for variables in ({}, {"params": {}}):
        with pytest.raises((br.MissingEntryError, br.SeedError), match="params/"):
            ToLinen(part).apply(variables, X, mutable=True, rngs=KEY)


@pytest.mark.parametrize("part", [mlp, Net, Core])
def test_missing_extra_and_misshapen_entries(part):
    model, variables = ToLinen(part), initial(ToLinen(part), X)
    entries = flat(variables)
    path = next(p for p in entries if p.startswith("params/") and p.endswith(("w", "kernel")))
    call = functools.partial(model.apply, mutable=True, rngs=KEY, **({"train": False} if part is not mlp else {}))

    def changed(**values):
        new = {p: values.get("value", v) if p == path else v for p, v in entries.items()}
        return br.linen_adapter.unflatten(br.State(new))

    without = br.linen_adapter.unflatten(br.State({p: v for p, v in entries.items() if p != path}))
    with pytest.raises(br.MissingEntryError, match=path):
        call(without, X)
    with pytest.raises((br.EntryShapeError, ValueError), match=r"\[9,\s*9\]|\(9, 9\)") as err:
        call(changed(value=jnp.ones((9, 9))), X)
    assert isinstance(err.value, br.BridgeError) and path in str(err.value)
    extra = br.linen_adapter.unflatten(br.State({**entries, path + "x": X}))
    if part is not Core:  # It has a second method, which might use it.
        with pytest.raises(br.StructureError, match=path + "x"):
            call(extra, X)


def test_extra_entries_of_a_core_part_with_one_method():
    class Simple(br.Module):
        def __call__(self, x):
            return x + self.get("bias", jnp.ones, (3,))

    good = {"params": {"simple": {"bias": jnp.ones(3)}}}
    assert same(ToLinen(Simple).apply(good, X), X + 1)
    with pytest.raises(br.StructureError, match="params/simple/bia'"):
        ToLinen(Simple).apply({"params": {"simple": {"bias": jnp.ones(3), "bia": jnp.ones(3)}}}, X)
    with pytest.raises(br.StructureError, match="'cache/simple/bias' belongs into 'params/simple/bias'"):
        ToLinen(Simple).apply({"cache": {"simple": {"bias": jnp.ones(3)}}}, X)
    with pytest.raises(br.CollisionError, match="params/simple/bias"):
        ToLinen(Simple).apply({**good, "cache": {"simple": {"bias": jnp.ones(3)}}}, X)


def test_one_module_serves_variables_of_several_sizes():
    class Sized(br.Module):
        def __call__(self, x):
            return x * self.get("w", jnp.ones, x.shape[-1:])

    for part in (Sized(), mlp):
        model = ToLinen(part)
        small, large = model.init(KEY, X), model.init(KEY, inputs(4, 9))
        assert model.apply(small, X).shape[0] == model.apply(large, inputs(4, 9)).shape[0] == 4


def test_the_same_leaf_name_in_two_collections():
    class Stat(nnx.Variable): ...

    class Two(nnx.Module):
        def __init__(self):
            self.a = nnx.Dict(w=nnx.Param(jnp.ones(3)))
            self.b = nnx.Dict(w=Stat(jnp.zeros(3)))

        def __call__(self, x):
            self.b["w"][...] += x.mean(0)
            return x * self.a["w"] + self.b["w"]

    class Same(nn.Module):
        @nn.compact
        def __call__(self, x):
            stat = self.variable("stats", "w", lambda: jnp.zeros(3))
            if not self.is_initializing():
                stat.value += x.mean(0)
            return x * self.param("w", nn.initializers.ones, (3,)) + stat.value

    variables = initial(ToLinen(Same), X)
    assert sorted(flat(variables)) == ["params/w", "stats/w"]
    assert same(ToLinen(Same).apply(variables, X, mutable=["stats"]), Same().apply(variables, X, mutable=["stats"]))
    variables = initial(ToLinen(Two), X)
    out, new = ToLinen(Two).apply(variables, X, mutable=["Stat"])
    stat = variables["Stat"]["b"]["w"] + X.mean(0)
    assert same(new["Stat"]["b"]["w"], stat) and same(out, X * variables["params"]["a"]["w"] + stat)


NAMES = [
    "train",
    "eval",
    "sow",
    "name",
    "parent",
    "scope",
    "apply",
    "init",
    "host",
    "part",
    "variables",
    "params",
    "bind",
]
NAMES += ["setup", "param", "variable", "make_rng", "path", "perturb", "clone", "method", "tabulate", "kwargs", "state"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_api_are_free_for_layers(name):
    def haiku(x):
        return hk.Linear(2, name=name)(x)

    variables = randomised(ToLinen(haiku).init(KEY, X))
    params = {name: {leaf: variables["params"][name if name != "params" else "params%"][leaf] for leaf in "bw"}}
    assert same(ToLinen(haiku).apply(variables, X), hk.transform(haiku).apply(params, None, X))

    class Named(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.Dict({name: nnx.Linear(3, 2, rngs=rngs)})
            setattr(self, name if not hasattr(nnx.Module, name) else name + "_", nnx.Linear(3, 2, rngs=rngs))

        def __call__(self, x):
            own = getattr(self, name if not hasattr(nnx.Module, name) else name + "_")
            return self.layers[name](x) + own(x)

    variables = initial(ToLinen(Named), X)
    assert variables["params"]["layers"][name]["kernel"].shape == (3, 2)
    assert ToLinen(Named).apply(variables, X).shape == (4, 2)

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return ToLinen(haiku)(x) + ToLinen(Named)(x)

    variables = initial(Outer(), X)
    assert Outer().apply(variables, X).shape == (4, 2)


@pytest.mark.parametrize("name", ["init", "apply", "sow", "variables"])
def test_methods_that_linen_has_too(name):
    part = type("Part", (nnx.Module,), {name: lambda self, x: x * 2, "__call__": lambda self, x: x})
    if hasattr(nnx.Module, name):
        part = type("Part", (nnx.Module,), {"again": lambda self, x: x * 2, "__call__": lambda self, x: x})
        name = "again"
    assert same(ToLinen(part).apply({}, X, method=lambda m, x: m(x, method=name)), X * 2)


def test_two_threads():
    model, variables = ToLinen(Net), initial(ToLinen(Net), X)
    want = model.apply(variables, X, rngs={"dropout": KEY}, mutable=["batch_stats"])
    results: list[bool] = []

    def work():
        for _ in range(2):
            fresh = ToLinen(Net).init(KEY, X)
            got = jax.jit(lambda v: model.apply(v, X, rngs={"dropout": KEY}, mutable=["batch_stats"]))(variables)
            results.append(len(jax.tree.leaves(fresh)) == 8 and np.allclose(got[0], want[0], rtol=1e-5))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


def test_what_cannot_be_wrapped_is_refused():
    with pytest.raises(br.UnsupportedError, match="3 cannot be hosted"):
        ToLinen(3)
    with pytest.raises(br.FieldError, match=r"no class.*ToLinen\(part\)\.init"):
        ToLinen(Core(), 3)
    with pytest.raises(br.FieldError, match="wraps a part"):
        ToLinen()
    with pytest.raises(br.ContextError, match=r"model\.init"):
        ToLinen(mlp)(X)
