"""Parts of every framework as Haiku modules: where their entries are, their first values, and what calls do."""

from __future__ import annotations

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter
from bridges._haiku._places import path_of, place_of
from bridges.haiku_adapter import ToHaiku
from tests.haiku_side.models import same
from tests.haiku_side.to_haiku_models import (
    CORE,
    KEY,
    NET,
    NNX_NET,
    Coder,
    Core,
    Deep,
    Net,
    NNXNet,
    X,
    batch_net,
    first,
    linen,
    native_net,
    nnx_native,
    randomised,
)


# Places ---------------------------------------------------------------------------------------------------------------
def test_entries_are_below_the_name_of_the_module():
    params, state = NET.init(KEY, X)
    shapes = jax.tree.map(jnp.shape, (params, state))
    assert shapes == (
        {
            "net/Dense_0": {"kernel": (3, 6), "bias": (6,)},
            "net/BatchNorm_0": {"scale": (6,), "bias": (6,)},
            "net/Dense_1": {"kernel": (6, 2), "bias": (2,)},
        },
        {"net/batch_stats/BatchNorm_0": {"mean": (6,), "var": (6,)}},
    )
    params, state = CORE.init(KEY, X)
    assert set(haiku_adapter.flatten(params, state)) == {
        "params/net/enc/params/mlp/~/linear_0/w", "params/net/enc/params/mlp/~/linear_0/b",
        "params/net/enc/params/mlp/~/linear_1/w", "params/net/enc/params/mlp/~/linear_1/b",
        "params/net/head/params/kernel", "params/net/head/params/bias", "params/net/bias", "state/net/calls",
    }  # fmt: skip
    params, state = NNX_NET.init(KEY, X)
    assert set(params) == {"net/linear", "net/norm", "net/head"}  # No random key is kept.
    assert set(state) == {"net/batch_stats/norm"}
    with_haiku = hk.transform_with_state(lambda x: ToHaiku(batch_net, name="net")(x))
    assert set(haiku_adapter.flatten(*with_haiku.init(KEY, X))) == {
        p.replace("/", "/net/", 1) for p in haiku_adapter.flatten(*hk.transform_with_state(batch_net).init(KEY, X))
    }


def test_names():
    def several(x):
        ToHaiku(nn.Dense, 2)(x), ToHaiku(nn.Dense(2))(x), ToHaiku(functools.partial(nn.Dense, 2))(x)
        ToHaiku(lambda x: hk.Linear(2)(x))(x), ToHaiku(nnx.Linear, 3, 2)(x), ToHaiku(Core(name="mine"))(x)
        ToHaiku(batch_net)(x), ToHaiku(hk.transform_with_state(batch_net))(x), ToHaiku(hk.nets.MLP, [2])(x)
        with hk.name_scope("scope"):
            ToHaiku(nn.Dense, 2, name="given")(x)

    params, _ = hk.transform_with_state(several).init(KEY, X)
    tops = {"/".join(name.split("/")[: 2 if name.startswith("scope") else 1]) for name in params}
    assert tops == {
        "dense", "dense_1", "dense_2", "haiku", "linear", "mine", "batch_net", "batch_net_1", "mlp", "scope/given",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "param", "framework", "place"),
    [
        ("params/w", True, "flax.linen", ("params", "", "w")),
        ("params/~/a%2Fb/100%25/0", True, "flax.linen", ("params", "~/a%2Fb/100%25", "0")),
        ("stats/w", False, "flax.linen", ("state", "stats", "w")),
        ("params/n", False, "flax.nnx", ("state", "params", "n")),
        ("LoRA/a", True, "flax.nnx", ("params", "~LoRA", "a")),
        ("params/~LoRA/a", True, "flax.nnx", ("params", "~~LoRA", "a")),
        ("params/~", True, "flax.nnx", ("params", "", "~~")),
        ("state/bn/~/w", False, "haiku", ("state", "bn/~", "w")),
        ("params/w", True, None, ("params", "params", "w")),
        ("../other/w", True, None, ("params", "../other", "w")),
        ("w", False, None, ("state", "", "w")),
    ],
)
def test_no_two_entries_have_one_place(path, param, framework, place):
    assert place_of(path, param, framework) == place
    assert path_of(place, framework) == path


