"""Parts of every framework as NNX modules: each failure of `flax.nnx.bridge`, and what NNX does with its modules."""

from __future__ import annotations

import functools
import threading

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import bridges as br
from bridges import nnx_adapter
from bridges._nnx._kinds import kind_of, made, variable_type
from bridges._nnx._to_nnx import ToNNX
from tests import parts
from tests.hlo import compiled, opcodes
from tests.nnx_side.models import inputs, randomised, same
from tests.parts import Calls, X, batch_net, mlp
from tests.parts import LinenNet as Net


class Core(parts.Core):
    """With a method beside its call."""

    def encode(self, x):
        return self.enc(x)


def key_of(seed=0):
    """Returns the key whose native initial values are those of `ToNNX(part, rngs=nnx.Rngs(seed))`."""
    return nnx.Rngs(seed).fork()()


def values(model, *filters):
    """Returns the values of a model's Variables by path below `variables`."""
    state = nnx.state(model.variables, *filters) if filters else nnx.state(model.variables)
    return {
        "/".join(map(str, path)).replace("set_view%", "set_view"): leaf.get_value()
        for path, leaf in nnx.to_flat_state(state)
    }


def linen(variables):
    return dict(br.linen_adapter.flatten(variables))


# Initial values ------------------------------------------------------------------------------------------------------


def test_initial_values_are_the_native_ones():
    params, state = hk.transform_with_state(batch_net).init(key_of(), X)
    assert same(values(ToNNX(batch_net, rngs=nnx.Rngs(0)).lazy_init(X)), dict(br.haiku_adapter.flatten(params, state)))

    native = Net().init(key_of(), X)
    native = {name: tree for name, tree in native.items() if name != "intermediates"}
    model = ToNNX(Net(), rngs=nnx.Rngs(0)).lazy_init(X)
    nnx.pop(model, nnx.Intermediate)
    assert same(values(model), linen(native))

    native = nnx.Linear(3, 2, rngs=nnx.Rngs(key_of()))
    assert same(values(ToNNX(nnx.Linear, 3, 2, rngs=nnx.Rngs(0)).lazy_init(X)), dict(nnx_adapter.flatten(native)))

    assert same(values(ToNNX(Core(), rngs=nnx.Rngs(0)).lazy_init(X)), dict(br.init(Core())({}, X, seed=key_of())))


def test_initial_values_of_several_streams_are_the_native_ones():
    forked = nnx.Rngs(params=1, dropout=2).fork()
    native = Net().init({"params": forked.params(), "dropout": forked.dropout()}, X, train=True)
    model = ToNNX(Net(), rngs=nnx.Rngs(params=1, dropout=2)).lazy_init(X, train=True)
    assert same(values(model, nnx.Param), {p: v for p, v in linen(native).items() if p.startswith("params")})


def test_initial_values_are_those_of_flax_bridge():
    theirs = nnx.bridge.ToNNX(nn.Dense(4), rngs=nnx.Rngs(7)).lazy_init(X)
    ours = ToNNX(nn.Dense(4), rngs=nnx.Rngs(7)).lazy_init(X)
    assert same(ours.variables["params/kernel"].get_value(), theirs.kernel.get_value())


def test_an_integer_key_or_dictionary_of_streams():
    first = nnx.Rngs(3)()
    native = linen(nn.Dense(2).init(first, X))
    assert same(values(ToNNX(nn.Dense(2), rngs=3).lazy_init(X)), native)
    assert same(values(ToNNX(nn.Dense(2), rngs=jax.random.key(3)).lazy_init(X)), native)
    assert same(values(ToNNX(nn.Dense(2), rngs={"params": 3}).lazy_init(X)), native)


def test_two_parts_of_one_rngs_differ():
    rngs = nnx.Rngs(0)
    a, b = (ToNNX(nn.Dense(2), rngs=rngs).lazy_init(X) for _ in range(2))
    assert (a.variables["params/kernel"][...] != b.variables["params/kernel"][...]).all()


def test_shapes_are_enough_to_initialise():
    model = ToNNX(Net(), rngs=nnx.Rngs(0)).lazy_init(jax.ShapeDtypeStruct((4, 3), jnp.float32))
    assert same(values(model, nnx.Param), values(ToNNX(Net(), rngs=nnx.Rngs(0)).lazy_init(X), nnx.Param))


# Every failure of flax.nnx.bridge ------------------------------------------------------------------------------------


def test_haiku_module_whose_names_hold_a_tilde():
    model = randomised(ToNNX(mlp, rngs=nnx.Rngs(0)).lazy_init(X))
    params, _ = br.haiku_adapter.unflatten(br.State(values(model)))
    assert "mlp/~/linear_0" in params
    assert isinstance(model.variables["params"]["mlp"]["~"]["linear_0"]["w"], nnx.Param)
    assert same(model(X), hk.without_apply_rng(hk.transform(mlp)).apply(params, X))
    by_class = ToNNX(hk.nets.MLP, [5, 2], rngs=nnx.Rngs(0)).lazy_init(X)
    assert same(values(by_class), values(ToNNX(mlp, rngs=nnx.Rngs(0)).lazy_init(X)))


def test_haiku_state():
    model = randomised(ToNNX(batch_net, rngs=nnx.Rngs(0)).lazy_init(X))
    params, state = br.haiku_adapter.unflatten(br.State(values(model)))
    native = hk.transform_with_state(batch_net)
    for _ in range(3):
        out, state = native.apply(params, state, None, X)
        assert same(model(X), out)
    assert same(values(model), dict(br.haiku_adapter.flatten(params, state)))


