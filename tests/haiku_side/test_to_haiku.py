"""Parts of every framework as Haiku modules: where their entries are, what Haiku does with them, how strict they are."""

from __future__ import annotations

import functools
import pickle
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
from bridges import haiku_adapter, linen_adapter, nnx_adapter
from bridges._haiku._places import path_of, place_of
from bridges.haiku_adapter import ToHaiku
from tests.haiku_side.models import same
from tests.hlo import compiled, opcodes

X = jnp.asarray(np.random.default_rng(3).normal(size=(4, 3)), jnp.float32)
KEY = jax.random.PRNGKey(0)


def first(key=KEY):
    """Returns what the first `hk.next_rng_key()` gives, the key of which initial values are the native ones."""
    return next(hk.PRNGSequence(key))


def randomised(tree, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda v: jnp.asarray(rng.uniform(0.5, 1.5, v.shape), v.dtype)  # noqa: E731
    return jax.tree.map(lambda v: draw(v) if jnp.issubdtype(v.dtype, jnp.floating) else v, tree)


class Net(nn.Module):
    """BatchNorm, and dropout."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(6)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.norm = nnx.Linear(3, 6, rngs=rngs), nnx.BatchNorm(6, momentum=0.9, rngs=rngs)
        self.drop, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(self.norm(self.linear(x))))

    def encode(self, x):
        return self.linear(x)


class Coder(nn.Module):
    def setup(self):
        self.enc, self.dec = nn.Dense(4), nn.Dense(3)

    def __call__(self, x):
        return self.dec(self.enc(x))

    def encode(self, x):
        return self.enc(x)

    def decode(self, z):
        return self.dec(z)


class Calls(br.Variable): ...


class Core(br.Module):
    size: int = 2

    def __init__(self):
        self.enc = br.HaikuModule(hk.nets.MLP, [5, 4])

    def __call__(self, x):
        x = self.get("head", br.FromFlax(nn.Dense), self.size)(self.enc(x))
        calls = self.get("calls", jnp.zeros, (), jnp.int32, kind=Calls)
        self.put("calls", calls + 1)
        return x + self.get("bias", jnp.ones, (self.size,))


def linen(part, *args, **kwargs):
    """Returns a transformed function that calls a part of this name."""
    return hk.transform_with_state(lambda x, **given: ToHaiku(part, *args, name="net", **kwargs)(x, **given))


NET, NNX_NET, CORE = linen(Net()), linen(NNXNet), linen(Core())


def native_net(params, state):
    """Returns the Linen variables of `NET`."""
    flat = haiku_adapter.flatten(params, state)
    moved = {p.replace("state/net/", "").replace("params/net/", "params/"): v for p, v in flat.items()}
    return linen_adapter.unflatten(br.State(moved))


# Places --------------------------------------------------------------------------------------------------------------


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


def batch_net(x, is_training=True):
    return hk.BatchNorm(True, True, 0.9)(hk.Linear(6)(x), is_training)


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


# Initial values ------------------------------------------------------------------------------------------------------


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


# Calls ---------------------------------------------------------------------------------------------------------------


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


def nnx_native(params, state, seed=0):
    """Returns the NNX module with the values of `NNX_NET`."""
    model = NNXNet(nnx.Rngs(seed))
    entries = {"params/" + p.split("/", 2)[2]: v for p, v in haiku_adapter.flatten(params).items()}
    entries |= {p.split("/", 2)[2]: v for p, v in haiku_adapter.flatten({}, state).items()}
    nnx.update(model, nnx_adapter.unflatten(br.State({**nnx_adapter.flatten(model), **entries}), model))
    return model


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


class Deep(br.Module):
    size: int = 3

    def __init__(self):
        self.layers = [br.FlaxModule(nn.Dense, self.size) for _ in range(2)]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


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


# What Haiku does with its modules ------------------------------------------------------------------------------------


def test_vmap():
    def f(x, train):
        net = ToHaiku(Net(), name="net")
        return hk.vmap(lambda x: net(x, train=train), in_axes=0, split_rng=not hk.running_init() and train)(x)

    f = hk.transform_with_state(f)
    batch = jnp.stack([X, X])
    params, state = f.init(KEY, batch, False)
    assert params["net/Dense_0"]["kernel"].shape == (3, 6)
    out = f.apply(params, state, None, batch, False)[0]
    np.testing.assert_allclose(out[0], NET.apply(params, state, None, X)[0], rtol=1e-5)  # A product of other shapes.

    def dropped(x):
        net = ToHaiku(nn.Dropout(0.5, deterministic=False))
        return hk.vmap(net, split_rng=not hk.running_init())(x)

    dropped = hk.transform(dropped)
    one, two = dropped.apply(dropped.init(KEY, batch), KEY, batch)
    assert not np.array_equal(one, two)


def test_scan_and_loops():
    def f(x):
        net = ToHaiku(Counting(), name="net")
        x, _ = hk.scan(lambda x, _: (net(x), None), x, None, length=3)
        x = hk.fori_loop(0, 2, lambda _, x: net(x), x)
        x = net(x) if hk.running_init() else hk.while_loop(lambda x: x.sum() > 1e9, net, x)
        x = net(x) if hk.running_init() else hk.cond(x.sum() > -1e9, net, lambda x: x, x)
        return hk.switch(1, [lambda x: x, net], x) if not hk.running_init() else net(x)

    f = hk.transform_with_state(f)
    params, state = f.init(KEY, X)
    out, after = f.apply(params, state, KEY, X)
    assert after["net/stats"]["n"] == 7
    want = X
    for _ in range(7):
        want = nn.Dense(3).apply({"params": params["net/Dense_0"]}, want)
    np.testing.assert_allclose(out, want, rtol=1e-5)


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x):
        n = self.variable("stats", "n", lambda: jnp.zeros((), jnp.int32))
        if not self.is_initializing():
            n.value += 1
        return nn.Dense(3)(x)


def test_remat():
    def f(x, wrap):
        net = ToHaiku(Net(), name="net")
        return wrap(net)(x).sum()

    params, state = randomised(NET.init(KEY, X))
    f = hk.transform_with_state(f)
    losses = {
        name: jax.grad(lambda p, wrap=wrap: f.apply(p, state, None, X, wrap)[0])(params)
        for name, wrap in {"plain": lambda f: f, "remat": hk.remat}.items()
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), losses["plain"], losses["remat"])
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: f.apply(p, state, None, X, hk.remat)[0]))(params)
    assert "remat" in str(jaxpr) or "checkpoint" in str(jaxpr)
    assert set(f.init(KEY, X, hk.remat)[0]) == set(params)


def test_layer_stack():
    def f(x):
        return hk.layer_stack(3)(lambda x: jax.nn.relu(ToHaiku(nn.Dense(3), name="net")(x)))(x)

    f = hk.transform(f)
    params = f.init(KEY, X)
    (name,) = params
    assert params[name]["kernel"].shape == (3, 3, 3)
    assert len(np.unique(np.asarray(params[name]["kernel"]))) == 27
    want = X
    for i in range(3):
        want = nn.relu(nn.Dense(3).apply({"params": jax.tree.map(lambda v, i=i: v[i], params[name])}, want))
    np.testing.assert_allclose(f.apply(params, None, X), want, rtol=1e-5, atol=1e-6)


def test_lift_and_multi_transform():
    inner = hk.transform_with_state(lambda x: ToHaiku(Net(), name="net")(x))

    def lifted(x):
        init, updater = hk.lift_with_state(inner.init, name="lifted")
        params, state = init(hk.maybe_next_rng_key(), x)
        out, state = inner.apply(params, state, None, x)
        updater.update(state)
        return out

    lifted = hk.transform_with_state(lifted)
    params, state = lifted.init(KEY, X)
    assert set(params) == {"lifted/net/Dense_0", "lifted/net/Dense_1", "lifted/net/BatchNorm_0"}
    assert lifted.apply(params, state, None, X)[0].shape == (4, 2)

    @hk.multi_transform
    def two():
        net = ToHaiku(Coder())
        return net, {"encode": net.encode, "decode": net.decode}

    params = two.init(KEY, X)
    code = two.apply["encode"](params, None, X)
    assert same(
        two.apply["decode"](params, None, code),
        Coder().apply({"params": {"enc": params["coder/enc"], "dec": params["coder/dec"]}}, X),
    )


def test_eval_shape():
    def f(x):
        net = ToHaiku(Net(), name="net")
        shape = hk.eval_shape(net, x)
        assert shape.shape == (4, 2)
        return net(x)

    f = hk.transform_with_state(f)
    params, state = f.init(KEY, X)
    assert same((params, state), NET.init(jax.random.PRNGKey(0), X)) or set(params) == set(NET.init(KEY, X)[0])
    assert same(f.apply(params, state, None, X)[0], NET.apply(params, state, None, X)[0])
    shapes = jax.eval_shape(NET.init, KEY, jax.ShapeDtypeStruct((4, 3), jnp.float32))
    assert jax.tree.structure(shapes) == jax.tree.structure((params, state))


def test_reports():
    table = hk.experimental.tabulate(NET)(X)
    assert "net (ToHaiku)" in table
    assert "ToHaiku(part=Net()" in table
    assert "kernel: f32[3,6]" in table
    params, state = NET.init(KEY, X)
    info = hk.experimental.jaxpr_info.make_model_info(lambda x: NET.apply(params, state, None, x))(X)
    assert "net" in str(info)


def test_creators_getters_setters_and_interceptors():
    seen = []

    def zeros(next_creator, shape, dtype, init, context):
        seen.append(context.full_name)
        return next_creator(shape, dtype, jnp.zeros)

    def half(next_getter, value, context):
        return next_getter(value.astype(jnp.bfloat16))

    def negative(next_setter, value, context):
        return next_setter(-value)

    def f(x, train=False):
        with hk.custom_creator(zeros), hk.custom_getter(half), hk.custom_setter(negative):
            return ToHaiku(Net(), name="net")(x, train=train)

    f = hk.transform_with_state(f)
    params, state = f.init(KEY, X)
    assert sorted(seen) == sorted(f"{module}/{leaf}" for module, leaves in params.items() for leaf in leaves)
    assert all(not v.any() for v in jax.tree.leaves(params))
    params, state = randomised((params, state))
    halved = jax.tree.map(lambda v: v.astype(jnp.bfloat16), params)
    assert same(f.apply(params, state, None, X)[0], NET.apply(halved, state, None, X)[0])
    _, after = f.apply(params, state, KEY, X, train=True)
    _, plain = NET.apply(halved, state, KEY, X, train=True)
    assert same(after["net/batch_stats/BatchNorm_0"]["mean"], -plain["net/batch_stats/BatchNorm_0"]["mean"])


def test_values_that_are_not_stored():
    kernel = jnp.full((3, 2), 7.0)

    def creator(next_creator, shape, dtype, init, context):
        return hk.experimental.DO_NOT_STORE if context.name == "kernel" else next_creator(shape, dtype, init)

    def getter(next_getter, value, context):
        return next_getter(kernel if value is hk.experimental.DO_NOT_STORE else value)

    def f(x):
        with hk.custom_creator(creator), hk.custom_getter(getter):
            return ToHaiku(nn.Dense(2))(x)

    f = hk.transform(f)
    params = f.init(KEY, X)
    assert jax.tree.map(jnp.shape, params) == {"dense": {"bias": (2,)}}
    assert same(f.apply(params, None, X), X @ kernel)


def test_a_precision_policy():
    class Policed(ToHaiku): ...

    policy = hk.mixed_precision.get_policy(ToHaiku)
    assert policy is None
    jmp = pytest.importorskip("jmp")
    hk.mixed_precision.set_policy(Policed, jmp.get_policy("params=float32,compute=bfloat16,output=float32"))
    f = hk.transform(lambda x: Policed(nn.Dense(2), name="net")(x))
    params = f.init(KEY, X)
    out = f.apply(params, None, X)
    low = nn.Dense(2).apply(
        {"params": jax.tree.map(lambda v: v.astype(jnp.bfloat16), params["net"])}, X.astype(jnp.bfloat16)
    )
    assert out.dtype == jnp.float32
    assert same(out, low.astype(jnp.float32))


# Strictness ----------------------------------------------------------------------------------------------------------


def without(tree, module, leaf):
    return {m: {n: v for n, v in leaves.items() if (m, n) != (module, leaf)} for m, leaves in tree.items()}


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


# Programs ------------------------------------------------------------------------------------------------------------


def test_a_compiled_step_is_the_native_one():
    params, state = randomised(NET.init(KEY, X))
    variables = native_net(params, state)

    def wrapped(params, state, key, x):
        def loss(params):
            out, new = NET.apply(params, state, key, x, train=True)
            return (out**2).mean(), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return value, new, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    def native(params, state, key, x):
        def loss(params):
            out, new = Net().apply(
                {"params": params, **state}, x, train=True, rngs={"dropout": first(key)}, mutable=["batch_stats"]
            )
            return (out**2).mean(), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return value, new, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    theirs = compiled(native, variables["params"], {"batch_stats": variables["batch_stats"]}, KEY, X)
    ours = compiled(wrapped, params, state, KEY, X)
    assert opcodes(ours) == opcodes(theirs)
    loss, new, after = ours(params, state, KEY, X)
    native_loss, native_new, native_after = theirs(
        variables["params"], {"batch_stats": variables["batch_stats"]}, KEY, X
    )
    assert same(loss, native_loss)
    assert same(native_net(after, new), {"params": native_after, **native_new})


def test_an_nnx_step_is_the_native_one():
    params, state = randomised(NNX_NET.init(KEY, X))
    graphdef, native_params, rest = nnx.split(nnx_native(params, state), nnx.Param, ...)

    def wrapped(params, state, key, x):
        out, new = NNX_NET.apply(params, state, key, x)
        return (out**2).mean(), new

    def native(params, rest, key, x):
        model = nnx.merge(graphdef, params, rest, copy=True)
        model.drop.rngs.key.set_value(jax.random.fold_in(jax.random.wrap_key_data(first(key)), 0))
        model.drop.rngs.count.set_value(jnp.zeros((), jnp.uint32))
        out = model(x)
        return (out**2).mean(), nnx.state(model, nnx.BatchStat)

    step = lambda fn: jax.value_and_grad(fn, has_aux=True)  # noqa: E731
    theirs, ours = compiled(step(native), native_params, rest, KEY, X), compiled(step(wrapped), params, state, KEY, X)
    assert opcodes(ours) == opcodes(theirs)
    (loss, new), _ = ours(params, state, KEY, X)
    (native_loss, native_new), _ = theirs(native_params, rest, KEY, X)
    assert same(loss, native_loss)
    assert same(new["net/batch_stats/norm"]["mean"], native_new.norm.mean.get_value())


def test_training_with_optax_traces_once():
    optimizer, traces = optax.adam(1e-2), []

    @jax.jit
    def step(params, state, opt, key, x):
        traces.append(1)

        def loss(params):
            out, new = NET.apply(params, state, key, x, train=True)
            return (out**2).mean(), new

        (value, state_), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt = optimizer.update(grads, opt)
        return value, optax.apply_updates(params, updates), state_, opt

    params, state = NET.init(KEY, X)
    opt = optimizer.init(params)
    losses = []
    for i in range(10):
        value, params, state, opt = step(params, state, opt, jax.random.PRNGKey(i), X)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    assert len(traces) == 1


def test_threads_trace_at_once():
    params, state = randomised(NET.init(KEY, X))
    want, found = jax.jit(NET.apply)(params, state, None, X)[0], []

    def work():
        found.append(jax.jit(NET.apply)(params, state, None, X)[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(same(out, want) for out in found)


def test_files_of_haiku(tmp_path):
    import converters

    params, state = randomised(NET.init(KEY, X))
    path = tmp_path / "old.pkl"
    path.write_bytes(pickle.dumps((jax.tree.map(np.asarray, params), jax.tree.map(np.asarray, state))))
    loaded = converters.load(path)
    assert same(NET.apply(*loaded, None, X)[0], NET.apply(params, state, None, X)[0])