def test_collections_and_odd_names_stay_apart():
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x):
            for collection in ("stats", "other", "a/b", "params_axes"):
                self.variable(collection, "w", lambda: jnp.zeros(3)).value += x.mean(0)
            tree = self.param("tree", lambda key: {"~": jnp.ones(3), "x/y": {"0": jnp.ones(3)}})
            w = self.param("w", nn.initializers.ones, (3,))
            y = nn.Dense(3, name="~")(nn.Dense(3, name="state")(nn.Dense(3, name="params")(x)))
            return y * w + tree["~"] + tree["x/y"]["0"]

    f = linen(Odd())
    params, state = randomised(f.init(KEY, X))
    assert set(state) == {"net/stats", "net/other", "net/a%2Fb", "net/params_axes"}
    assert params["net/tree/x%2Fy"]["0"].shape == (3,)
    variables = {
        "params": {
            **{name: params[f"net/{name}"] for name in ("params", "state", "~")},
            "w": params["net"]["w"],
            "tree": {"~": params["net/tree"]["~"], "x/y": {"0": params["net/tree/x%2Fy"]["0"]}},
        },
        **{name: state[f"net/{name.replace('/', '%2F')}"] for name in ("stats", "other", "a/b", "params_axes")},
    }
    out, after = f.apply(params, state, None, X)
    module = Odd().bind(variables, mutable=["stats", "other", "a/b", "params_axes"])
    native, mutated = module(X), module.scope.mutable_variables()
    assert same(out, native)
    assert same(after, {f"net/{name.replace('/', '%2F')}": tree for name, tree in mutated.items()})


def test_a_trainable_variable_type_of_the_users_own():
    class LoRA(nnx.Param): ...

    class Adapted(nnx.Module):
        def __init__(self, rngs):
            self.w, self.a = nnx.Param(rngs.normal((3, 2))), LoRA(rngs.normal((3, 2)))

        def __call__(self, x):
            return x @ (self.w + self.a)

    f = hk.transform(lambda x: ToHaiku(Adapted)(x))
    params = f.init(KEY, X)
    assert jax.tree.map(jnp.shape, params) == {"adapted": {"w": (3, 2)}, "adapted/~LoRA": {"a": (3, 2)}}
    assert same(f.apply(params, None, X), X @ (params["adapted"]["w"] + params["adapted/~LoRA"]["a"]))


MOVES = """
[[rules]]
src = "params/{p:path}"
dst = "params/net/{p:path}"
[[rules]]
src = "batch_stats/{p:path}"
dst = "state/net/batch_stats/{p:path}"
"""


def test_a_plan_from_the_native_framework_and_back():
    variables = randomised(Net().init(KEY, X))
    source, wanted = linen_adapter.flatten(variables), haiku_adapter.flatten(*NET.init(KEY, X))
    plan = br.Mapping.loads(MOVES).plan(source, wanted)
    assert plan.verdict == "exact"
    params, state = haiku_adapter.unflatten(plan.forward(source))
    assert same(NET.apply(params, state, None, X)[0], Net().apply(variables, X))
    assert same(linen_adapter.unflatten(br.State(plan.inverse(haiku_adapter.flatten(params, state)))), variables)


# Initial values -------------------------------------------------------------------------------------------------------
def test_initial_values_are_the_native_ones_of_the_first_key():
    assert same(native_net(*NET.init(KEY, X)), Net().init(first(), X))
    flat = haiku_adapter.flatten(*NNX_NET.init(KEY, X))
    native = nnx_adapter.flatten(NNXNet(nnx.Rngs(first())))
    for path, value in flat.items():
        assert same(value, native[path.replace("state/net/", "").replace("net/", "", 1)])
    native = br.init(Core())({}, X, seed=first())
    for path, value in haiku_adapter.flatten(*CORE.init(KEY, X)).items():
        assert same(value, native[path.partition("/")[2].replace("net/", "core/", 1)])
    params, _ = hk.transform_with_state(lambda x: ToHaiku(batch_net)(x)).init(KEY, X)
    native, _ = hk.transform_with_state(batch_net).init(first(), X)
    assert same({name.partition("/")[2]: leaves for name, leaves in params.items()}, native)


def test_initial_values_under_jit_and_of_typed_keys():
    one, two = NET.init(KEY, X), jax.jit(NET.init)(KEY, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, two)
    typed = jax.random.key(0)
    assert same(native_net(*NET.init(typed, X)), Net().init(first(typed), X))
    assert same(
        nnx_adapter.flatten(NNXNet(nnx.Rngs(first(typed))))["params/linear/kernel"],
        NNX_NET.init(typed, X)[0]["net/linear"]["kernel"],
    )