def test_haiku_multi_transform():
    @hk.multi_transform
    def two():
        encoder, decoder = hk.Linear(4, name="encoder"), hk.Linear(3, name="decoder")

        def init(x):
            return decoder(encoder(x))

        return init, {"encode": encoder, "decode": decoder}

    model = ToNNX(two, rngs=nnx.Rngs(0)).lazy_init(X)
    params = two.init(key_of(), X)
    assert same(values(model), dict(br.haiku_adapter.flatten(params)))
    code = two.apply["encode"](params, None, X)
    assert same(model.encode(X), code)
    assert same(model(code, method="decode"), two.apply["decode"](params, None, code))


def test_haiku_methods():
    class Coder(hk.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.dec = hk.Linear(4), hk.Linear(3)

        def __call__(self, x):
            return self.dec(self.enc(x))

        def encode(self, x):
            return self.enc(x)

    model = ToNNX(Coder, rngs=nnx.Rngs(0)).lazy_init(X)
    assert model.encode(X).shape == (4, 4)
    np.testing.assert_allclose(model.encode(X), nnx.jit(lambda m, x: m.encode(x))(model, X), rtol=1e-6)
    with pytest.raises(AttributeError, match=r"no method 'encod'.*encode"):
        model.encod(X)


def test_haiku_transformed():
    native = hk.transform_with_state(batch_net)
    model = ToNNX(native, rngs=nnx.Rngs(0)).lazy_init(X)
    assert same(values(model), dict(br.haiku_adapter.flatten(*native.init(key_of(), X))))
    model = ToNNX(hk.without_apply_rng(hk.transform(mlp)), rngs=nnx.Rngs(0)).lazy_init(X)
    assert same(values(model), dict(br.haiku_adapter.flatten(hk.transform(mlp).init(key_of(), X))))


def test_deterministic_net_needs_no_stream():
    model = ToNNX(mlp, rngs=nnx.Rngs(0)).lazy_init(X)
    model.rngs = None
    assert model(X).shape == (4, 2)
    with pytest.raises(br.SeedError) as err:
        ToNNX(mlp).lazy_init(X)
    assert "rngs=nnx.Rngs(0)" in "".join(err.value.__notes__)


def test_mutated_collections_are_written_back():
    model = randomised(ToNNX(Net(), rngs=nnx.Rngs(0, dropout=1)).lazy_init(X))
    nnx.pop(model, nnx.Intermediate)
    variables = br.linen_adapter.unflatten(br.State(values(model)))
    key = jax.random.fold_in(model.rngs.dropout.key[...], model.rngs.dropout.count[...])
    out, new = Net().apply(variables, X, train=True, rngs={"dropout": key}, mutable=["batch_stats", "intermediates"])
    assert same(model(X, train=True), out)
    assert same(values(model, nnx.BatchStat), {p: v for p, v in linen(new).items() if "batch" in p})


def test_a_call_that_mutates_nothing_sets_nothing():
    model = ToNNX(Net(), rngs=nnx.Rngs(0)).lazy_init(X)
    before = values(model, nnx.BatchStat)
    model(X, train=False)
    assert all(before[p] is v for p, v in values(model, nnx.BatchStat).items())


def test_a_stream_advances_only_when_something_draws():
    model = ToNNX(Net(), rngs=nnx.Rngs(0, dropout=1)).lazy_init(X)
    counts = [(s.tag, int(s.count[...])) for _, s in model.rngs.items()]
    model(X)
    assert counts == [(s.tag, int(s.count[...])) for _, s in model.rngs.items()]
    one, two = model(X, train=True), model(X, train=True)
    assert not np.array_equal(one, two)
    assert (int(model.rngs.dropout.count[...]), int(model.rngs.default.count[...])) == (3, 1)
    assert "random" not in str(jax.make_jaxpr(lambda s: nnx.merge(nnx.graphdef(model), s)(X))(nnx.state(model)))


def test_streams_are_kept_where_a_call_may_draw():
    def dropping(x, is_training):
        return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x

    class Rated(nn.Module):
        @nn.compact
        def __call__(self, x, rate=0.0):
            return nn.Dropout(rate, deterministic=False)(nn.Dense(2)(x))

    class Silent(br.Module):
        def __call__(self, x):
            return self.get("dense", br.FromFlax(nn.Dense), 2)(x)

    class Flagged(br.Module):
        def __call__(self, x):
            return x + jax.random.normal(br.rng("noise")) if br.flag("train", False) else x

    class Holder(br.Module):
        def __init__(self):
            self.silent, self.core = Silent(), Core()

        def __call__(self, x):
            return self.silent(x) + self.core(x)

    for part in (nn.Dense(2), mlp, functools.partial(nnx.Linear, 3, 2), Silent(), functools.partial(Silent)):
        assert ToNNX(part, rngs=nnx.Rngs(0)).lazy_init(X).rngs is None
    for part in (Flagged(), Core(), Holder()):  # A core module with methods of its own may draw there.
        assert ToNNX(part, rngs=nnx.Rngs(0)).lazy_init(X).rngs is not None
    for part in (Net(), Coder(), nn.Embed(3, 4), Rated(), nn.Dropout(0.5)):
        x = jnp.zeros(2, jnp.int32) if isinstance(part, nn.Embed) else X
        given = {"deterministic": True} if isinstance(part, nn.Dropout) else {}
        assert ToNNX(part, rngs=nnx.Rngs(0)).lazy_init(x, **given).rngs is not None, part
    assert ToNNX(dropping, rngs=nnx.Rngs(0)).lazy_init(X, is_training=False).rngs is not None
    model = ToNNX(mlp, rngs=nnx.Rngs(0)).lazy_init(X)
    model.rngs = nnx.Rngs(3)
    assert model(X).shape == nnx.merge(*nnx.split(model))(X).shape


def test_a_graph_holds_nothing_but_what_a_module_holds():
    model = ToNNX(nn.Dense(2), rngs=nnx.Rngs(0)).lazy_init(X)
    graph, tree = nnx.jit(lambda m, x: m(x), graph=True), nnx.jit(lambda m, x: m(x), graph=False)
    nnx.jit(lambda m: m.variables["params/bias"].set_value(jnp.ones(2)))(model)
    assert same(graph(model, X), tree(model, X))
    assert jax.tree.structure(model) == jax.tree.structure(nnx.merge(*nnx.split(model)))
    assert jax.tree.structure(model) == jax.tree.structure(nnx.clone(model))
    made = nnx.jit(lambda: ToNNX(nn.Dense(2), rngs=nnx.Rngs(0)).lazy_init(X))()
    made.train()
    made.variables["params/bias"].set_value(jnp.ones(2))
    np.testing.assert_allclose(made(X), model(X), rtol=1e-6)


def test_attributes_of_the_users_own_are_data_where_they_say_so():
    model = ToNNX(nn.Dense(2), rngs=nnx.Rngs(0)).lazy_init(X)
    model.scale = nnx.Param(jnp.full((), 3.0))
    model.more = nnx.data([nnx.Param(jnp.ones(2))])
    model.note = "static"
    del model.note

    def double(model):
        model.scale[...] *= 2
        model.more[0][...] *= 2
        return model(X)

    plain = model(X)
    for graph in (True, False):
        np.testing.assert_allclose(nnx.jit(double, graph=graph)(model), plain, rtol=1e-6)
    assert model.scale[...] == 12
    assert (model.more[0][...] == 4).all()
    copy = nnx.merge(*nnx.split(model))
    assert jax.tree.structure(copy) == jax.tree.structure(model)
    assert nnx.graphdef(copy) == nnx.graphdef(model)
    model.note = "static"
    assert nnx.graphdef(copy) != nnx.graphdef(model)


def test_lazy_init_inside_of_a_transformation():
    class Outer(nnx.Module):
        def __init__(self, rngs):
            self.inner = ToNNX(nn.Dense(3), rngs=rngs)

        def __call__(self, x):
            split = nnx.split_rngs(splits=5)
            return split(nnx.vmap(lambda inner, x: inner(x), in_axes=(0, None), axis_size=5))(self.inner, x)

    model = nnx.bridge.lazy_init(Outer(nnx.Rngs(0)), X)
    kernel = model.inner.variables["params"]["kernel"]
    assert kernel.shape == (5, 3, 3)
    np.testing.assert_allclose(model(X), jnp.einsum("bi,nij->nbj", X, kernel[...]), rtol=1e-5)


def test_haiku_draws_from_the_streams():
    model = ToNNX(lambda x: hk.dropout(hk.next_rng_key(), 0.5, x), rngs=nnx.Rngs(0)).lazy_init(X)
    before = int(model.rngs.default.count[...])
    assert not np.array_equal(model(X), model(X))
    assert int(model.rngs.default.count[...]) == before + 2
    nnx.reseed(model, default=5)
    one = model(X)
    nnx.reseed(model, default=5)
    assert same(one, model(X))


def test_sow_keeps_one_structure_and_one_trace():
    model = ToNNX(Net(), rngs=nnx.Rngs(0)).lazy_init(X)
    traces = []

    @nnx.jit
    def step(model, x):
        traces.append(1)
        return model(x)

    before = nnx.graphdef(model)
    for _ in range(3):
        step(model, X)
    assert len(traces) == 1
    assert nnx.graphdef(model) == before
    normed = model.variables["intermediates"]["normed"]["0"]
    assert isinstance(normed, nnx.Intermediate)
    assert normed.shape == (4, 6)
    sown = nnx.pop(model, nnx.Intermediate)
    assert len(jax.tree.leaves(sown)) == 1
    model(X)
    assert "intermediates/normed/0" in model.variables


class Coder(nn.Module):
    def setup(self):
        self.enc, self.dec = nn.Dense(4), nn.Dense(3)

    def __call__(self, x):
        return self.dec(self.enc(x))

    def encode(self, x):
        return self.enc(x)

    def decode(self, z):
        return self.dec(z)


def test_initialised_by_one_method_and_called_by_another():
    model = ToNNX(Coder(), rngs=nnx.Rngs(0)).lazy_init(X, method="encode")
    assert set(values(model)) == {"params/enc/bias", "params/enc/kernel"}
    code = model.encode(X)
    with pytest.raises(br.MissingEntryError, match="params/dec/kernel"):
        model.decode(code)
    before = values(model)
    model.lazy_init(code, method="decode")
    assert all(values(model)[p] is v for p, v in before.items())
    assert same(model(X), model.decode(model(X, method="encode")))
    assert same(model(X), Coder().apply(br.linen_adapter.unflatten(br.State(values(model))), X))


def test_a_linen_class_with_arguments_and_an_instance():
    one, two = ToNNX(nn.Dense, 4, rngs=nnx.Rngs(0)).lazy_init(X), ToNNX(nn.Dense(4), rngs=nnx.Rngs(0)).lazy_init(X)
    assert same(values(one), values(two))
    assert same(
        values(ToNNX(functools.partial(nn.Dense, 4), rngs=0).lazy_init(X)),
        values(ToNNX(nn.Dense(4), rngs=0).lazy_init(X)),
    )
    with pytest.raises(br.FieldError, match="no class"):
        ToNNX(nn.Dense(4), 3)


def test_the_same_leaf_name_in_two_collections():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            stat = self.variable("stats", "w", lambda: jnp.zeros(3))
            if not self.is_initializing():
                stat.value += x.mean(0)
            return x * self.param("w", nn.initializers.ones, (3,)) + stat.value

    model = randomised(ToNNX(Two(), rngs=nnx.Rngs(0)).lazy_init(X))
    variables = br.linen_adapter.unflatten(br.State(values(model)))
    out, new = Two().apply(variables, X, mutable=["stats"])
    assert same(model(X), out)
    assert same(model.variables["stats"]["w"].get_value(), new["stats"]["w"])
    assert isinstance(model.variables["params"]["w"], nnx.Param)
    assert type(model.variables["stats"]["w"]) is nnx.variable_type_from_name("stats")


TAKEN = ["train", "eval", "sow", "rngs", "module", "perturb", "variables", "part", "host", "lazy_init", "items", "keys"]
TAKEN += ["deterministic", "use_running_average", "set_view", "set_attributes", "iter_modules", "get"]


@pytest.mark.parametrize("name", TAKEN)
def test_names_of_the_api_are_free_for_layers(name):
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name=name)(x)

    native = Named().init(key_of(), X)
    model = ToNNX(Named(), rngs=nnx.Rngs(0)).lazy_init(X)
    model.train()
    model.eval()
    model = nnx.merge(*nnx.split(model))
    assert same(values(model), linen(native))
    assert same(model(X), Named().apply(native, X))
    assert model.variables["params"][name]["kernel"].shape == (3, 2)

    def haiku(x):
        return hk.Linear(2, name=name)(x)

    assert ToNNX(haiku, rngs=nnx.Rngs(0)).lazy_init(X).variables["params"][name]["w"].shape == (3, 2)


