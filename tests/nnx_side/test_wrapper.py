"""NNXModule and FromNNX: NNX modules as parts of the host, against NNX itself."""

from __future__ import annotations

import copy
import functools
import pickle
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bridges as br
from bridges.nnx_adapter import FromNNX, NNXModule, flatten
from tests.nnx_side import models
from tests.nnx_side.models import equal, inputs, randomised, same

X, IMAGES = inputs(2, 4), inputs(2, 6, 6, 3)


def below(prefix, entries):
    """The entries of a native module as those of a wrapper."""
    state = entries if isinstance(entries, br.State) else flatten(entries)
    return br.State(
        {f"{prefix}/{p}": v for p, v in state.items()}, {f"{prefix}/{p}": k for p, k in state.kinds.items()}
    )


def close(a, b):
    """Equal up to the rounding of float32: the programs are the same, their fusion need not be."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5), a, b)


def random_primitives(fn, *args):
    """How many operations of a function make or use random keys."""
    text = str(jax.make_jaxpr(fn)(*args))
    return sum(text.count(name) for name in ("random_bits", "random_fold_in", "random_wrap", "random_seed", "threefry"))


# Making it -----------------------------------------------------------------------------------------------------------


def test_it_is_used_as_the_documents_show():
    class Net(br.Module):
        size: int = 10

        def __init__(self):
            self.enc = br.NNXModule(models.MLP)

        def __call__(self, x):
            return self.get("head", br.FromNNX(nnx.Linear), 3, self.size)(self.enc(x))

    net = Net()
    state = br.init(net)({}, X, seed=0)
    assert [p for p in state if "head" in p] == ["net/head/params/bias", "net/head/params/kernel"]
    assert "net/enc/params/layers/0/kernel" in state
    _, out = br.pure(net)(state, X)
    assert out.shape == (2, 10)


@pytest.mark.parametrize(
    "make",
    [
        lambda: NNXModule(models.MLP, (4, 3), name="mlp"),
        lambda: NNXModule(functools.partial(models.MLP, (4, 3)), name="mlp"),
        lambda: NNXModule(lambda rngs: models.MLP((4, 3), rngs=rngs), name="mlp"),
        lambda: NNXModule(lambda: models.MLP((4, 3), rngs=nnx.Rngs(0)), name="mlp"),
        lambda: NNXModule(models.MLP((4, 3), rngs=nnx.Rngs(0)), name="mlp"),
        lambda: NNXModule(models.MLP, (4, 3), rngs=nnx.Rngs(0), name="mlp"),
        lambda: FromNNX(models.MLP)((4, 3), name="mlp"),
        lambda: FromNNX(models.MLP((4, 3), rngs=nnx.Rngs(0)))(name="mlp"),
    ],
    ids=["class", "partial", "factory", "own_rngs", "instance", "given_rngs", "from_class", "from_instance"],
)
def test_class_factory_or_instance(make):
    module = models.MLP((4, 3), rngs=nnx.Rngs(0))
    state = br.init(make())({}, X, seed=0)
    assert same(state, below("mlp", module))
    assert equal(br.pure(make())(state, X)[1], module(X))


def test_names():
    assert NNXModule(models.AutoEncoder).name == "auto_encoder"
    assert NNXModule(nnx.Linear(1, 1, rngs=nnx.Rngs(0))).name == "linear"
    assert NNXModule(lambda: None).name == "nnx_module"
    assert FromNNX(nnx.Linear).__name__ == "FromNNX(Linear)"


@pytest.mark.parametrize("wrong", [3, "net", {"kernel": 1}], ids=str)
def test_what_is_no_nnx_module_is_refused(wrong):
    with pytest.raises(br.FieldError, match="a module class, an instance, or a function"):
        NNXModule(wrong)


def test_what_gives_no_nnx_module_is_refused():
    with pytest.raises(br.FieldError, match="<lambda> gave int"):
        br.init(NNXModule(lambda: 3))({}, X)


def test_arguments_with_an_instance_are_refused():
    with pytest.raises(br.FieldError, match=r"NNXModule\(Linear, …\)"):
        NNXModule(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), 3)


def test_instances_are_never_changed_nor_is_what_they_are_made_of():
    module = models.ConvNet(rngs=nnx.Rngs(0))
    before, net = flatten(module), NNXModule(module, name="net")
    state = br.init(net)({}, IMAGES)
    assert same(state, below("net", before))
    module.conv.kernel[...] += 1.0  # The wrapper has the values of when it was made.
    assert same(br.init(net)({}, IMAGES), below("net", before))
    inner, rngs = nnx.Linear(3, 3, rngs=nnx.Rngs(0)), nnx.Rngs(5)
    net = NNXModule(nnx.SpectralNorm, inner, rngs=rngs, name="net")
    kernel = inner.kernel.get_raw_value()
    one = br.init(net)({}, X[:, :3])
    assert same(one, br.init(net)({}, X[:, :3])) and rngs.default.count[...] == 0
    br.pure(net)(one, X[:, :3])
    assert inner.kernel.get_raw_value() is kernel


def test_numpy_entries_are_not_written_to():
    module = randomised(models.ConvNet(rngs=nnx.Rngs(0)))
    state = {p: v if "RngKey" in p else np.asarray(v) for p, v in below("net", module).items()}
    before = {p: np.copy(v) for p, v in state.items() if "RngKey" not in p}
    after, _ = br.pure(NNXModule(models.ConvNet, name="net"))(state, IMAGES)
    assert all(np.array_equal(state[p], before[p]) for p in before)
    assert not np.array_equal(after["net/batch_stats/norm/mean"], before["net/batch_stats/norm/mean"])


# Initial values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [models.MLP, models.ConvNet, models.Transformer, models.Odd], ids=lambda m: m.__name__
)
@pytest.mark.parametrize(
    "seed",
    [5, jax.random.key(6), {"params": 1, "default": 2, "dropout": 3}],
    ids=["integer", "key", "streams"],
)
def test_peers_init_gives_native_values_where_the_wrapper_is_the_model(model, seed):
    x = {"ConvNet": IMAGES, "Transformer": jnp.ones((1, 3), jnp.int32), "Odd": X[:, :2]}.get(model.__name__, X)
    native = flatten(model(rngs=nnx.Rngs(**seed) if isinstance(seed, dict) else nnx.Rngs(seed)))
    assert same(br.init(NNXModule(model, name="net"))({}, x, seed=seed), below("net", native))


def test_parts_of_a_model_have_values_of_their_own_and_the_same_every_time():
    class Net(br.Module):
        def __init__(self):
            self.one, self.two = NNXModule(nnx.Linear, 4, 4), NNXModule(nnx.Linear, 4, 4)

        def __call__(self, x):
            return self.two(self.one(x))

    state = br.init(Net())({}, X, seed=0)
    assert same(state, br.init(Net())({}, X, seed=0))
    assert not equal(state["net/one/params/kernel"], state["net/two/params/kernel"])


def test_what_draws_nothing_needs_no_seed():
    class Scale(nnx.Module):
        def __init__(self, size):
            self.scale = nnx.Param(jnp.ones(size))

        def __call__(self, x):
            return x * self.scale

    class Ignores(Scale):
        def __init__(self, size, *, rngs):
            super().__init__(size)

    for cls in (Scale, Ignores):
        assert list(br.init(NNXModule(cls, 4, name="net"))({}, X)) == ["net/params/scale"]
    assert br.pure(NNXModule(nnx.Dropout, 0.5, deterministic=True, rngs=None))({}, X)[1] is X
    with pytest.raises(br.SeedError, match=r"drawn at 'linear', and no seed was given"):
        br.init(NNXModule(nnx.Linear, 4, 4))({}, X)
    with pytest.raises(br.SeedError, match=r"(?s)'params'.*streams given are \['dropout'\]"):
        br.init(NNXModule(nnx.Linear, 4, 4))({}, X, seed={"dropout": 0})


def test_peers_fresh_wrapper_over_loaded_state_needs_no_seed_and_initialises_nothing():
    module = randomised(models.MLP(rngs=nnx.Rngs(0)))
    state = below("net", module)

    def forward(state, x):
        return br.pure(NNXModule(models.MLP, name="net"))(state, x)[1]

    assert random_primitives(forward, state, X) == 0
    assert equal(forward(state, X), module(X))
    assert equal(forward(dict(state), X), module(X))
    # Where creating is allowed, nothing that is there is made anew.
    after, out = br.pure(NNXModule(models.MLP, name="net"))(state, X, create=True)
    assert same(after, state) and equal(out, module(X))


def test_init_makes_only_what_is_missing():
    net = NNXModule(models.MLP, name="net")
    whole = br.init(net)({}, X, seed=0)
    bias = whole["net/params/layers/0/bias"] + 1
    part = br.State({"net/params/layers/0/bias": bias}, {"net/params/layers/0/bias": br.Param})
    assert same(br.init(net)(part, X, seed=0), br.State({**whole, **part}, whole.kinds))
    with pytest.raises(br.MissingEntryError, match="unexpected 'net/params/layers/0/bais'"):
        br.init(net)({"net/params/layers/0/bais": bias}, X, seed=0)


def test_a_seed_for_other_parts_does_not_matter_to_what_is_there():
    module = randomised(models.MLP(rngs=nnx.Rngs(0)))
    net = NNXModule(models.MLP, name="net")
    after, _ = br.pure(net)(below("net", module), X, seed={"dropout": 0}, create=True)
    assert same(after, below("net", module))


def test_streams_that_are_missing_beside_weights_that_are_there():
    net = NNXModule(models.ConvNet, name="net")
    streams = {"params": 0, "dropout": 1}
    whole = br.init(net)({}, IMAGES, seed=streams)
    weights = whole.filter(br.Not(br.RngState))
    assert same(br.init(NNXModule(models.ConvNet, name="net"))(weights, IMAGES, seed=streams), whole)


# State ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [True, False])
def test_peers_mutable_variables_are_written_back(fresh):
    native = randomised(models.ConvNet(rngs=nnx.Rngs(0)))
    state, net = below("net", native), NNXModule(models.ConvNet, name="net")
    for _ in range(3):
        state, out = br.pure(NNXModule(models.ConvNet, name="net") if fresh else net)(state, IMAGES)
        assert equal(out, native(IMAGES))
        assert same(state, below("net", native))


def test_kinds():
    state = br.init(NNXModule(models.ConvNet, name="net"))({}, IMAGES, seed=0)
    params, stats, rng = state.partition(br.Param, br.BatchStat, br.RngState)
    assert len(params) == 6 and len(stats) == 2 and len(rng) == 2
    loaded, _ = br.pure(NNXModule(models.ConvNet, name="net"))(dict(state), IMAGES)
    assert loaded.kinds == state.kinds


def test_variable_types_of_the_users_own_and_modules_that_are_plain_pytrees():
    native = models.Counter(4, 3, rngs=nnx.Rngs(0))
    net = NNXModule(models.Counter, 4, 3, name="net")
    state = br.init(net)({}, X, seed=0)
    assert state.kind("net/Count/count") == br.Variable(collection="Count")
    for step in range(3):
        assert state["net/Count/count"] == step
        state, out = br.pure(net)(state, X)
        assert equal(out, native(X))
    assert not state["net/Count/count"].weak_type


def test_every_odd_leaf_survives_a_call():
    native = randomised(models.Odd(rngs=nnx.Rngs(0, dropout=1)))
    state = below("net", native)
    for net in (NNXModule(models.Odd, name="net"), NNXModule(models.Odd(rngs=nnx.Rngs(0, dropout=1)), name="net")):
        after, out = br.pure(net)(state, X[:, :2])
        again = nnx.clone(native)
        assert equal(out, again(X[:, :2]))
        assert same(after, below("net", again))


def test_shared_layers_are_shared_through_gradients():
    native = randomised(models.Tied(rngs=nnx.Rngs(0)))
    net, x = NNXModule(models.Tied, name="net"), X[:, :2]
    state = below("net", native)
    assert len([p for p in state if "linear" in p]) == 2

    def loss(x):
        return br.grad(lambda x: (net(x) ** 2).mean(), net)(x)

    after, (value, _, grads) = br.pure(loss)(state, x)
    graph_loss = lambda module: (module(x) ** 2).mean()  # noqa: E731
    want, native_grads = nnx.value_and_grad(graph_loss, graph=True)(native)
    close(value, want)
    close(dict(grads), {f"net/{p}": v for p, v in flatten(native_grads).items()})
    close(dict(after.filter(br.BatchStat)), dict(below("net", native).filter(br.BatchStat)))


def test_peers_submodules_with_reserved_names():
    native = randomised(models.ReservedNames(rngs=nnx.Rngs(0)))
    state = below("net", native)
    net, x = NNXModule(models.ReservedNames, name="net"), X[:, :3]
    assert equal(br.pure(net)(state, x)[1], native(x))
    assert equal(br.pure(net, flags={"train": True})(state, x)[1], native(x))
    assert equal(br.pure(lambda x: net(x, method="train"))(state, x)[1], native.train(x))
    assert net.name == "net" and net.path == "net"
    assert equal(br.pure(lambda x: net(x, method="name"))(state, x)[1], getattr(native, "name")(x))  # noqa: B009


def test_peers_partition_metadata():
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("in", "out"))
    net = NNXModule(nnx.Linear, 4, 3, kernel_init=init, name="net")
    with nnx.use_eager_sharding(False):
        state = br.init(net)({}, X, seed=0)
        assert list(state) == ["net/params/bias", "net/params/kernel"]
        assert state.kind("net/params/kernel") == br.Param(out_sharding=("in", "out"))
        seen = []
        br.pure(lambda x: net(x, method=lambda m, x: seen.append(m.kernel.get_metadata("out_sharding"))))(state, X)
        assert seen == [("in", "out")]
        after, _ = br.pure(net)(state, X)
        assert after.kinds == state.kinds


def test_peers_bfloat16_state():
    native = randomised(nnx.BatchNorm(4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    after, out = br.pure(NNXModule(nnx.BatchNorm, 4, param_dtype=jnp.bfloat16, name="net"))(below("net", native), X)
    assert equal(out, native(X))
    assert {p: v.dtype for p, v in after.items()} == {p: v.dtype for p, v in below("net", native).items()}


# Random streams ------------------------------------------------------------------------------------------------------


def test_dropout_draws_from_the_state_and_counts():
    native = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    net = NNXModule(nnx.Dropout, 0.5, name="net")
    state = br.init(net)({}, X, seed=0)
    assert state.kind("net/RngKey/rngs/key") == br.RngState(collection="RngKey", tag="default")
    outs = []
    for step in range(3):
        assert state["net/RngCount/rngs/count"] == step
        state, out = br.pure(net)(state, X)
        assert equal(out, native(X))
        outs.append(out)
    assert not equal(outs[0], outs[1])


def test_dropout_layers_draw_differently_and_the_host_seed_has_no_part_in_it():
    class Net(br.Module):
        def __init__(self):
            self.one, self.two = NNXModule(nnx.Dropout, 0.5), NNXModule(nnx.Dropout, 0.5)

        def __call__(self, x):
            return self.one(x), self.two(x)

    state = br.init(Net())({}, inputs(8, 8), seed=0)
    _, (one, two) = br.pure(Net())(state, inputs(8, 8))
    assert not equal(one, two)
    assert same(br.pure(Net())(state, inputs(8, 8), seed=1)[1], (one, two))


@pytest.mark.parametrize("streams", [{"params": 0, "dropout": 1}, {"default": 0, "carry": 2}])
def test_a_fresh_wrapper_finds_the_streams_in_the_state(streams):
    class Keeps(nnx.Module):
        def __init__(self, *, rngs):
            self.dense, self.rngs = nnx.Linear(4, 4, rngs=rngs), rngs

        def __call__(self, x):
            return self.dense(x) + self.rngs.uniform(x.shape) if "default" in self.rngs else self.dense(x)

    native = Keeps(rngs=nnx.Rngs(**streams))
    state = below("net", native)
    want = native(X)
    for loaded in (state, dict(state)):
        after, out = br.pure(NNXModule(Keeps, name="net"))(loaded, X)
        assert equal(out, want) and same(after, below("net", native))


def test_peers_a_stream_that_the_call_takes():
    net = NNXModule(nnx.Dropout, 0.5, rngs=None, name="net")

    def forward(x):
        return net(x, rngs=nnx.Rngs(dropout=br.rng("dropout")))

    _, out = br.pure(forward)({}, X, seed={"dropout": 1})
    assert out.shape == X.shape
    with pytest.raises(br.SeedError):
        br.pure(forward)({}, X)


# Flags ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instance", [True, False])
def test_flags_do_what_train_and_eval_do(instance):
    native = randomised(models.ConvNet(rngs=nnx.Rngs(0)))
    net = NNXModule(native if instance else models.ConvNet, name="net")
    state = below("net", native)

    def check(flags, prepare):
        module = nnx.clone(native)
        prepare(module)
        after, out = br.pure(net, flags=flags)(state, IMAGES)
        assert equal(out, module(IMAGES)) and same(after, below("net", module))
        return out

    trained, evaluated = check({"train": True}, lambda m: m.train()), check({"train": False}, lambda m: m.eval())
    assert not equal(trained, evaluated)
    assert equal(check({}, lambda m: None), trained)  # As the constructor left it.
    check({"deterministic": True}, lambda m: m.set_attributes(deterministic=True))
    check({"use_running_average": True}, lambda m: m.set_attributes(use_running_average=True))
    check({"train": False, "deterministic": False}, lambda m: (m.eval(), m.set_attributes(deterministic=False)))


def test_flags_hold_for_a_part_of_the_program_and_an_instance_keeps_its_own():
    native = randomised(models.ConvNet(rngs=nnx.Rngs(0)))
    native.eval()
    net = NNXModule(native, name="net")

    def both(x):
        with br.flags(train=True):
            trained = net(x)
        return trained, net(x)

    after, (trained, evaluated) = br.pure(both)(below("net", native), IMAGES)
    module = nnx.clone(native)
    module.train()
    assert equal(trained, module(IMAGES))
    module.eval()
    assert equal(evaluated, module(IMAGES)) and same(after, below("net", module))


# Methods and submodules ----------------------------------------------------------------------------------------------


def test_peers_methods_other_than_call():
    native, net = randomised(models.AutoEncoder(rngs=nnx.Rngs(0))), NNXModule(models.AutoEncoder, name="net")
    state = below("net", native)
    want = native.encode(X)
    for fn in (
        net.encode,
        lambda x: net.encode(x),
        lambda x: net(x, method="encode"),
        lambda x: net(x, method=models.AutoEncoder.encode),
    ):
        assert equal(br.pure(fn)(state, X)[1], want)
    assert equal(br.pure(net.encoder)(state, X)[1], native.encoder(X))
    assert net.encoder.in_features == 4


def test_peers_init_by_one_method_then_call_another():
    net = NNXModule(models.AutoEncoder, name="net")
    state = br.init(net.encode)({}, X, seed=0)
    assert same(state, below("net", models.AutoEncoder(rngs=nnx.Rngs(0))))
    assert br.pure(net)(state, X)[1].shape == X.shape


def test_submodules_are_reached_by_attribute_and_index():
    native, net = randomised(models.Transformer(rngs=nnx.Rngs(0))), NNXModule(models.Transformer, name="net")
    state, x = below("net", native), inputs(1, 3, 8)
    for part, want in [
        (net.layers[1].up, native.layers[1].up(x)),
        (net.embed.attend, native.embed.attend(x)),
        (net.layers[0].attention.query, native.layers[0].attention.query(x)),
    ]:
        assert equal(br.pure(part)(state, x)[1], want)
    assert net.layers[0].up.out_features == 16
    assert repr(net.layers[0]) == "<layers.0 of NNXModule('net')>"


def test_what_is_not_there_is_an_error_that_lists_what_is():
    net = NNXModule(models.AutoEncoder, name="net")
    with pytest.raises(br.FieldError, match=r"no method 'encod'. Did you mean 'encode'.*submodules decoder, encoder"):
        net.encod  # noqa: B018
    with pytest.raises(br.FieldError, match=r"'encoder.kernel' of AutoEncoder is a Param"):
        net.encoder.kernel  # noqa: B018
    assert not hasattr(net, "_private") and not hasattr(net, "encod")


def test_a_module_that_cannot_be_called():
    class Holder(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(4))

    with pytest.raises(br.FieldError, match="Holder has no method '__call__'"):
        br.init(NNXModule(Holder))({}, X)


# What calls record and create ----------------------------------------------------------------------------------------


def test_peers_sow_stable_tree():
    net, x = NNXModule(models.Sower, name="net"), X[:, :3]
    state = br.init(net)({}, x, seed=0)
    structures, traces = [], []

    @jax.jit
    def step(state, x):
        traces.append(1)
        return br.pure(net)(state, x)

    for _ in range(4):
        state, _ = step(state, x)
        structures.append(jax.tree.structure(state))
    assert len(set(structures)) == 1 and len(traces) == 1
    names = [f"net/intermediates/{p}" for p in ("h/0", "h/1", "l2", "last")]
    assert list(state.filter(br.Intermediate)) == names
    y = br.pure(net)(state, x)[1]
    assert equal(state["net/intermediates/last"], y)


def test_what_is_sown_may_be_popped():
    net, x = NNXModule(models.Sower, name="net"), X[:, :3]
    state = br.init(net)({}, x, seed=0)
    recorded, kept = state.partition(br.Intermediate, ...)
    again, _ = br.pure(net)(kept, x)
    assert same(again, state)
    again, _ = br.pure(net)(dict(state), x)
    assert again.keys() == state.keys() and len(recorded) == 4


def test_what_is_sown_follows_the_batch():
    net = NNXModule(models.Sower, name="net")
    state = br.init(net)({}, X[:1, :3], seed=0)
    after, out = br.pure(net)(state, X[:, :3])
    assert equal(after["net/intermediates/last"], out) and out.shape == (2, 3)


def test_sowing_does_not_warn_nor_does_it_silence_others():
    import warnings

    class Warns(models.Sower):
        def __call__(self, x):
            warnings.warn("mine", DeprecationWarning, stacklevel=1)
            return super().__call__(x)

    net = NNXModule(Warns, name="net")
    with pytest.warns(DeprecationWarning, match="mine") as found:
        br.init(net)({}, X[:, :3], seed=0)
    assert {str(w.message) for w in found} == {"mine"}


def test_an_intermediate_that_the_constructor_makes():
    class Keeps(nnx.Module):
        def __init__(self):
            self.seen = nnx.Intermediate(jnp.zeros(4))

        def __call__(self, x):
            self.seen = nnx.Intermediate(x.sum(0) + (self.seen[...] if hasattr(self, "seen") else 100.0))
            return x

    net = NNXModule(Keeps, name="net")
    state = br.init(net)({}, X)
    one, _ = br.pure(net)(state, X)
    two, _ = br.pure(net)(one, X)
    close(one["net/intermediates/seen"], X.sum(0))
    close(two["net/intermediates/seen"], 2 * X.sum(0))
    three, _ = br.pure(net)({}, X)  # Popped: as after nnx.pop.
    close(three["net/intermediates/seen"], X.sum(0) + 100)


@pytest.mark.parametrize("fresh", [True, False])
def test_peers_cache_of_a_decoder(fresh):
    make = lambda: NNXModule(nnx.MultiHeadAttention, 2, 4, decode=True, name="net")  # noqa: E731
    net, sequence = make(), inputs(3, 5, 4)
    native = nnx.MultiHeadAttention(2, 4, decode=True, rngs=nnx.Rngs(0))
    native.init_cache(sequence.shape)

    def prepare():
        return net(sequence.shape, method="init_cache")

    state = br.init(prepare)({}, seed=0)
    assert [p for p in state if p.startswith("net/cache/")] == [
        f"net/cache/{name}" for name in ("cache_index", "cached_key", "cached_value")
    ]
    state = br.State({**state, **{p: v for p, v in below("net", native).items() if "params" in p}}, state.kinds)
    for t in range(5):
        token = sequence[:, t : t + 1]
        state, out = br.pure(make() if fresh else net)(state, token)
        assert equal(out, native(token))
    assert same(state, below("net", native))


@pytest.mark.parametrize("fresh", [True, False])
def test_variables_that_a_call_creates(fresh):
    class Lazy(nnx.Module):
        def __init__(self, *, rngs):
            self.dense = nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, x):
            if not hasattr(self.dense, "calls"):
                self.dense.calls = models.Count(jnp.zeros((), jnp.int32))
            self.dense.calls[...] += 1
            return self.dense(x)

    net = NNXModule(Lazy, name="net")
    state = br.init(net)({}, X, seed=0)
    assert state.kind("net/Count/dense/calls") == br.Variable(collection="Count")
    start = int(state["net/Count/dense/calls"])
    for _ in range(2):
        state, _ = br.pure(NNXModule(Lazy, name="net") if fresh else net)(state, X)
    assert state["net/Count/dense/calls"] == start + 2
    without = {p: v for p, v in state.items() if "calls" not in p}
    with pytest.raises(br.CreateError, match="net/Count/dense/calls"):
        br.pure(net)(without, X)


def test_perturbations_have_gradients():
    class Perturbed(nnx.Module):
        def __init__(self, *, rngs):
            self.dense = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.perturb("h", self.dense(x)) ** 2

    net = NNXModule(Perturbed, name="net")
    state = br.init(net)({}, X, seed=0)
    path = "net/perturbations/h"
    assert state.kind(path) == br.Variable(collection="perturbations")
    _, (_, _, grads) = br.pure(br.grad(lambda x: net(x).sum(), [path]))(state, X)
    native = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    close(grads[path], 2 * native(X))
    assert same(br.pure(NNXModule(Perturbed, name="net"))(state, X)[0], state)


def test_what_a_call_puts_into_a_list_is_seen():
    class Logs(nnx.Module):
        def __init__(self):
            self.log = nnx.data([])

        def __call__(self, x):
            self.log.append(nnx.Intermediate(x))
            return x

    after, _ = br.pure(NNXModule(Logs, name="net"))({}, X)
    assert list(after) == ["net/intermediates/log/0"] and equal(after["net/intermediates/log/0"], X)
    after, _ = br.pure(NNXModule(Logs, name="net"))(after, X)
    assert list(after) == ["net/intermediates/log/0"]


def test_a_metric():
    native, net = nnx.metrics.Average(), NNXModule(nnx.metrics.Average, name="net")
    state = br.init(net.compute)({})
    for values in (X, X + 1):
        native.update(values=values)
        state, _ = br.pure(net.update)(state, values=values)
        assert same(state, below("net", native))
    assert equal(br.pure(net.compute)(state)[1], native.compute())


def test_changes_that_a_state_cannot_hold_are_refused():
    net = NNXModule(models.ConvNet, name="net")
    state = br.init(net)({}, IMAGES, seed=0)
    with pytest.raises(
        br.UnsupportedError, match=r"(?s)ConvNet at 'net'.*drop.deterministic: False -> True.*flags\(train"
    ):
        br.pure(lambda: net.eval())(state)


# Strictness ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize(
    "changes, error, text",
    [
        ({"params/head/bias": None}, br.MissingEntryError, r"missing 'net/params/head/bias' \(float32\[3\]\)"),
        ({"batch_stats/norm/mean": None}, br.MissingEntryError, "missing 'net/batch_stats/norm/mean'"),
        ({"RngKey/drop/rngs/key": None}, br.MissingEntryError, "missing 'net/RngKey/drop/rngs/key'"),
        ({"params/head/bais": jnp.ones(3)}, br.StructureError, "unexpected 'net/params/head/bais'"),
        ({"cache/nowhere/index": jnp.ones(3)}, br.StructureError, "unexpected 'net/cache/nowhere/index'"),
        ({"params/head/bias": jnp.ones(4)}, br.EntryShapeError, r"bias': got float32\[4\], wanted float32\[3\]"),
        ({"batch_stats/norm/var": jnp.ones(())}, br.EntryShapeError, r"var': got float32\[\], wanted float32\[4\]"),
        ({"RngKey/drop/rngs/key": jnp.ones(())}, br.EntryShapeError, r"got float32\[\], wanted key<fry>\[\]"),
    ],
    ids=str,
)
def test_peers_missing_extra_or_misshapen_entry(learned, changes, error, text):
    net = NNXModule(models.ConvNet, name="net")
    state = br.init(net)({}, IMAGES, seed=0)
    if learned:
        br.pure(net)(state, IMAGES)
    else:
        net = NNXModule(models.ConvNet, name="net")
    bad = {**state, **{f"net/{p}": v for p, v in changes.items()}}
    bad = {p: v for p, v in bad.items() if v is not None}
    with pytest.raises(error, match=text):
        br.pure(net)(bad, IMAGES)


def test_an_empty_state_never_computes_with_random_weights():
    with pytest.raises(br.MissingEntryError, match=r"(?s)missing 'net/params/layers/0/bias'.*and 1 more|bias"):
        br.pure(NNXModule(models.MLP, name="net"))({}, X)
    with pytest.raises(br.MissingEntryError):
        br.pure(NNXModule(models.MLP, name="net"))({}, X, seed=0)


def test_a_method_beside_the_called_one_does_not_make_its_entries_strangers():
    net = NNXModule(models.AutoEncoder, name="net")
    state = br.init(net)({}, X, seed=0)
    assert br.pure(net.encode)(state, X)[1].shape == (2, 2)


# In other programs ---------------------------------------------------------------------------------------------------


def test_peers_wrapper_in_a_wrapper_in_a_wrapper():
    class Inner(br.Module):
        def __init__(self):
            self.part = NNXModule(models.ConvNet)

        def __call__(self, x):
            return self.part(x)

    class Middle(br.Module):
        def __init__(self):
            self.inner = Inner()

        def __call__(self, x):
            return self.inner(x)

    class Outer(br.Module):
        def __init__(self):
            self.middle = Middle()
            self.opt = br.OptaxModule(pytest.importorskip("optax").sgd, 0.1)

        def loss(self, x):
            return (self.middle(x) ** 2).mean()

        def train(self, x):
            return self.opt(self.middle, self.loss, x)

    outer = Outer()
    state = br.init(outer.train)({}, IMAGES, seed=0)
    native = models.ConvNet(rngs=nnx.Rngs(0))
    prefix = "outer/middle/inner/part/"
    nnx.update(
        native,
        br.nnx_adapter.unflatten({p[len(prefix) :]: v for p, v in state.items() if p.startswith(prefix)}, native),
    )
    train, losses, wanted = br.jit(outer.train), [], []
    optimizer = nnx.Optimizer(native, pytest.importorskip("optax").sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(native, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda native: (native(x) ** 2).mean())(native)
        optimizer.update(native, grads)
        return loss

    for _ in range(20):
        state, metrics = train(state, IMAGES)
        losses.append(float(metrics["loss"]))
        wanted.append(float(step(native, optimizer, IMAGES)))
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    assert losses[-1] < losses[0]
    assert state[prefix + "RngCount/drop/rngs/count"] == 20


def test_a_shared_wrapper_has_one_set_of_entries():
    shared = NNXModule(nnx.Linear, 4, 4, name="shared")
    state = br.init(lambda x: shared(shared(x)))({}, X, seed=0)
    assert list(state) == ["shared/params/bias", "shared/params/kernel"]


def test_peers_two_threads_tracing_at_once():
    net, x = NNXModule(models.Sower, name="net"), X[:, :3]
    state = br.init(net)({}, x, seed=0)
    want = br.pure(net)(state, x)
    fresh, found, barrier = NNXModule(models.Sower, name="net"), [], threading.Barrier(4)

    def work():
        barrier.wait()
        for _ in range(5):
            found.append(jax.jit(br.pure(fresh))(state, x))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    for after, out in found:
        close(out, want[1])
        close(dict(after), dict(want[0]))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_wrappers_are_copied(copied):
    for ctor in (models.MLP, models.MLP(rngs=nnx.Rngs(0))):
        net = NNXModule(ctor, name="net")
        state = br.init(net)({}, X, seed=0)
        assert equal(br.pure(copied(net))(state, X)[1], br.pure(net)(state, X)[1])


def test_one_wrapper_serves_states_with_and_without_optional_entries():
    net, x = NNXModule(models.Sower, name="net"), X[:, :3]
    state = br.init(net)({}, x, seed=0)
    kept = state.filter(br.Param)
    for _ in range(2):
        for given in (state, kept, dict(kept)):
            assert same(br.pure(net)(given, x)[1], br.pure(net)(state, x)[1])


def test_what_is_learned_holds_no_tracers_and_does_not_grow_without_end():
    net = NNXModule(models.ConvNet, name="net")
    state = br.init(net)({}, IMAGES, seed=0)
    for size in (1, 2, 3, 4):
        jax.jit(br.pure(net))(state, inputs(size, 6, 6, 3))
        with jax.checking_leaks():
            jax.jit(br.pure(NNXModule(models.ConvNet, name="net")))(state, inputs(size, 6, 6, 3))
    assert len(net._memory.templates) == 1 and len(net._memory.bases) == 1


def test_an_optimizer_steps_parameters_only():
    optax = pytest.importorskip("optax")
    net, opt = NNXModule(models.ConvNet, name="net"), br.OptaxModule(optax.adamw, 1e-2, name="opt")

    def train(x):
        return opt(net, lambda x: (net(x) ** 2).mean(), x)

    state = br.init(train)({}, IMAGES, seed=0)
    moments = [p for p in state if p.startswith("opt/") and "norm/mean" in p]
    assert not moments
    after, metrics = br.jit(train)(state, IMAGES)
    assert np.isfinite(metrics["loss"])
    assert equal(after["net/RngKey/drop/rngs/key"], state["net/RngKey/drop/rngs/key"])


def test_containers_of_modules_and_variables():
    class Held(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(2)])
            self.named = nnx.Dict(head=nnx.Linear(3, 3, rngs=rngs), scales=nnx.List([nnx.Param(jnp.full(3, 2.0))]))

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.named["head"](x) * self.named["scales"][0]

    net, native, x = NNXModule(Held), Held(nnx.Rngs(0)), inputs(2, 3)
    state = br.init(net)({}, x, seed=0)
    assert {p for p in state if "bias" not in p} == {
        "held/params/layers/0/kernel",
        "held/params/layers/1/kernel",
        "held/params/named/head/kernel",
        "held/params/named/scales/0",
    }
    for fn, want in ((net, native), (net.layers[1], native.layers[1]), (net.named["head"], native.named["head"])):
        np.testing.assert_array_equal(br.pure(fn)(state, x)[1], want(x))


def test_classes_that_FromNNX_made_are_pickled():
    net = FromNNX(nnx.Linear)(3, 2)
    state, x = br.init(net)({}, inputs(1, 3), seed=0), inputs(1, 3)
    other = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(br.pure(other)(state, x)[1], br.pure(net)(state, x)[1])
