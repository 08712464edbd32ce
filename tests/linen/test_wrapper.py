"""FlaxModule and FromFlax: every row of the table of what peers get wrong about Linen modules, and what else can."""

from __future__ import annotations

import copy
import functools
import pickle
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import bridges as br
from bridges.linen_adapter import FlaxModule, FromFlax, FromLinen, LinenModule, flatten, unflatten
from tests.linen import models
from tests.linen.models import inputs, same, variables_of

KEY = jax.random.key(0)
IMAGES = inputs(2, 4, 4, 3)
X = inputs(2, 3)


def below(path, variables):
    """The state of a model in which a wrapper at `path` has these native variables."""
    state = flatten(variables)
    return br.State({f"{path}/{p}": v for p, v in state.items()}, {f"{path}/{p}": k for p, k in state.kinds.items()})


def native(path, state):
    """The native variables below a path."""
    found = {p.removeprefix(path + "/"): p for p in state if p.startswith(path + "/")}
    return unflatten(br.State({p: state[q] for p, q in found.items()}, {p: state.kind(q) for p, q in found.items()}))


def eqns(jaxpr):
    """Every primitive in a jaxpr, those of inner jaxprs included."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", None)
            if inner is not None:
                yield from eqns(getattr(inner, "jaxpr", inner))


# Making and naming ---------------------------------------------------------------------------------------------------


def test_it_is_used_as_the_documents_show():
    Linear = FromFlax(nn.Dense)
    Dense = functools.partial(FlaxModule, nn.Dense)

    class Net(br.Module):
        size: int = 3

        def __init__(self):
            self.h1 = Linear(4, name="h1")
            self.second = FlaxModule(nn.Dense, 4)
            self.third = Dense(4)

        def __call__(self, x):
            x = self.third(self.second(self.h1(x)))
            x = self.get("h4", Linear, self.size, use_bias=False)(x)
            return self.get("h5", Dense, 2)(x)

    state = br.init(Net())({}, X, seed=0)
    assert {path: value.shape for path, value in state.items() if path.endswith("kernel")} == {
        "net/h1/params/kernel": (3, 4),
        "net/second/params/kernel": (4, 4),
        "net/third/params/kernel": (4, 4),
        "net/h4/params/kernel": (4, 3),
        "net/h5/params/kernel": (3, 2),
    }
    assert "net/h4/params/bias" not in state
    kernels = [state[f"net/{name}/params/kernel"] for name in ("second", "third")]
    assert not np.array_equal(*kernels)  # Each path has a key of its own.
    assert LinenModule is FlaxModule and FromLinen is FromFlax


@pytest.mark.parametrize(
    "make",
    [
        lambda: FlaxModule(nn.Dense, 4),
        lambda: FlaxModule(nn.Dense(4)),
        lambda: FlaxModule(nn.Dense, features=4),
        lambda: FlaxModule(functools.partial(nn.Dense, 4)),
        lambda: FlaxModule(lambda: nn.Dense(4), name="dense"),
        lambda: FlaxModule(nn.Dense(4).bind(variables_of(nn.Dense(4), X))),
        lambda: FromFlax(nn.Dense)(4),
        lambda: FromFlax(nn.Dense(4))(),
        lambda: FromFlax(functools.partial(nn.Dense, 4))(),
    ],
)
def test_peers_class_instance_or_partial(make):
    variables = variables_of(nn.Dense(4), X)
    _, out = br.pure(make())(below("dense", variables), X)
    assert same(out, nn.Dense(4).apply(variables, X))


def test_what_is_no_linen_module_is_refused():
    with pytest.raises(br.FieldError, match="wraps a Linen module"):
        FlaxModule(int, 3)
    with pytest.raises(br.FieldError, match=r"Arguments \(4,\) came with an instance of Dense"):
        FlaxModule(nn.Dense(4), 4)
    with pytest.raises(br.FieldError, match="wraps a Linen module"):
        FlaxModule(3)


def test_instances_are_never_changed():
    model = models.AutoEncoder()
    before = dict(vars(model))
    net = FlaxModule(model)
    x = inputs(2, 4)
    state = br.init(net)({}, x, seed=0)
    br.pure(net)(state, x)
    assert vars(model).keys() == before.keys() and model.scope is None
    assert models.AutoEncoder.sow is nn.Module.sow and nn.Module.sow.__module__ == "flax.linen.module"


def test_a_wrapper_made_while_a_linen_method_runs_is_no_submodule_of_it():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            made.append(FlaxModule(nn.Dense, 4))
            return x

    made = []
    assert Outer().init(KEY, X) == {}
    assert br.init(made[0])({}, X, seed=0)["dense/params/kernel"].shape == (3, 4)


# Initial values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [jax.random.key(5), jax.random.PRNGKey(5), 5])
def test_peers_init_gives_native_values_where_the_wrapper_is_the_model(key):
    model = models.ConvNet()
    state = br.init(FlaxModule(model))({}, IMAGES, seed=key)
    want = model.init(jax.random.key(5) if isinstance(key, int) else key, IMAGES)
    assert same(native("conv_net", state), want)


def test_native_init_values_from_streams():
    model = models.ConvNet()
    keys = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
    state = br.init(FlaxModule(model))({}, IMAGES, train=True, seed=keys)
    assert same(native("conv_net", state), model.init(keys, IMAGES, train=True))
    other = br.init(FlaxModule(model))({}, IMAGES, seed={"default": jax.random.key(1)})
    assert same(native("conv_net", other), model.init(jax.random.key(1), IMAGES))


def test_init_of_what_has_no_variables_needs_no_seed():
    assert not br.init(FlaxModule(nn.Dropout, 0.5, deterministic=True))({}, X)
    with pytest.raises(
        br.SeedError, match=r"Linen module at 'dense' draws from the random stream 'params', and no seed"
    ):
        br.init(FlaxModule(nn.Dense, 3))({}, X)
    with pytest.raises(br.SeedError, match=r"stream 'params', and seed= gives only \['dropout'\]"):
        br.init(FlaxModule(nn.Dense, 3))({}, X, seed={"dropout": 0})


# Collections ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [False, True])
def test_peers_mutable_collections_are_written_back(fresh):
    model = models.ConvNet()
    variables = variables_of(model, IMAGES)
    net = FlaxModule(model, name="net")
    if not fresh:
        net_state = br.init(net)({}, IMAGES, seed=0)
        assert net_state.keys() == below("net", variables).keys()
    state = below("net", variables)
    for _ in range(2):  # Once learning, once learned.
        after, out = jax.jit(lambda s: br.pure(net)(s, IMAGES, train=True, seed=KEY))(state)
        want, updated = jax.jit(
            lambda v: model.apply(v, IMAGES, train=True, rngs=KEY, mutable=["batch_stats"])
        )(variables)  # fmt: skip
        assert same(out, want)
        assert same(native("net", after), {**variables, **updated})
        assert jax.tree.structure(after) == jax.tree.structure(state)
        # What a training call has taught does not reach an evaluating one.
        after, out = jax.jit(lambda s: br.pure(net)(s, IMAGES))(state)
        assert same(out, jax.jit(model.apply)(variables, IMAGES))
        assert same(after, state)


def test_peers_train_or_evaluation_by_mutability():
    model = models.ByMutability()
    variables = variables_of(model, X)
    net, state = FlaxModule(model, name="net"), below("net", variables)
    for _ in range(2):
        after, out = br.pure(net)(state, X)
        assert same(out, model.apply(variables, X)) and same(after, state)
        after, out = br.pure(net)(state, X, mutable=["batch_stats"])
        want, updated = model.apply(variables, X, mutable=["batch_stats"])
        assert same(out, want) and same(native("net", after), {**variables, **updated})
    after, out = br.pure(net)(state, X, mutable="batch_stats")
    assert same(out, want)


def test_mutable_false_is_an_error_where_the_call_modifies():
    net = FlaxModule(nn.BatchNorm, use_running_average=False, name="net")
    state = below("net", variables_of(nn.BatchNorm(use_running_average=True), X))
    with pytest.raises(br.PermissionsError, match="at 'net' modifies the collection 'batch_stats'"):
        br.pure(net)(state, X, mutable=False)
    with pytest.raises(br.PermissionsError, match="mutable=\\['cache'\\] was passed"):
        br.pure(net)(state, X, mutable=["cache"])
    after, _ = br.pure(net)(state, X, mutable=True)
    assert not np.array_equal(after["net/batch_stats/mean"], state["net/batch_stats/mean"])


def test_peers_cache_of_a_decoder():
    model = models.Decoder()
    whole, token = inputs(2, 5, 4), inputs(2, 1, 4)
    net = FlaxModule(model, name="net")
    state = br.init(net)({}, whole, seed=KEY)  # Cannot be called with these inputs, but must be initialised by them.
    variables = model.init(KEY, whole)
    assert same(native("net", state), variables)
    assert state.kind("net/cache/MultiHeadDotProductAttention_0/cache_index") is br.Cache
    step = jax.jit(lambda s: br.pure(FlaxModule(model, name="net"))(s, token))  # A fresh wrapper over loaded state.
    native_step = jax.jit(lambda v: model.apply(v, token, mutable=["cache"]))
    for _ in range(3):
        state, out = step(state)
        want, updated = native_step(variables)
        variables = {**variables, **updated}
        assert same(out, want)
    assert same(native("net", state), variables)
    assert int(state["net/cache/MultiHeadDotProductAttention_0/cache_index"]) == 3


def test_peers_one_leaf_name_in_two_collections():
    model = models.TwoCollections()
    variables = variables_of(model, X)
    after, out = br.pure(FlaxModule(model, name="net"))(below("net", variables), X)
    want, updated = model.apply(variables, X, mutable=["stats"])
    assert same(out, want) and same(native("net", after), {**variables, **updated})
    assert after.kind("net/stats/w") == br.Variable(collection="stats")


def test_peers_submodules_with_reserved_names():
    model = models.ReservedNames()
    variables = variables_of(model, X)
    net = FlaxModule(model, name="net")
    state = br.init(net)({}, X, seed=0)
    assert state.keys() == below("net", variables).keys()
    for wrapper in (net, FlaxModule(model, name="net")):
        _, out = br.pure(wrapper)(below("net", variables), X)
        want = model.bind(variables)(X)  # Module.apply refuses a submodule called params.
        assert same(out, want)


def test_peers_tuple_leaves_in_mutated_collections():
    model = models.TupleCache()
    variables = variables_of(model, X)
    state = below("net", variables)
    assert "net/memory/cell/1/10" in state
    for plain in (False, True):
        net = FlaxModule(model, name="net")
        after, out = br.pure(net)(dict(state) if plain else state, X)
        want, updated = model.apply(variables, X, mutable=["memory"])
        assert same(out, want)
        assert same(
            unflatten({p.removeprefix("net/"): v for p, v in after.items()}, variables), {**variables, **updated}
        )
    made = br.init(FlaxModule(model, name="net"))({}, X, seed=KEY)
    assert same(dict(made), dict(below("net", model.init(KEY, X))))


def test_peers_bfloat16_state():
    model = nn.BatchNorm(use_running_average=False)
    variables = jax.tree.map(lambda v: v.astype(jnp.bfloat16), variables_of(model, X))
    state = below("net", variables)
    after, _ = br.pure(FlaxModule(model, name="net"))(state, X)
    _, updated = model.apply(variables, X, mutable=["batch_stats"])
    assert after["net/batch_stats/mean"].dtype == jnp.bfloat16  # An entry keeps its dtype; Linen's becomes float32.
    assert same(after["net/batch_stats/mean"], updated["batch_stats"]["mean"].astype(jnp.bfloat16))


def test_peers_share_scope():
    model = models.Lora()
    variables = variables_of(model, X)
    assert sorted(variables["params"]) == ["a", "b", "bias", "kernel"]
    net = FlaxModule(model, name="net")
    _, out = br.pure(net)(below("net", variables), X)
    assert same(out, model.apply(variables, X))


@pytest.mark.parametrize("axis", [0, 1])
def test_peers_layers_stacked_on_an_axis(axis):
    model = models.Stacked(axis)
    variables = variables_of(model, X)
    _, out = br.pure(FlaxModule(model, name="net"))(below("net", variables), X)
    assert same(out, model.apply(variables, X))


def test_peers_axis_metadata_beside_arrays():
    model = models.T5X()
    variables = model.init(KEY, X)
    net = FlaxModule(model, name="net")
    state = br.init(net)({}, X, seed=KEY)
    assert same(native("net", state), variables)
    after, out = jax.jit(br.pure(net))(state, X)
    assert same(out, model.apply(variables, X))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    _, out = br.pure(FlaxModule(model, name="net"))({"net/params/kernel": variables["params"]["kernel"]}, X)
    assert same(out, model.apply(variables, X))


def test_spectral_norm_with_separators_in_its_names():
    model = nn.SpectralNorm(nn.Dense(3))
    variables = variables_of(model, X, update_stats=True)
    assert "layer_instance/kernel/u" in variables["batch_stats"]
    for update in (True, False):
        after, out = br.pure(FlaxModule(model, name="net"))(below("net", variables), X, update_stats=update)
        want, updated = model.apply(variables, X, update_stats=update, mutable=["batch_stats"])
        assert same(out, want) and same(native("net", after), {**variables, **updated})


# Boxes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [nn.with_partitioning, nn.with_logical_partitioning])
def test_peers_partition_metadata(box):
    model = models.Partitioned(box)
    net = FlaxModule(model, name="net")
    state = br.init(net)({}, X, seed=KEY)
    assert same(native("net", state), model.init(KEY, X))
    assert state["net/params/Dense_0/kernel"].shape == (3, 4)
    assert state.kind("net/params/Dense_0/kernel").metadata["box"].names == ("in", "out")

    def loss(x):
        return (net(x) ** 2).sum()

    def train(x):
        _, params, grads = br.grad(loss, net)(x)
        br.context().update(jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))

    after, _ = jax.jit(br.pure(train))(state, X)
    assert after.kinds == state.kinds
    assert isinstance(native("net", after)["params"]["Dense_0"]["kernel"], nn.Partitioned)
    assert not np.array_equal(after["net/params/Dense_0/kernel"], state["net/params/Dense_0/kernel"])


def test_boxes_are_given_to_the_module_as_native():
    seen = []

    class Looks(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.ones, ("in",))
            seen.append(self.param("w", init, (3,), unbox=False))
            return x

    state = below("net", Looks().init(KEY, X))
    seen.clear()
    br.pure(FlaxModule(Looks, name="net"))(state, X)
    assert all(isinstance(value, nn.Partitioned) and value.names == ("in",) for value in seen) and seen


# Random streams ------------------------------------------------------------------------------------------------------


def test_peers_dropout_draws_from_the_host():
    model = nn.Dropout(0.5, deterministic=False)
    x = jnp.ones((4, 50))

    class Net(br.Module):
        def __init__(self):
            self.one, self.two = FlaxModule(model), FlaxModule(model)

        def __call__(self, x):
            return self.one(x), self.two(x), self.one(x)

    net = Net()
    for seed in (0, {"dropout": 0}, {"default": 1}):
        _, (a, b, c) = br.pure(net)({}, x, seed=seed)
        assert not np.array_equal(a, b) and not np.array_equal(a, c)  # Two layers, and two calls of one.
        _, again = br.pure(Net())({}, x, seed=seed)  # A fresh model has the same keys as one that has learned.
        assert same(again, (a, b, c))
    with pytest.raises(
        br.SeedError, match=r"at 'net/one' draws from the random stream 'dropout', and no seed was given"
    ):
        br.pure(net)({}, x)
    with pytest.raises(br.SeedError, match=r"seed= gives only \['noise'\]"):
        br.pure(net)({}, x, seed={"noise": 0})


def test_dropout_of_the_whole_model_is_native():
    model, x = nn.Dropout(0.5, deterministic=False), jnp.ones((4, 50))
    net = FlaxModule(model)
    assert same(br.pure(net)({}, x, seed=KEY)[1], model.apply({}, x, rngs=KEY))
    assert same(br.pure(net)({}, x, seed={"dropout": KEY})[1], model.apply({}, x, rngs={"dropout": KEY}))


def test_a_learning_call_draws_what_a_learned_one_draws():
    """A call that draws nothing leaves the streams alone, whether or not this was known before it."""
    net = FlaxModule(nn.Dropout, 0.5, name="net")
    x = jnp.ones((4, 50))

    def both(x):
        return net(x, deterministic=True), net(x, deterministic=False)

    for seed in (KEY, {"params": KEY, "dropout": KEY}):
        first = br.pure(both)({}, x, seed=seed)[1]
        assert same(br.pure(both)({}, x, seed=seed)[1], first)
        net = FlaxModule(nn.Dropout, 0.5, name="net")
        _, alone = br.pure(net)({}, x, seed=seed, deterministic=False)
        assert alone.shape == x.shape


def test_streams_used_where_nothing_can_be_watched():
    """Under nn.jit a module runs once for all of its instances: a second wrapper sees nothing of what it draws."""

    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.5, deterministic=False)(x)

    jitted = nn.jit(Noisy)
    x = jnp.ones((4, 50))
    for seed in (KEY, {"dropout": KEY, "other": KEY}):
        outs = []
        for _ in range(2):
            net = FlaxModule(jitted, name="net")
            outs.append(br.pure(lambda x: (net(x), net(x), net(x)))({}, x, seed=seed)[1])  # noqa: B023
        a, b, c = outs[0]
        assert not np.array_equal(a, b) and not np.array_equal(a, c) and not np.array_equal(b, c)
        assert same(outs[0], outs[1])


def test_a_stream_that_is_only_asked_for():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            if not self.has_rng("noise"):
                return x
            return x + jax.random.normal(self.make_rng("noise"), x.shape)

    net = FlaxModule(Noisy)
    for _ in range(2):
        assert same(br.pure(net)({}, X)[1], X)
        assert same(br.pure(net)({}, X, seed={"noise": KEY})[1], Noisy().apply({}, X, rngs={"noise": KEY}))
        assert same(br.pure(net)({}, X, seed={"other": KEY})[1], X)


def test_peers_fresh_wrapper_over_loaded_state_needs_no_seed_and_initialises_nothing():
    ran = []

    def initialiser(key, shape, dtype=jnp.float32):
        def record(key):
            ran.append(True)
            return np.ones(shape, dtype)

        return jax.pure_callback(record, jax.ShapeDtypeStruct(shape, dtype), jax.random.key_data(key))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(4, kernel_init=initialiser)(x)
            return nn.BatchNorm(use_running_average=False, scale_init=initialiser)(x)

    state = below("net", variables_of(Net(), X))
    net = FlaxModule(Net, name="net")
    jaxpr = jax.make_jaxpr(br.pure(net))(state, X)
    names = set(eqns(jaxpr.jaxpr))
    assert "dot_general" in names
    assert not [name for name in names if "random" in name or "threefry" in name or "callback" in name]
    br.pure(FlaxModule(Net, name="net"))(state, X)
    assert not ran


# sow -----------------------------------------------------------------------------------------------------------------


def test_peers_sow_stable_tree():
    model, x = models.Sower(), inputs(2, 3)
    net = FlaxModule(model, name="net")
    traces = []

    def run(state):
        traces.append(True)
        return br.pure(net)(state, x)

    step = jax.jit(run)
    state = br.init(net)({}, x, seed=0)
    params = {"params": native("net", state)["params"]}
    want = model.apply(params, x, mutable=["intermediates", "losses"])[1]
    first = jax.tree.structure(state)
    for _ in range(3):
        state, _ = step(state)
        assert jax.tree.structure(state) == first
        assert same(
            unflatten({p.removeprefix("net/"): v for p, v in state.items()}, {**params, **want}), {**params, **want}
        )
    assert len(traces) == 1
    assert state.kind("net/intermediates/h/1") is br.Intermediate
    assert state.kind("net/losses/l2") == br.Intermediate(collection="losses")


def test_what_is_sown_may_be_popped():
    net = FlaxModule(models.Sower, name="net")
    whole = br.init(net)({}, X, seed=0)
    state = whole.copy()
    popped = state.pop(br.Intermediate)
    assert sorted(popped) == ["net/intermediates/h/0", "net/intermediates/h/1", "net/losses/l2"]
    again, _ = jax.jit(br.pure(net))(state, X)
    assert jax.tree.structure(again) == jax.tree.structure(whole)


def test_sown_entries_of_a_plain_dictionary_are_not_added_to():
    model = models.Sower()
    variables = variables_of(model, X)
    loaded = dict(below("net", {**variables, "losses": {"l2": jnp.float32(100.0)}}))
    after, _ = br.pure(FlaxModule(model, name="net"))(loaded, X)
    want = model.apply({"params": variables["params"]}, X, mutable=["losses"])[1]
    assert same(after["net/losses/l2"], want["losses"]["l2"])


def test_what_is_sown_follows_the_batch():
    net = FlaxModule(models.Sower, name="net")
    state = br.init(net)({}, inputs(1, 3), seed=0)
    after, _ = br.pure(net)(state, inputs(5, 3))
    assert after["net/intermediates/h/0"].shape == (5, 3)


# Methods -------------------------------------------------------------------------------------------------------------


def test_peers_methods_initialise_what_they_need():
    model, x = models.AutoEncoder(), inputs(2, 4)
    net = FlaxModule(model, name="net")
    state = br.init(net.encode)({}, x, seed=KEY)
    assert list(state) == ["net/params/encoder/bias", "net/params/encoder/kernel"]
    z = br.pure(net.encode)(state, x)[1]
    more = br.init(net.decode)(state, z, seed=jax.random.key(7))
    assert len(more) == 4 and same({p: more[p] for p in state}, dict(state))  # Never made anew.
    assert same(native("net", more), {"params": {
        "encoder": model.init(KEY, x)["params"]["encoder"],
        "decoder": model.init(jax.random.key(7), z, method="decode")["params"]["decoder"],
    }})  # fmt: skip
    _, out = br.pure(net)(more, x)
    assert same(out, model.apply(native("net", more), x))
    third = br.init(net)(more, x, seed=1)
    assert same(dict(third), dict(more))


def test_peers_methods_other_than_call():
    model, x = models.AutoEncoder(), inputs(2, 4)
    variables = variables_of(model, x)
    state = below("net", variables)
    net = FlaxModule(model, name="net")
    want = model.apply(variables, x, method="encode")
    for call in (
        net.encode,
        lambda x: net(x, method="encode"),
        lambda x: net(x, method=models.AutoEncoder.encode),
        lambda x: net(x, method=model.encode),
        lambda x: net(x, method=lambda module, x: module.encode(x)),
    ):
        assert same(br.pure(call)(state, x)[1], want)
    assert same(
        br.pure(lambda x: net(x, method="encoder"))(state, x)[1],
        model.apply(variables, x, method=lambda module, x: module.encoder(x)),
    )
    with pytest.raises(
        br.FieldError, match=r"AutoEncoder has no method 'encod'.*Its methods are __call__, decode, encode"
    ):
        net.encod(x)
    assert not hasattr(net, "encod") and hasattr(net, "encode")


def test_the_wrappers_own_names_win_and_method_reaches_the_layers():
    class Store(nn.Module):
        def get(self, x):
            return x + 1

        def put(self, x):
            return x + 2

        def __call__(self, x, method: int = 0):
            return x

    net = FlaxModule(Store)
    assert net.get.__func__ is br.Module.get
    assert same(br.pure(lambda x: net(x, method="get"))({}, X)[1], X + 1)
    assert same(br.pure(lambda x: net(x, method="put"))({}, X)[1], X + 2)


def test_arguments_called_like_those_of_apply():
    class Named(nn.Module):
        def __call__(self, x, *, rngs, variables, scope, self_=0):
            return x + rngs + variables + scope

    assert same(br.pure(FlaxModule(Named))({}, X, rngs=1, variables=2, scope=3)[1], X + 1.0 + 2.0 + 3.0)


# Strictness ----------------------------------------------------------------------------------------------------------


def broken(state, **changes):
    state = state.copy()
    for path, value in changes.pop("changes").items():
        if value is None:
            del state[path]
        else:
            state[path] = value
    return state


@pytest.fixture(scope="module")
def strict():
    variables = variables_of(models.ConvNet(), IMAGES)
    return below("net", variables)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        (
            {"net/params/Dense_0/kernel": None, "net/params/Conv_0/bias": None},
            br.MissingEntryError,
            r"(?s)ConvNet at 'net' needs:.*missing 'net/params/Conv_0/bias' \(float32\[4\]\)"
            r".*missing 'net/params/Dense_0/kernel' \(float32\[4,3\]\).*bridges.init",
        ),
        (
            {"net/batch_stats/BatchNorm_0/var": None},
            br.MissingEntryError,
            r"missing 'net/batch_stats/BatchNorm_0/var' \(float32\[4\]\)",
        ),
        (
            {"net/params/Dense_0/kernel": jnp.ones((3, 4))},
            br.EntryShapeError,
            r"'net/params/Dense_0/kernel': got float32\[3,4\], wanted float32\[4,3\]",
        ),
        (
            {"net/batch_stats/BatchNorm_0/mean": jnp.ones((1,))},
            br.EntryShapeError,
            r"'net/batch_stats/BatchNorm_0/mean': got float32\[1\], wanted float32\[4\]",
        ),
        (
            {"net/params/Dense_1/kernel": jnp.ones((4, 3))},
            br.StructureError,
            r"(?s)ConvNet has no use for these entries:.*'net/params/Dense_1/kernel'",
        ),
        (
            {"net/batch_stats/BatchNorm_0/median": jnp.ones((4,))},
            br.StructureError,
            r"'net/batch_stats/BatchNorm_0/median'",
        ),
    ],
)  # fmt: skip
def test_peers_missing_extra_or_misshapen_entry(strict, learned, changes, error, text):
    net = FlaxModule(models.ConvNet, name="net")
    if learned:
        jax.eval_shape(br.pure(net), strict, IMAGES)
        jax.eval_shape(lambda s: br.pure(net)(s, IMAGES, train=True, seed=0), strict)
    for kwargs in ({}, {"train": True, "seed": 0}):
        for _ in range(2):  # The second call must not take the first for a lesson.
            with pytest.raises(error, match=text):
                br.pure(net)(broken(strict, changes=changes), IMAGES, **kwargs)


@pytest.mark.parametrize("learned", [False, True])
def test_strict_without_other_collections(learned):
    variables = variables_of(nn.Dense(4), X)
    state = below("net", variables)
    net = FlaxModule(nn.Dense, 4, name="net")
    if learned:
        br.pure(net)(state, X)
    for _ in range(2):
        with pytest.raises(br.StructureError, match=r"Dense has no use for these entries:\n  - 'net/params/kernal'"):
            br.pure(net)(broken(state, changes={"net/params/kernal": X}), X)
        with pytest.raises(br.MissingEntryError, match=r"missing 'net/params/kernel'.*Did you mean 'params/kernal'"):
            br.pure(net)(broken(state, changes={"net/params/kernal": X, "net/params/kernel": None}), X)
        with pytest.raises(br.EntryShapeError, match=r"'net/params/kernel': got float32\[2,3\], wanted float32\[3,4\]"):
            br.pure(net)(broken(state, changes={"net/params/kernel": X}), X)
    with pytest.raises(br.MissingEntryError, match=r"missing 'net/params/bias'(?s:.*)missing 'net/params/kernel'"):
        br.pure(net)({}, X)


def test_init_does_not_make_up_what_is_there_under_another_name():
    state = broken(below("net", variables_of(nn.Dense(4), X)), changes={"net/params/kernel": None, "net/params/w": X})
    with pytest.raises(br.StructureError, match="'net/params/w'"):
        br.init(FlaxModule(nn.Dense, 4, name="net"))(state, X, seed=0)


def test_entries_that_another_call_uses_are_no_error():
    net, state = (
        FlaxModule(models.AuxiliaryHead, name="net"),
        below("net", variables_of(models.AuxiliaryHead(), X, train=True)),
    )
    assert len(br.pure(net)(state, X, train=True)[1]) == 2
    assert br.pure(net)(state, X)[1].shape == (2, 2)  # The auxiliary head is used with train=True only.
    with pytest.raises(br.StructureError, match="'net/params/third'"):
        br.pure(net)(broken(state, changes={"net/params/third": X}), X)
    several = FlaxModule(models.AutoEncoder, name="net")
    variables = variables_of(models.AutoEncoder(), inputs(2, 4))
    assert br.pure(several.encode)(below("net", variables), inputs(2, 4))[1].shape == (2, 2)


def test_entries_that_an_optional_argument_would_use_are_no_error():
    class Conditional(nn.Module):
        @nn.compact
        def __call__(self, x, label=None, mode="plain"):
            x = nn.Dense(4, name="main")(x)
            return x if label is None else x + nn.Dense(4, name="label")(label)

    state = below("net", variables_of(Conditional(), X, X))
    for net in (FlaxModule(Conditional, name="net"), FlaxModule(nn.Sequential([Conditional()]), name="net")):
        if isinstance(net._linen, nn.Sequential):
            state = br.State({p.replace("params/", "params/layers_0/"): v for p, v in state.items()})
        assert br.pure(net)(state, X)[1].shape == (2, 4)
        assert br.pure(net)(state, X, X)[1].shape == (2, 4)


def test_entries_unknown_to_flaxs_own_layers_are_an_error_whatever_the_arguments():
    for model, args in (
        (nn.BatchNorm(use_running_average=True), ()),
        (nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(3)]), ()),
        (nn.MultiHeadDotProductAttention(1), (X,)),
    ):
        state = below("net", variables_of(model, X, *args))
        assert br.pure(FlaxModule(model, name="net"))(state, X, *args)[1].shape == X.shape
        state["net/params/other/kernel"] = X
        with pytest.raises(br.StructureError, match=r"has no use for these entries:\n  - 'net/params/other/kernel'"):
            br.pure(FlaxModule(model, name="net"))(state, X, *args)


def test_flags_may_be_arrays_where_linen_takes_them():
    model = models.ConvNet()
    variables = variables_of(model, IMAGES)
    net = FlaxModule(model, name="net")
    for train in (jnp.bool_(True), np.bool_(True), jnp.bool_(False), np.bool_(False), jnp.bool_(True)):
        after, out = br.pure(net)(below("net", variables), IMAGES, train=train, seed=KEY)
        want, updated = model.apply(variables, IMAGES, train=train, rngs=KEY, mutable=["batch_stats"])
        assert same(out, want) and same(native("net", after), {**variables, **updated})


def test_a_method_that_cannot_be_initialised():
    class Steps(nn.Module):
        @nn.compact
        def __call__(self, x):
            return self.variable("memory", "last", jnp.zeros_like, x).value

        def step(self, x):
            self.put_variable("memory", "last", self.get_variable("memory", "last") + x)

    net = FlaxModule(Steps, name="net")
    state = br.init(net)({}, X)
    for create in (False, True):
        after, _ = br.pure(net.step)(state, X, create=create)
        assert same(after["net/memory/last"], X)
    with pytest.raises(TypeError):  # As in Linen: there is nothing to add to.
        br.pure(net.step)({}, X)


def test_one_wrapper_serves_states_of_several_sizes():
    net = FlaxModule(models.ConvNet, name="net")
    for channels in (3, 5, 3):
        x = inputs(2, 4, 4, channels)
        state = below("net", variables_of(models.ConvNet(), x))
        for batch in (2, 1):
            assert br.pure(net)(state, x[:batch])[1].shape == (batch, 3)


def test_entries_of_the_wrapper_itself_are_left_alone():
    net = FlaxModule(nn.Dense, 4, name="net")
    state = below("net", variables_of(nn.Dense(4), X))
    state["net/note"] = jnp.ones(2)
    assert br.pure(net)(state, X)[1].shape == (2, 4)


# In larger models ----------------------------------------------------------------------------------------------------


def test_peers_wrapper_in_a_wrapper_in_a_wrapper():
    class Inner(br.Module):
        def __init__(self):
            self.net = FlaxModule(models.ConvNet)

        def __call__(self, x, train):
            return self.net(x, train=train)

    class Middle(br.Module):
        def __init__(self):
            self.inner = Inner()

        def __call__(self, x, train):
            return self.inner(x, train)

    class Outer(br.Module):
        def __init__(self):
            self.middle = Middle()

        def __call__(self, x, train=False):
            return self.get("head", FlaxModule, nn.Dense, 2)(self.middle(x, train))

    outer = Outer()
    state = br.init(outer)({}, IMAGES, seed=0)
    assert "outer/middle/inner/net/batch_stats/BatchNorm_0/mean" in state
    after, out = jax.jit(lambda s: br.pure(outer)(s, IMAGES, train=True, seed=0))(state)
    assert out.shape == (2, 2) and jax.tree.structure(after) == jax.tree.structure(state)


def test_a_shared_wrapper_has_one_set_of_entries():
    class Net(br.Module):
        def __init__(self):
            self.dense = FlaxModule(nn.Dense, 3)

        def __call__(self, x):
            return self.dense(self.dense(x))

    net = Net()
    state = br.init(net)({}, X, seed=0)
    assert list(state) == ["net/dense/params/bias", "net/dense/params/kernel"]
    params = {"params": native("net/dense", state)["params"]}
    dense = nn.Dense(3)
    assert same(br.pure(net)(state, X)[1], dense.apply(params, dense.apply(params, X)))


def test_peers_two_threads_tracing_at_once():
    shared = FlaxModule(models.ConvNet, name="net")  # One wrapper for all threads.
    states = [below("net", variables_of(models.ConvNet(), inputs(2, 4, 4, c))) for c in (1, 2, 3, 4)]
    want = [br.pure(shared)(s, inputs(2, 4, 4, c + 1))[1] for c, s in enumerate(states)]
    wrong = []

    def work(c):
        for i in range(3):
            net = FlaxModule(models.ConvNet, name="net") if i else shared
            out = br.pure(net)(states[c], inputs(2, 4, 4, c + 1))[1]
            shapes = jax.eval_shape(lambda s: br.pure(shared)(s, inputs(2, 4, 4, c + 1), train=True, seed=0), states[c])
            if not same(out, want[c]) or shapes[1].shape != (2, 3):
                wrong.append(c)

    threads = [threading.Thread(target=work, args=(c,)) for c in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# More of what public models do ---------------------------------------------------------------------------------------


def test_perturbations_have_gradients_and_may_be_popped():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(self.perturb("hidden", nn.Dense(4)(x)))

    net = FlaxModule(Net, name="net")
    state = br.init(net)({}, X, seed=KEY)
    variables = Net().init(KEY, X)
    assert same(native("net", state), variables)

    def train(x):
        return br.grad(lambda x: (net(x) ** 2).sum(), ["net/perturbations/hidden"])(x)

    _, (_, _, grads) = br.pure(train)(state, X)
    want = jax.grad(lambda v: (Net().apply(v, X) ** 2).sum())(variables)["perturbations"]["hidden"]
    np.testing.assert_allclose(grads["net/perturbations/hidden"], want, rtol=1e-5, atol=1e-6)  # float32 rounding
    del state["net/perturbations/hidden"]
    for wrapper in (net, FlaxModule(Net, name="net")):
        assert same(br.pure(wrapper)(state, X)[1], Net().apply({"params": variables["params"]}, X))


def test_boxes_of_stacked_layers_have_the_axis_of_the_stack():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
            layers = nn.scan(
                lambda module, x: (module(x), None),
                variable_axes={"params": 1},
                split_rngs={"params": True},
                length=2,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            return layers(nn.Dense(3, kernel_init=init, name="layer"), x)[0]

    variables = variables_of(Net(), X)
    state = below("net", variables)
    assert state.kind("net/params/layer/kernel").metadata["box"].names == ("in", "layers", "out")
    _, out = br.pure(FlaxModule(Net, name="net"))(state, X)
    assert same(out, Net().apply(variables, X))


def test_statistics_over_a_named_axis():
    model = nn.BatchNorm(use_running_average=False, axis_name="devices")
    variables = variables_of(model, X)
    net = FlaxModule(model, name="net")
    batch = inputs(4, 2, 3)
    after, out = br.pure(lambda x: br.vmap(net, axis_name="devices")(x))(below("net", variables), batch)
    want, updated = jax.vmap(
        lambda x: model.apply(variables, x, mutable=["batch_stats"]), axis_name="devices", out_axes=(0, None)
    )(batch)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)  # float32 rounding
    np.testing.assert_allclose(after["net/batch_stats/mean"], updated["batch_stats"]["mean"], rtol=1e-6)


def test_recurrent_layers():
    for model in (nn.RNN(nn.LSTMCell(4)), nn.Bidirectional(nn.RNN(nn.GRUCell(4)), nn.RNN(nn.LSTMCell(4)))):
        x = inputs(2, 5, 3)
        variables = variables_of(model, x)
        _, out = br.pure(FlaxModule(model, name="net"))(below("net", variables), x)
        assert same(out, model.apply(variables, x))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_wrappers_are_copied(copied):
    net = FlaxModule(models.MLP, name="net")
    state = below("net", variables_of(models.MLP(), X))
    want = br.pure(net)(state, X)[1]
    assert same(br.pure(copied(net))(state, X)[1], want)


def test_what_is_learned_holds_no_arrays():
    net = FlaxModule(models.TupleCache, name="net")
    with jax.checking_leaks():
        state = br.init(net)({}, X, seed=0)
        jax.jit(br.pure(net))(state, X)
    (learned,) = net._memory.calls.values()
    assert jax.tree.leaves(learned.expected.parts)
    for tree in (learned.expected.entries, learned.expected.parts):
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(dict(tree)))


def test_what_is_learned_does_not_grow_without_end():
    class Scale(nn.Module):
        def __call__(self, x, by):
            return x * by

    net = FlaxModule(Scale)
    for i in range(520):
        br.pure(net)({}, np.float32(1), i)
    assert len(net._memory.calls) <= 514


def test_an_optimizer_steps_parameters_only():
    class Net(br.Module):
        def __init__(self):
            self.net = FlaxModule(models.ConvNet)
            self.opt = br.OptaxModule(optax.adam, 1e-2)

        def train(self, x):
            return self.opt(self.net, self.loss, x)

        def loss(self, x):
            return (self.net(x, train=True) ** 2).mean()

    net = Net()
    state = br.init(net.train)({}, IMAGES, seed=0)
    step = br.jit(net.train)
    losses = []
    for i in range(3):
        state, metrics = step(state, IMAGES, seed=i)
        losses.append(metrics["loss"])
    assert np.all(np.isfinite(losses))
    mean = state["net/net/batch_stats/BatchNorm_0/mean"]
    assert np.any(np.asarray(mean)) and not [path for path in state if "opt" in path and "batch_stats" in path]