@pytest.mark.parametrize("name", ["train", "lazy_init", "sow"])
def test_methods_that_nnx_has_too(name):
    layer = type(
        "Layer", (nn.Module,), {name: nn.compact(lambda self, x: nn.Dense(2)(x)), "__call__": lambda self, x: x}
    )
    model = ToNNX(layer(), rngs=nnx.Rngs(0)).lazy_init(X, method=name)
    assert model(X, method=name).shape == (4, 2)


def partitioned(features=4):
    return nn.Dense(features, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out")))


def test_partition_metadata_without_a_mesh():
    model = ToNNX(partitioned(), rngs=nnx.Rngs(0)).lazy_init(X)
    kernel = model.variables["params"]["kernel"]
    assert kernel.get_metadata("out_sharding") == ("in", "out")
    assert kernel.get_metadata("linen_meta_type") is nn.Partitioned
    assert set(values(model)) == {"params/bias", "params/kernel"}
    spec = nnx.get_partition_spec(nnx.state(model))["variables"]["params"]["kernel"]
    assert spec.get_value() == jax.sharding.PartitionSpec("in", "out")
    assert same(model(X), partitioned().apply(partitioned().init(key_of(), X), X))
    assert kind_of(kernel).metadata["box"].names == ("in", "out")


def test_partition_metadata_of_stacked_layers_has_the_axis():
    layers = {"transform_metadata": {nnx.PARTITION_NAME: "layers"}}

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=0, **layers)
    def create(rngs):
        return ToNNX(partitioned(3), rngs=rngs).lazy_init(X)

    model = create(nnx.Rngs(0))
    kernel = model.variables["params"]["kernel"]
    assert kernel.shape == (3, 3, 3)
    assert kernel.get_metadata("out_sharding") == ("layers", "in", "out")
    assert kind_of(kernel).metadata["box"].names == ("layers", "in", "out")
    seen = []

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry, **layers)
    def forward(x, layer):
        seen.append(layer.variables["params"]["kernel"].get_metadata("out_sharding"))
        return layer(x)

    x = X
    for i in range(3):
        x = x @ kernel[i]
    np.testing.assert_allclose(forward(X, model), x, rtol=1e-5)
    assert set(seen) == {("in", "out")}