def test_keys_go_on_from_those_that_a_part_has_taken():
    def f(x):
        return hk.Linear(2)(ToHaiku(Net())(x)), hk.next_rng_key()

    first, second = (lambda keys: (next(keys), next(keys)))(hk.PRNGSequence(KEY))
    params, state = hk.transform_with_state(f).init(KEY, X)
    assert same(params["net/Dense_0"]["kernel"], Net().init(first, X)["params"]["Dense_0"]["kernel"])
    native = hk.transform(lambda x: hk.Linear(2)(x)).init(KEY, jnp.ones((1, 2)))["linear"]["w"]
    assert not np.array_equal(params["linear"]["w"], native)  # It is drawn from the second key.
    assert same(hk.transform_with_state(f).apply(params, state, KEY, X)[0][1], first)  # Nothing was drawn before.
    trained = hk.transform_with_state(lambda x: (ToHaiku(Net())(x, train=True), hk.next_rng_key()))
    given = {name: leaves for name, leaves in params.items() if name != "linear"}
    assert same(trained.apply(given, state, KEY, X)[0][1], second)


# Calls ----------------------------------------------------------------------------------------------------------------
def test_what_a_linen_part_computes_and_modifies():
    params, state = randomised(NET.init(KEY, X))
    variables = native_net(params, state)
    assert same(NET.apply(params, state, None, X)[0], Net().apply(variables, X))
    for _ in range(3):
        out, state = NET.apply(params, state, KEY, X, train=True)
        native, mutated = Net().apply(variables, X, train=True, rngs={"dropout": first()}, mutable=["batch_stats"])
        variables = {**variables, **mutated}
        assert same(out, native)
        assert same(state["net/batch_stats/BatchNorm_0"], mutated["batch_stats"]["BatchNorm_0"])


def test_what_an_nnx_part_computes_and_modifies():
    params, state = randomised(NNX_NET.init(KEY, X))
    model = nnx_native(params, state)
    model.eval()
    assert same(NNX_NET.apply(params, state, None, X, is_training=False)[0], model(X))
    model.train()
    for _ in range(2):
        model.drop.rngs.key.set_value(jax.random.fold_in(jax.random.wrap_key_data(first()), 0))
        model.drop.rngs.count.set_value(jnp.zeros((), jnp.uint32))
        out, state = NNX_NET.apply(params, state, KEY, X, is_training=True)
        assert same(out, model(X))
        assert same(state["net/batch_stats/norm"]["mean"], model.norm.mean.get_value())


def test_dropout_of_an_nnx_part_draws_from_haiku():
    params, state = NNX_NET.init(KEY, X)
    one, two, again = (NNX_NET.apply(params, state, jax.random.PRNGKey(i), X)[0] for i in (1, 2, 1))
    assert not np.array_equal(one, two)
    assert same(one, again)
    with pytest.raises(br.SeedError, match=r"net/RngCount/drop") as err:
        NNX_NET.apply(params, state, None, X)
    assert "apply(params, key" in "".join(err.value.__notes__)
    stateless = hk.transform(lambda x, **given: ToHaiku(nnx.Dropout, 0.5)(x, **given))
    params = stateless.init(None, X, deterministic=True)
    assert params == {}
    assert same(stateless.apply(params, None, X, deterministic=True), X)
    assert not same(stateless.apply(params, KEY, X), X)


def test_an_nnx_instance_has_its_own_values_at_first():
    model = NNXNet(nnx.Rngs(5))
    f = hk.transform_with_state(lambda x: ToHaiku(model)(x, is_training=False))
    params, state = f.init(None, X)
    assert same(params["nnx_net/linear"]["kernel"], model.linear.kernel.get_value())
    model.eval()
    assert same(f.apply(params, state, None, X)[0], model(X))


def test_what_a_core_part_computes_and_modifies():
    params, state = randomised(CORE.init(KEY, X))
    flat = haiku_adapter.flatten(params, state)
    native = br.State({p.partition("/")[2].replace("net/", "core/", 1): v for p, v in flat.items()})
    for n in range(1, 3):
        native, wanted = br.pure(Core())(native, X)
        out, state = CORE.apply(params, state, None, X)
        assert same(out, wanted)
        assert state["net"]["calls"] == n