def test_a_second_lazy_init_changes_nothing():
    model = randomised(ToNNX(Net(), rngs=nnx.Rngs(0)).lazy_init(X))
    before, counts = values(model), int(model.rngs.default.count[...])
    model.lazy_init(X)
    assert all(values(model)[p] is v for p, v in before.items())
    assert counts == int(model.rngs.default.count[...])


def test_a_second_lazy_init_makes_only_what_is_missing():
    model = randomised(ToNNX(batch_net, rngs=nnx.Rngs(0)).lazy_init(X))
    before = values(model)
    nnx.pop(model, lambda path, value: path[-1] == "w" and "linear_1" in path)
    model.rngs = nnx.Rngs(1)
    model.lazy_init(X)
    after = values(model)
    assert after.keys() == before.keys()
    assert [p for p in after if after[p] is not before[p]] == ["params/linear_1/w"]


PARTS = {
    "haiku": lambda: mlp,
    "linen": lambda: nn.Dense(2),
    "core": lambda: Core(),
    "nnx": lambda: functools.partial(nnx.Linear, 3, 2),
}


@pytest.mark.parametrize("part", PARTS)
def test_missing_entries_are_an_error_and_never_random(part):
    with pytest.raises((br.MissingEntryError, br.CreateError), match=r"(w|kernel)"):
        ToNNX(PARTS[part](), rngs=nnx.Rngs(0))(X)
    model = ToNNX(PARTS[part](), rngs=nnx.Rngs(0)).lazy_init(X)
    weights = [p for p in values(model) if p.endswith(("w", "kernel"))]
    nnx.pop(model, lambda path, value: path[-1] in ("w", "kernel"))
    with pytest.raises((br.MissingEntryError, br.CreateError), match=weights[0].replace("~", ".")):
        model(X)


@pytest.mark.parametrize("part", PARTS)
def test_extra_entries_are_an_error(part):
    model = ToNNX(PARTS[part](), rngs=nnx.Rngs(0)).lazy_init(X)
    above = min(values(model, nnx.Param)).rpartition("/")[0]
    model.variables[above].tree["extra"] = nnx.Param(jnp.ones(3))
    with pytest.raises(br.StructureError, match=f"{above}/extra"):
        model(X)


@pytest.mark.parametrize("part", PARTS)
def test_misshapen_entries_are_an_error(part):
    model = ToNNX(PARTS[part](), rngs=nnx.Rngs(0)).lazy_init(X)
    path = next(p for p in values(model) if p.endswith(("w", "kernel")))
    model.variables[path].set_value(jnp.ones((3, 7)))
    with pytest.raises(br.EntryShapeError, match=path.replace("~", ".")):
        model(X)


def test_three_deep():
    class Inner(nnx.Module):
        def __init__(self, rngs):
            self.layer = ToNNX(batch_net, rngs=rngs).lazy_init(X)

        def __call__(self, x):
            return self.layer(x)

    class Middle(br.Module):
        def __init__(self):
            self.inner = br.NNXModule(Inner)

        def __call__(self, x):
            return self.inner(x)

    model = ToNNX(Middle(), rngs=nnx.Rngs(0)).lazy_init(X)
    native = hk.transform_with_state(batch_net)
    paths = {p.partition("/variables/")[2]: v for p, v in values(model, nnx.Any(nnx.Param, nnx.Variable)).items()}
    paths = {p: v for p, v in paths.items() if p}
    params, state = br.haiku_adapter.unflatten(br.State(paths))
    for _ in range(2):
        out, state = native.apply(params, state, None, X)
        assert same(model(X), out)


def test_optimizer_leaves_statistics_alone():
    model = ToNNX(Net(), rngs=nnx.Rngs(0)).lazy_init(X)
    optimizer = nnx.Optimizer(model, optax.adamw(0.1), wrt=nnx.Param)
    stats = values(model, nnx.BatchStat)
    params = values(model, nnx.Param)
    optimizer.update(model, nnx.grad(lambda m: m(X).sum())(model))
    assert all(values(model)[p] is v for p, v in stats.items())
    assert not any(np.array_equal(values(model)[p], v) for p, v in params.items() if p.endswith("kernel"))


def test_two_threads():
    model = randomised(ToNNX(Net(), rngs=nnx.Rngs(0)).lazy_init(X))
    graphdef, state = nnx.split(model)
    want = nnx.merge(graphdef, state)(X)
    got, failed = {}, []

    def work(i):
        try:
            for _ in range(3):
                got[i] = jax.jit(lambda s: nnx.merge(graphdef, s)(X))(state)
        except Exception as err:
            failed.append(err)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for out in got.values():
        np.testing.assert_allclose(out, want, rtol=1e-6)


# Training or not -----------------------------------------------------------------------------------------------------


def test_train_and_eval_reach_the_layers_own_argument():
    seen = {}

    def haiku(x, is_training):
        seen["is_training"] = is_training
        return hk.Linear(2)(x)

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x, *, deterministic=None, use_running_average=None, train=None):
            seen.update(deterministic=deterministic, use_running_average=use_running_average, train=train)
            return nn.Dense(2)(x)

    a, b = ToNNX(haiku, rngs=nnx.Rngs(0)), ToNNX(Linen(), rngs=nnx.Rngs(1))
    both = nnx.List([a, b])
    both.train()
    a.lazy_init(X)
    b.lazy_init(X)
    a(X)
    b(X)
    assert seen == {"is_training": True, "deterministic": False, "use_running_average": False, "train": True}
    both.eval()
    a(X)
    b(X)
    assert seen == {"is_training": False, "deterministic": True, "use_running_average": True, "train": False}
    a(X, True)
    b(X, train=True)
    assert seen == {"is_training": True, "deterministic": True, "use_running_average": True, "train": True}
    viewed = nnx.view(both, deterministic=False, use_running_average=False)
    viewed[1](X)
    assert (seen["train"], b.deterministic) == (True, True)


def test_without_train_or_eval_nothing_is_passed():
    model = ToNNX(Net(), rngs=nnx.Rngs(0)).lazy_init(X)
    before = values(model, nnx.BatchStat)
    model(X)
    assert same(before, values(model, nnx.BatchStat))
    model.train()
    model(X)
    assert not same(before, values(model, nnx.BatchStat))


def test_a_field_that_is_set_is_not_passed_again():
    model = ToNNX(nn.BatchNorm(use_running_average=True), rngs=nnx.Rngs(0)).lazy_init(X)
    model.train()
    model(X)
    model = ToNNX(nn.BatchNorm(), rngs=nnx.Rngs(0))
    model.train()
    model.lazy_init(X)
    model.eval()
    assert same(
        model(X),
        nn.BatchNorm(use_running_average=True).apply(nn.BatchNorm(use_running_average=True).init(key_of(), X), X),
    )


def test_train_and_eval_of_core_and_nnx_parts():
    class Both(br.Module):
        def __call__(self, x):
            return x + br.flag("train", False)

    model = ToNNX(Both()).lazy_init(X)
    model.train()
    assert same(model(X), X + True)
    model = ToNNX(nnx.Dropout, 0.5, rngs=nnx.Rngs(0)).lazy_init(X)
    model.eval()
    assert same(model(X), X)
    model.train()
    assert not np.array_equal(model(X), X)