def test_flags_of_a_core_part():
    class Flagged(br.Module):
        def __call__(self, x):
            return x + br.flag("train", 7)

    f = hk.transform(lambda x, **given: ToHaiku(Flagged())(x, **given))
    assert [float(f.apply({}, None, 1.0, **given)) for given in ({}, {"is_training": True}, {"train": False})] == [
        8,
        2,
        1,
    ]

    class Taking(br.Module):
        def __call__(self, x, is_training):
            return x + is_training

    assert hk.transform(lambda x: ToHaiku(Taking())(x, is_training=True)).apply({}, None, 1.0) == 2


def test_a_deterministic_part_needs_no_key():
    f = hk.without_apply_rng(hk.transform(lambda x: ToHaiku(nn.Dense(2))(x)))
    params = f.init(KEY, X)
    assert same(f.apply(params, X), nn.Dense(2).apply({"params": params["dense"]}, X))
    for transformed in (NET, CORE):
        params, state = transformed.init(KEY, X)
        assert "random" not in str(jax.make_jaxpr(transformed.apply)(params, state, KEY, X))
    params, state = NNX_NET.init(KEY, X)
    eval_ = functools.partial(NNX_NET.apply, is_training=False)
    assert "random" not in str(jax.make_jaxpr(eval_)(params, state, KEY, X))
    with pytest.raises(br.SeedError) as err:
        NET.init(None, X)
    assert "init(key" in "".join(err.value.__notes__)
    params, state = NET.init(KEY, X)
    with pytest.raises(br.SeedError, match="dropout"):
        NET.apply(params, state, None, X, train=True)


def test_state_without_transform_with_state():
    f = hk.transform(lambda x: ToHaiku(Net())(x))
    with pytest.raises(ValueError, match="transform_with_state"):
        f.init(KEY, X)


def test_sown_values_are_state():
    class Sower(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(3)(x)
            self.sow("intermediates", "h", x)
            self.sow("losses", "l2", (x**2).sum(), reduce_fn=lambda a, b: a + b, init_fn=lambda: 0.0)
            return x

    f = linen(Sower())
    params, state = f.init(KEY, X)
    structure = jax.tree.structure(state)
    traces = []

    @jax.jit
    def step(state, x):
        traces.append(1)
        return f.apply(params, state, None, x)

    for n in range(1, 4):
        out, state = step(state, X * n)
        assert jax.tree.structure(state) == structure
        np.testing.assert_allclose(state["net/intermediates/h"]["0"], out, rtol=1e-6)
        np.testing.assert_allclose(state["net/losses"]["l2"], (out**2).sum(), rtol=1e-5)
    assert len(traces) == 1


def test_methods_and_submodules():
    def f(x):
        net = ToHaiku(Coder())
        return net.decode(net.encode(x)), net(x, method="encode"), net(x), ToHaiku(NNXNet).encode(x)

    params, _ = hk.transform_with_state(f).init(KEY, X)
    assert set(params) == {"coder/enc", "coder/dec", "nnx_net/linear", "nnx_net/norm", "nnx_net/head"}
    state = hk.transform_with_state(f).init(KEY, X)[1]
    (decoded, code, whole, _), _ = hk.transform_with_state(f).apply(params, state, None, X)
    assert same(decoded, whole)
    variables = {"params": {"enc": params["coder/enc"], "dec": params["coder/dec"]}}
    assert same(code, Coder().apply(variables, X, method="encode"))
    with pytest.raises(AttributeError, match=r"no method 'encod'.*encode"):
        hk.transform(lambda x: ToHaiku(Coder()).encod(x)).init(KEY, X)

    reached = hk.transform(
        lambda x: ToHaiku(functools.partial(Deep, size=3))(x) + ToHaiku(Deep(size=3), name="deep").layers[0](x)
    )
    assert reached.apply(randomised(reached.init(KEY, X)), None, X).shape == (4, 3)


@pytest.mark.parametrize("name", ["params_dict", "state_dict", "name", "module_name", "host", "part"])
def test_names_of_haikus_own_api_are_free_for_layers_and_methods(name):
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="Dense" if name == "name" else name)(x)

    def method(self, x):
        return self(x) + 1

    setattr(Named, "other" if name == "name" else name, method)
    f = linen(Named())
    params, state = f.init(KEY, X)
    g = hk.transform(lambda x: ToHaiku(Named(), name="net")(x, method="other" if name == "name" else name))
    np.testing.assert_array_equal(f.apply(params, state, None, X)[0] + 1, g.apply(params, None, X))