# What NNX does with its modules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_split_merge_state_update(part):
    model = randomised(ToNNX(PARTS[part](), rngs=nnx.Rngs(0)).lazy_init(X))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    assert same(nnx.merge(graphdef, params, rest)(X), model(X))
    nnx.update(model, jax.tree.map(jnp.zeros_like, params))
    assert not any(v.any() for v in values(model, nnx.Param).values())
    nnx.update(model, params)
    double = jax.tree.map(lambda v: v * 2 if jnp.issubdtype(v.dtype, jnp.floating) else v, model)
    assert same(values(double, nnx.Param), {p: v * 2 for p, v in values(model, nnx.Param).items()})
    nnx.display(model)
    assert type(model).__name__ in repr(model)
    assert same(nnx.clone(model)(X), model(X))


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("part", ["haiku", "linen"])
def test_trains_to_the_losses_of_the_native_model(part, graph):
    y = inputs(4, 2, seed=9)
    tx = optax.adam(1e-2)
    if part == "haiku":
        native = hk.transform_with_state(batch_net)
        params, state = native.init(key_of(), X)

        def apply(params, state):
            return native.apply(params, state, None, X, True)

        model = ToNNX(batch_net, rngs=nnx.Rngs(0)).lazy_init(X)
    else:
        net = Net()
        variables = net.init(key_of(), X)
        params, state = variables["params"], variables["batch_stats"]

        def apply(params, state):
            variables = {"params": params, "batch_stats": state}
            out, new = Net().apply(variables, X, mutable=["batch_stats"])
            return out, new["batch_stats"]

        model = ToNNX(net, rngs=nnx.Rngs(0)).lazy_init(X)

    @jax.jit
    def native_step(params, state, opt):
        def loss_fn(params):
            out, new = apply(params, state)
            return ((out - y) ** 2).mean(), new

        (loss, state2), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), state2, opt, loss

    opt, wanted = tx.init(params), []
    for _ in range(20):
        params, state, opt, loss = native_step(params, state, opt)
        wanted.append(float(loss))

    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit(graph=graph)
    def step(model, optimizer):
        graphdef, params, rest = nnx.split(model, nnx.Param, ..., graph=graph)

        def loss_fn(params, rest):
            return ((nnx.merge(graphdef, params, rest)(X) - y) ** 2).mean()

        loss, grads = nnx.value_and_grad(loss_fn, graph=graph)(params, rest)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(20)]
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    assert losses[-1] < losses[0]
    if part == "haiku":
        want = dict(br.haiku_adapter.flatten(params, state))
        assert values(model).keys() == want.keys()
        for path, value in values(model).items():
            np.testing.assert_allclose(value, want[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_plain_jax_transformations():
    model = randomised(ToNNX(batch_net, rngs=nnx.Rngs(0)).lazy_init(X))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def loss_fn(params, rest):
        model = nnx.merge(graphdef, params, rest)
        return (model(X) ** 2).sum(), nnx.state(model, nnx.Not(nnx.Param))

    grads, new = jax.grad(loss_fn, has_aux=True)(params, rest)
    nnx.update(model, new)
    native_params, native_state = br.haiku_adapter.unflatten(br.State(values(nnx.merge(graphdef, params, rest))))
    native = hk.transform_with_state(batch_net)
    want = jax.grad(lambda p: (native.apply(p, native_state, None, X)[0] ** 2).sum())(native_params)
    got = br.haiku_adapter.unflatten(br.State(values(nnx.merge(graphdef, grads, rest), nnx.Param)))[0]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, want)


def test_vmap_over_members_and_scan_over_layers():
    def layer(x):
        return jnp.tanh(hk.Linear(3)(hk.dropout(hk.next_rng_key(), 0.1, x)))

    @nnx.split_rngs(splits=4)
    @nnx.vmap(in_axes=0, out_axes=0)
    def create(rngs):
        return ToNNX(layer, rngs=rngs).lazy_init(X)

    model = create(nnx.Rngs(0))
    weights = model.variables["params"]["linear"]["w"]
    assert weights.shape == (4, 3, 3)
    assert len(np.unique(weights[:, 0, 0])) == 4

    outs = nnx.vmap(lambda model, x: model(x), in_axes=(0, None))(model, X)
    assert outs.shape == (4, 4, 3)
    assert (model.rngs.default.count[...] == 2).all()

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def forward(x, layer):
        return layer(x)

    one, two = forward(X, model), forward(X, model)
    assert one.shape == (4, 3)
    assert not np.array_equal(one, two)
    assert (model.rngs.default.count[...] == 4).all()


def test_remat():
    model = randomised(ToNNX(batch_net, rngs=nnx.Rngs(0)).lazy_init(X))
    graphdef, state = nnx.split(model)
    plain = nnx.grad(lambda m: (m(X) ** 2).sum())(nnx.merge(graphdef, state))
    saved = nnx.grad(lambda m: (nnx.remat(lambda m, x: m(x))(m, X) ** 2).sum())(nnx.merge(graphdef, state))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), plain, saved)


def test_nested_in_nnx_modules():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.LayerNorm(3, rngs=rngs)
            self.dense = ToNNX(nn.Dense(3), rngs=rngs)

        def __call__(self, x):
            return self.dense(self.norm(x))

    class Tower(nnx.Module):
        def __init__(self, rngs):
            self.blocks = nnx.List([Block(rngs) for _ in range(2)])
            self.head = ToNNX(mlp, rngs=rngs)

        def __call__(self, x):
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    model = nnx.bridge.lazy_init(Tower(nnx.Rngs(0)), X)
    params = nnx.state(model, nnx.Param)
    assert params["blocks"][0]["dense"]["variables"]["params"]["kernel"].shape == (3, 3)
    assert params["head"]["variables"]["params"]["mlp"]["~"]["linear_0"]["w"].shape == (3, 5)
    grads = nnx.jit(nnx.grad(lambda m: m(X).sum()))(model)
    assert jax.tree.structure(grads) == jax.tree.structure(params)


def test_shared_in_graph_mode():
    dense = ToNNX(nn.Dense(3), rngs=nnx.Rngs(0)).lazy_init(X)
    twice = nnx.List([dense, dense])

    @nnx.jit(graph=True)
    def forward(model, x):
        return model[1](model[0](x))

    assert len(jax.tree.leaves(nnx.state(twice, nnx.Param))) == 2
    np.testing.assert_allclose(forward(twice, X), dense(dense(X)), rtol=1e-6)


@pytest.mark.parametrize("options", [{"hijax": True}, {"hijax": True, "ref": True}], ids=["hijax", "ref"])
def test_hijax_variables(options):
    step = jax.jit(lambda model, x: model(x))
    try:
        with nnx.var_defaults(**options):
            jax.jit(lambda count: count.set_value(count.get_value() + 1))(nnx.BatchStat(jnp.zeros(())))
    except Exception as err:
        pytest.skip(f"this release of NNX has no such Variables: {err}")
    with nnx.var_defaults(**options):
        model = ToNNX(batch_net, rngs=nnx.Rngs(0)).lazy_init(X)
    plain = ToNNX(batch_net, rngs=nnx.Rngs(0)).lazy_init(X)
    for _ in range(2):
        step(model, X)
        plain(X)
    for path, value in values(model).items():
        np.testing.assert_allclose(value, values(plain)[path], rtol=1e-5, err_msg=path)


def test_eval_shape_and_strict_load_run_no_initialiser():
    ran = []

    def init(key, shape, dtype=jnp.float32):
        ran.append(isinstance(key, jax.core.Tracer))
        return jax.random.normal(key, shape, dtype)

    part = nn.Dense(2, kernel_init=init)
    abstract = nnx.eval_shape(lambda: ToNNX(part, rngs=nnx.Rngs(0)).lazy_init(X))
    assert all(isinstance(v, jax.ShapeDtypeStruct) for v in values(abstract).values())
    assert all(ran)
    count = len(ran)
    native = linen(part.init(jax.random.key(3), X))
    ran.clear()
    loaded = br.State({f"params/variables/{p}": jnp.asarray(v) for p, v in native.items()})
    graphdef, wanted, rest = nnx.split(abstract, nnx.Param, ...)
    model = nnx.merge(graphdef, nnx_adapter.unflatten(loaded, wanted), rest)
    assert same(model(X), part.apply(br.linen_adapter.unflatten(native), X))
    model.lazy_init(X)
    assert all(ran), count
    with pytest.raises(br.StructureError, match="missing 'params/variables/params/kernel'"):
        nnx_adapter.unflatten({p: v for p, v in loaded.items() if "bias" in p}, wanted)