def test_one_instance_called_twice_and_two_instances():
    def f(x):
        net = ToHaiku(Core(), name="net")
        return net(jnp.pad(net(x), ((0, 0), (0, 1)))) + ToHaiku(Core(), name="net")(x)

    f = hk.transform_with_state(f)
    params, state = f.init(KEY, X)
    assert [name for name in params if name.count("/") == 0] == ["net", "net_1"]
    _, after = f.apply(params, state, None, X)
    assert (after["net"]["calls"], after["net_1"]["calls"]) == (2, 1)


def test_inside_other_haiku_modules():
    class Outer(hk.Module):
        def __init__(self):
            super().__init__()
            self.first = ToHaiku(nn.Dense, 4)

        def __call__(self, x):
            return ToHaiku(nn.Dense(2))(self.first(x))

        def other(self, x):
            return ToHaiku(nn.Dense(2))(x)

    def f(x):
        outer = Outer()
        return outer(x), outer.other(x), hk.Sequential([ToHaiku(nn.Dense(2), name="last"), jax.nn.relu])(x)

    params = hk.transform(f).init(KEY, X)
    assert set(params) == {"outer/~/dense", "outer/dense", "outer/~other/dense", "last"}
    hk.transform(f).apply(params, None, X)
    assert isinstance(hk.testing.transform_and_run(lambda: ToHaiku(nn.Dense(2)))(), hk.Module)


# Structures of public models -------------------------------------------------------------------------------------------


def test_decoding_caches():
    class Decoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.MultiHeadDotProductAttention(2, qkv_features=4, decode=True)(x)

    whole = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    f = linen(Decoder())
    params, state = f.init(KEY, whole)  # With the whole sequence, as Linen has it; calls take a token.
    native = Decoder().init(first(), whole)
    variables, cache = {"params": native["params"]}, native["cache"]
    assert same(
        params["net/MultiHeadDotProductAttention_0/out"], native["params"]["MultiHeadDotProductAttention_0"]["out"]
    )
    for i in range(3):
        out, state = f.apply(params, state, None, whole[:, i : i + 1])
        wanted, new = Decoder().apply({**variables, "cache": cache}, whole[:, i : i + 1], mutable=["cache"])
        cache = new["cache"]
        assert same(out, wanted)
        assert same(state["net/cache/MultiHeadDotProductAttention_0"], cache["MultiHeadDotProductAttention_0"])


def test_a_module_that_decides_by_what_is_mutable():
    class Deciding(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=not self.is_mutable_collection("batch_stats"))(x)

    f = linen(Deciding())
    params, state = randomised(f.init(KEY, X))
    variables = {
        "params": {"BatchNorm_0": params["net/BatchNorm_0"]},
        "batch_stats": {"BatchNorm_0": state["net/batch_stats/BatchNorm_0"]},
    }
    assert same(f.apply(params, state, None, X)[0], Deciding().apply(variables, X))
    out, after = f.apply(params, state, None, X, mutable=["batch_stats"])
    wanted, new = Deciding().apply(variables, X, mutable=["batch_stats"])
    assert same(out, wanted)
    assert same(after["net/batch_stats/BatchNorm_0"], new["batch_stats"]["BatchNorm_0"])


def test_axis_names_are_left_behind():
    f = linen(nn.Dense(2, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))))
    params, state = f.init(KEY, X)
    assert same(params["net"]["kernel"], nn.Dense(2).init(first(), X)["params"]["kernel"])
    assert same(f.apply(params, state, None, X)[0], nn.Dense(2).apply({"params": params["net"]}, X))


def test_words_for_training():
    f = hk.transform_with_state(lambda x, **given: ToHaiku(Net(), name="net")(x, **given))
    params, state = f.init(KEY, X, is_training=True)
    assert same(f.apply(params, state, KEY, X, is_training=True), NET.apply(params, state, KEY, X, train=True))
    assert same(f.apply(params, state, None, X, deterministic=True), NET.apply(params, state, None, X, train=False))
    with pytest.raises(TypeError, match="is_trainin"):
        f.apply(params, state, None, X, is_trainin=True)