@pytest.mark.parametrize("part", PARTS)
def test_orbax(part, tmp_path):
    import orbax.checkpoint as ocp

    model = randomised(ToNNX(PARTS[part](), rngs=nnx.Rngs(0)).lazy_init(X))
    want = model(X)
    state, keys = nnx.state(model, nnx.Not(nnx.RngState)), nnx.state(model, nnx.RngState)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.to_pure_dict(state))
        checkpointer.wait_until_finished()
        abstract = nnx.eval_shape(lambda: ToNNX(PARTS[part](), rngs=nnx.Rngs(0)).lazy_init(X))
        like = nnx.state(abstract, nnx.Not(nnx.RngState))
        restored = checkpointer.restore(tmp_path / "state", nnx.to_pure_dict(like))
    assert same(restored, nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(like, restored)
    if part != "core":  # The call counts itself.
        assert same(nnx.merge(nnx.graphdef(model), like, keys)(X), want)


def test_orbax_restores_an_nnx_state_strictly(tmp_path):
    import orbax.checkpoint as ocp

    model = randomised(ToNNX(batch_net, rngs=nnx.Rngs(0)).lazy_init(X))
    model(X)
    graphdef, like = nnx.split(nnx.eval_shape(lambda: ToNNX(batch_net, rngs=nnx.Rngs(1)).lazy_init(X)))
    other = nnx.state(nnx.eval_shape(lambda: ToNNX(mlp, rngs=nnx.Rngs(1)).lazy_init(X)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(model))
        checkpointer.wait_until_finished()
        restored = nnx.merge(graphdef, checkpointer.restore(tmp_path / "state", like))
        with pytest.raises(ValueError):
            checkpointer.restore(tmp_path / "state", other)
    assert same(values(restored), values(model))
    assert same(restored(X), model(X))


def test_equal_parts_have_one_structure():
    one, two = (ToNNX(nn.Dense(2), rngs=nnx.Rngs(i)).lazy_init(X) for i in range(2))
    mean = jax.tree.map(lambda a, b: a, one, two)
    assert same(values(mean), values(one))
    assert nnx.graphdef(one) == nnx.graphdef(two)
    assert nnx.graphdef(one) != nnx.graphdef(ToNNX(nn.Dense(2, use_bias=True, name="a"), rngs=nnx.Rngs(0)).lazy_init(X))


# Core parts, kinds and namespaces ------------------------------------------------------------------------------------


def test_core_part():
    model = ToNNX(Core(size=2), rngs=nnx.Rngs(0)).lazy_init(X)
    assert same(model.encode(X), model.enc(X))
    assert model.size == 2
    out = model(X)
    assert int(model.variables["core"]["calls"][...]) == 1
    state, want = br.pure(Core())(br.init(Core())({}, X, seed=key_of()), X)
    assert same(out, want)
    assert same(values(model), dict(state))
    assert type(model.variables["core/calls"]) is variable_type(Calls)
    assert kind_of(model.variables["core/calls"]) is Calls
    assert len(jax.tree.leaves(nnx.state(model, variable_type(Calls)))) == 1
    assert type(ToNNX(Core, size=3, rngs=0).part) is type(Core)


def test_core_part_that_was_filled_and_never_initialised():
    class Layer(br.Module):
        def __call__(self, x):
            return x @ self.get("w", lambda: jax.random.normal(br.rng("params"), (3, 2)), kind=br.Param)

    def filled(**entries):
        model = ToNNX(Layer())
        nnx.update(model, {"variables": {"layer": {name: nnx.Param(value) for name, value in entries.items()}}})
        return model

    w = jnp.ones((3, 2))
    assert same(filled(w=w)(X), X @ w)
    with pytest.raises(br.StructureError, match="unexpected 'layer/v'"):
        filled(w=w, v=w)(X)
    with pytest.raises(br.EntryShapeError, match=r"'layer/w': got float32\[2,3\], wanted float32\[3,2\]"):
        filled(w=w.T)(X)
    with pytest.raises(br.MissingEntryError, match="missing 'layer/w'"):
        ToNNX(Layer())(X)


def test_core_part_that_removes_entries():
    class Recording(br.Module):
        def __call__(self, x):
            self.put("seen", x.sum(), kind=br.Intermediate)
            return x * self.get("w", jnp.ones, (3,), kind=br.Param)

        def take(self):
            return self.pop(br.Intermediate)

    model = ToNNX(Recording()).lazy_init(X)
    for graph in (True, False):
        model(X)
        assert "recording/seen" in model.variables
        taken = nnx.clone(model).take()
        assert same(taken["recording/seen"], X.sum())
        if graph:
            nnx.jit(lambda model: model.take()["recording/seen"], graph=True)(model)
        else:
            model.take()
        assert set(model.variables["recording"]) == {"w"}


@pytest.mark.parametrize(
    "kind",
    [br.Param, br.BatchStat, br.Cache, br.Intermediate, br.RngState, br.Variable, Calls, br.Param(axes=("a", None))]
    + [
        br.Variable(collection="losses"),
        br.Intermediate(collection="sown_losses"),
        br.RngState(collection="RngKey", tag="x"),
    ],
)
def test_kinds_come_back(kind):
    assert kind_of(made(jnp.ones(2), kind)) == kind


def test_variable_types_of_nnx_parts():
    class Count(nnx.Variable): ...

    class Counting(nnx.Module):
        def __init__(self, rngs):
            self.count, self.linear = Count(jnp.zeros((), jnp.int32)), nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            self.count[...] += 1
            return self.linear(x)

    model = ToNNX(Counting, rngs=nnx.Rngs(0)).lazy_init(X)
    model(X)
    assert [int(v) for v in values(model, Count).values()] == [1]


def test_caches():
    class Decoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.MultiHeadDotProductAttention(num_heads=1, decode=True)(x, x)

    sequence = inputs(1, 5, 4)
    native = Decoder().init(key_of(), sequence)
    model = ToNNX(Decoder(), rngs=nnx.Rngs(0)).lazy_init(sequence)
    assert same(values(model, nnx.Cache), {p: v for p, v in linen(native).items() if p.startswith("cache")})
    step = nnx.jit(lambda model, x: model(x))
    for i in range(3):
        token = sequence[:, i : i + 1]
        out, new = Decoder().apply(native, token, mutable=["cache"])
        native = {**native, **new}
        np.testing.assert_allclose(step(model, token), out, rtol=1e-5, atol=1e-6)
    assert int(model.variables["cache/MultiHeadDotProductAttention_0/cache_index"][...]) == 3


def test_what_cannot_be_hosted():
    with pytest.raises(br.UnsupportedError, match=r"3 cannot be hosted\. Pass a Haiku function"):
        ToNNX(3)
    with pytest.raises(br.MissingEntryError, match=r"no Variable 'params/kernal'.*params/kernel"):
        ToNNX(nn.Dense(2), rngs=nnx.Rngs(0)).lazy_init(X).variables["params/kernal"]


# The compiled program ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["haiku", "linen"])
def test_the_training_step_is_native(part):
    """Opcode by opcode, as plain JAX around the framework's own `apply`."""
    module = {"haiku": batch_net, "linen": Net()}[part]
    model = randomised(ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(X))
    nnx.pop(model, nnx.Intermediate)
    model.rngs = nnx.data(None)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    entries = br.State(values(model))
    if part == "haiku":
        native = hk.transform_with_state(batch_net)
        weights, stats = br.haiku_adapter.unflatten(entries)

        def apply(weights, stats):
            return native.apply(weights, stats, None, X)
    else:
        variables = br.linen_adapter.unflatten(entries)
        weights, stats = variables["params"], {"batch_stats": variables["batch_stats"]}

        def apply(weights, stats):
            return module.apply({"params": weights, **stats}, X), stats

    def step(apply):
        def run(params, rest):
            def loss(params):
                out, new = apply(params, rest)
                return (out**2).mean(), new

            (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), new, value

        return run

    def ours(params, rest):
        model = nnx.merge(graphdef, params, rest, copy=True)
        out = model(X)
        nnx.pop(model, nnx.Intermediate)
        return out, nnx.state(model, nnx.Not(nnx.Param))

    one, two = compiled(step(ours), params, rest), compiled(step(apply), weights, stats)
    assert opcodes(one) == opcodes(two)
    assert same(one(params, rest)[2], two(weights, stats)[2])


class Decoder(nnx.Module):
    """Makes its cache when it is asked to, as decoders of NNX do."""

    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)

    def start(self, shape):
        self.attention.init_cache(shape)

    def __call__(self, x, decode=False):
        return self.attention(x, decode=decode)


def test_an_nnx_part_makes_variables_in_a_call():
    x = jax.random.normal(jax.random.key(1), (3, 2, 4))
    native = Decoder(nnx.Rngs(0))
    model = br.ToNNX(Decoder, rngs=nnx.Rngs(1)).lazy_init(x)
    nnx.update(model, {"variables": {"params": nnx.to_pure_dict(nnx.state(native, nnx.Param))}})
    model.start(x.shape)
    native.start(x.shape)
    for t in range(2):
        token = x[:, t : t + 1]
        np.testing.assert_array_equal(model(token, decode=True), native(token, decode=True))
    assert isinstance(model.variables["cache"]["attention"]["cached_key"], nnx.Cache)


def test_what_a_core_part_would_create_in_a_call_is_refused_with_the_way():
    class Counts(br.Module):
        def __call__(self, x):
            return x * self.get("scale", jnp.ones, ())

        def start(self):
            return self.get("calls", jnp.zeros, ())

    model = br.ToNNX(Counts()).lazy_init(jnp.ones(2))
    with pytest.raises(br.CreateError) as caught:
        model.start()
    assert "model.lazy_init(*args, method=" in "".join(caught.value.__notes__)
    assert model.lazy_init(method="start").start() == 0
