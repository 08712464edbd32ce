"""`ToLinen` inside of other Linen modules: names, sharing, and every lifted transformation, against native layers."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import bridges as br
from bridges.linen_adapter import ToLinen
from tests.linen.models import inputs, same
from tests.linen.to_linen_models import KEY, X, close, flat, initial

OTHER = jax.random.key(3)
SQUARE = inputs(4, 3)


def haiku_layer(x):
    return jnp.tanh(hk.Linear(3, name="dense")(x))


class NNXLayer(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.dense(x))


class CoreLayer(br.Module):
    def __call__(self, x):
        return jnp.tanh(self.get("dense", br.FromFlax(nn.Dense), 3)(x))


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.Dense(3, name="dense")(x))


LAYERS = {
    "haiku": (haiku_layer, lambda p: {"kernel": p["dense"]["w"], "bias": p["dense"]["b"]}),
    "nnx": (NNXLayer, lambda p: p["dense"]),
    "core": (CoreLayer, lambda p: p["core_layer"]["dense"]["params"]),
}
parts = pytest.mark.parametrize("name", LAYERS)


def linen_params(name, params):
    return {"dense": LAYERS[name][1](params)}


# Where it stands -----------------------------------------------------------------------------------------------------


class InSetup(nn.Module):
    part: object

    def setup(self):
        self.first = ToLinen(self.part)
        self.rest = [ToLinen(self.part), ToLinen(self.part)]

    def __call__(self, x):
        for layer in (self.first, *self.rest, self.first):
            x = layer(x)
        return x


class InCompact(nn.Module):
    part: object

    @nn.compact
    def __call__(self, x):
        first = ToLinen(self.part)
        return first(ToLinen(self.part, name="named")(ToLinen(self.part)(first(x))))


@parts
def test_in_setup_and_compact(name):
    part = LAYERS[name][0]
    variables = initial(InSetup(part), X)
    assert sorted(variables["params"]) == ["first", "rest_0", "rest_1"]
    want = X
    for layer in ("first", "rest_0", "rest_1", "first"):
        want = LinenLayer().apply({"params": linen_params(name, variables["params"][layer])}, want)
    assert same(InSetup(part).apply(variables, X), want)

    variables = initial(InCompact(part), X)
    assert sorted(variables["params"]) == ["ToLinen_0", "ToLinen_1", "named"]
    want = X
    for layer in ("ToLinen_0", "ToLinen_1", "named", "ToLinen_0"):
        want = LinenLayer().apply({"params": linen_params(name, variables["params"][layer])}, want)
    assert same(InCompact(part).apply(variables, X), want)


@parts
def test_as_a_field_and_in_sequential(name):
    class Outer(nn.Module):
        inner: nn.Module

        def __call__(self, x):
            return self.inner(x)

    part = LAYERS[name][0]
    variables = initial(Outer(ToLinen(part)), X)
    want = LinenLayer().apply({"params": linen_params(name, variables["params"]["inner"])}, X)
    assert same(Outer(ToLinen(part)).apply(variables, X), want)
    model = nn.Sequential([ToLinen(part), nn.Dense(2), ToLinen(lambda x: hk.Linear(1)(x))])
    assert model.apply(initial(model, X), X).shape == (4, 1)


def test_initial_values_follow_the_path():
    variables = InSetup(haiku_layer).init(KEY, X)["params"]
    kernels = [variables[name]["dense"]["w"] for name in ("first", "rest_0", "rest_1")]
    assert not same(kernels[0], kernels[1]) and not same(kernels[1], kernels[2])

    class Renamed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return ToLinen(haiku_layer, name="first")(ToLinen(haiku_layer, name="zero")(x))

    assert same(Renamed().init(KEY, X)["params"]["first"], variables["first"])


def test_methods_of_a_submodule():
    class Outer(nn.Module):
        def setup(self):
            self.embed = ToLinen(nnx.Embed, 5, 3)

        def __call__(self, x):
            return self.embed(x)

        def attend(self, x):
            return self.embed.attend(x)

    variables = initial(Outer(), jnp.array([1, 2]))
    table = variables["params"]["embed"]["embedding"]
    assert same(Outer().apply(variables, jnp.array([1, 2])), table[jnp.array([1, 2])])
    np.testing.assert_allclose(Outer().apply(variables, X, method="attend"), X @ table.T, rtol=1e-6)


def test_bind_and_unbind():
    model = InSetup(NNXLayer)
    variables = initial(model, X)
    bound = model.bind(variables)
    want = model.apply(variables, X)
    assert same(bound(X), want)
    first, own = bound.first.unbind()
    assert same(own, {"params": variables["params"]["first"]})
    assert same(first.apply(own, X), LinenLayer().apply({"params": linen_params("nnx", own["params"])}, X))


def test_share_scope():
    class LoRA(nn.Module):
        rank: int = 2

        def setup(self):
            self.base = ToLinen(nnx.Linear, 3, 3)
            nn.share_scope(self, self.base)

        @nn.compact
        def __call__(self, x):
            a = self.param("a", nn.initializers.normal(), (3, self.rank))
            return self.base(x) + x @ a @ self.param("b", nn.initializers.normal(), (self.rank, 3))

    class After(LoRA):
        @nn.compact
        def __call__(self, x):
            y = self.base(x)
            a = self.param("a", nn.initializers.normal(), (3, self.rank))
            return y + x @ a @ self.param("b", nn.initializers.normal(), (self.rank, 3))

    class OfField(nn.Module):
        base: nn.Module
        rank: int = 2

        def setup(self):
            nn.share_scope(self, self.base)

        __call__ = After.__call__

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return OfField(ToLinen(nnx.Linear, 3, 3))(x)

    variables = initial(Model(), X)
    (p,) = variables["params"].values()
    want = X @ p["kernel"] + p["bias"] + X @ p["a"] @ p["b"]
    np.testing.assert_allclose(Model().apply(variables, X), want, rtol=1e-5)

    for model in (LoRA(), After()):
        variables = initial(model, X)
        p = variables["params"]
        assert sorted(p) == ["a", "b", "bias", "kernel"]
        want = X @ p["kernel"] + p["bias"] + X @ p["a"] @ p["b"]
        np.testing.assert_allclose(model.apply(variables, X), want, rtol=1e-5)
        without = {"params": {name: v for name, v in p.items() if name != "bias"}}
        with pytest.raises(br.MissingEntryError, match="params/bias"):
            model.apply(without, X)


# Lifted transformations ----------------------------------------------------------------------------------------------


class ScannedLayers(nn.Module):
    layer: object

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            lambda layer, x, _: (layer(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return scan(self.layer(name="layer"), x, None)[0]


@parts
def test_scan_over_layers(name):
    part = LAYERS[name][0]
    model = ScannedLayers(lambda name: ToLinen(part, name=name))
    variables = model.init(KEY, X)
    kernels = linen_params(name, variables["params"]["layer"])["dense"]["kernel"]
    assert kernels.shape == (3, 3, 3)
    assert not same(kernels[0], kernels[1])
    variables = initial(model, X)
    params = {"params": {"layer": linen_params(name, variables["params"]["layer"])}}
    close(model.apply(variables, X), ScannedLayers(LinenLayer).apply(params, X))
    grads = jax.grad(lambda v: (model.apply(v, X) ** 2).sum())(variables)["params"]["layer"]
    want = jax.grad(lambda v: (ScannedLayers(LinenLayer).apply(v, X) ** 2).sum())(params)["params"]["layer"]
    close(linen_params(name, grads), want)


def test_scan_of_a_lifted_class():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            cls = nn.scan(ToLinen, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            return cls(Cell, name="cells")(x, None)[0]

    class Cell(nnx.Module):
        def __init__(self, rngs):
            self.layer = NNXLayer(rngs)

        def __call__(self, x, _):
            return self.layer(x), None

    variables = initial(Model(), X)
    params = {"params": {"layer": variables["params"]["cells"]["layer"]}}
    close(Model().apply(variables, X), ScannedLayers(LinenLayer).apply(params, X))


class HaikuCell(hk.Module):
    """Counts its steps in Haiku state."""

    def __call__(self, carry, x):
        count = hk.get_state("count", (), jnp.int32, jnp.zeros)
        hk.set_state("count", count + 1)
        carry = jnp.tanh(hk.Linear(3, name="dense")(jnp.concatenate([carry, x], -1)))
        return carry, carry * count


class NNXCell(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(6, 3, rngs=rngs)
        self.count = nnx.Cache(jnp.zeros((), jnp.int32))

    def __call__(self, carry, x):
        carry = jnp.tanh(self.dense(jnp.concatenate([carry, x], -1)))
        count = self.count[...]
        self.count[...] = count + 1
        return carry, carry * count


@pytest.mark.parametrize(("part", "collection"), [(HaikuCell, "state"), (NNXCell, "cache")])
def test_scan_over_time(part, collection):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, xs):
            cell, carry = ToLinen(part, name="cell"), jnp.zeros((xs.shape[0], 3))
            if self.is_initializing():  # What is carried must be there before the loop, as for native cells.
                return cell(carry, xs[:, 0])[1]
            scan = nn.scan(
                lambda cell, carry, x: cell(carry, x),
                variable_broadcast="params",
                variable_carry=collection,
                split_rngs={"params": False},
                in_axes=1,
                out_axes=1,
            )
            return scan(cell, carry, xs)[1]

    xs = inputs(2, 5, 3)
    variables = initial(Model(), xs)
    out, new = Model().apply(variables, xs, mutable=[collection])
    params = variables["params"]["cell"]
    kernel, bias = (
        (params["haiku_cell"]["dense"]["w"], params["haiku_cell"]["dense"]["b"])
        if part is HaikuCell
        else (params["dense"]["kernel"], params["dense"]["bias"])
    )
    carry, want = jnp.zeros((2, 3)), []
    for i in range(5):
        carry = jnp.tanh(jnp.concatenate([carry, xs[:, i]], -1) @ kernel + bias)
        want.append(carry * i)
    np.testing.assert_allclose(out, jnp.stack(want, 1), rtol=1e-5)
    assert [int(v) for v in jax.tree.leaves(new)] == [5]


@parts
def test_vmap_over_an_ensemble(name):
    class Ensemble(nn.Module):
        @nn.compact
        def __call__(self, x):
            cls = nn.vmap(ToLinen, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=2)
            return cls(LAYERS[name][0], name="members")(x)

    made = linen_params(name, Ensemble().init(KEY, X)["params"]["members"])["dense"]["kernel"]
    assert not same(made[0], made[1])
    variables = initial(Ensemble(), X)
    params = linen_params(name, variables["params"]["members"])
    out = Ensemble().apply(variables, X)
    for i in range(2):
        close(out[i], LinenLayer().apply({"params": jax.tree.map(lambda a, i=i: a[i], params)}, X))


def test_vmap_with_statistics_and_dropout_of_each_member():
    class Part(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.drop(self.norm(x))

    class Ensemble(nn.Module):
        @nn.compact
        def __call__(self, x):
            cls = nn.vmap(
                ToLinen, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True, "dropout": True}
            )
            return cls(Part, name="members")(x)

    xs = jnp.stack([X, X])
    variables = initial(Ensemble(), xs)
    variables = {**variables, "params": jax.tree.map(lambda a: a.at[1].set(a[0]), variables["params"])}
    out, new = Ensemble().apply(variables, xs, rngs={"dropout": KEY}, mutable=["batch_stats"])
    mean = variables["batch_stats"]["members"]["norm"]["mean"] * 0.9 + X.mean(0) * 0.1
    np.testing.assert_allclose(new["batch_stats"]["members"]["norm"]["mean"], mean, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(out[0], out[1])  # Each member drops others.


@parts
@pytest.mark.parametrize("transform", [nn.remat, nn.jit])
def test_remat_and_jit(name, transform):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            cls = transform(ToLinen)
            return cls(LAYERS[name][0], name="b")(cls(LAYERS[name][0], name="a")(x))

    variables = initial(Model(), X)
    params = {key: linen_params(name, value) for key, value in variables["params"].items()}

    def native(params):
        return LinenLayer().apply({"params": params["b"]}, LinenLayer().apply({"params": params["a"]}, X))

    close(Model().apply(variables, X), native(params))
    grads = jax.grad(lambda v: (Model().apply(v, X) ** 2).sum())(variables)["params"]
    close({k: linen_params(name, v) for k, v in grads.items()}, jax.grad(lambda p: (native(p) ** 2).sum())(params))
    if transform is nn.remat:  # It changes no initial value; nn.jit gives native layers other keys too.
        assert same(Model().init(KEY, X)["params"], Plain(name).init(KEY, X)["params"])


class Plain(nn.Module):
    part: str

    @nn.compact
    def __call__(self, x):
        return ToLinen(LAYERS[self.part][0], name="b")(ToLinen(LAYERS[self.part][0], name="a")(x))


def test_jit_tells_parts_apart():
    def double(x):
        return x * 2 + hk.get_parameter("w", (), init=jnp.zeros)

    def triple(x):
        return x * 3 + hk.get_parameter("w", (), init=jnp.zeros)

    class Scale(nnx.Module):
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, x):
            return x * self.factor

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            cls = nn.jit(ToLinen)
            haiku = cls(double)(x), cls(triple)(x)
            return [a / x for a in (*haiku, cls(Scale, 4)(x), cls(Scale, factor=5)(x), cls(Scale, 6)(x))]

    model = Model()
    x = jnp.ones(())
    outs = model.apply(model.init(KEY, x), x)
    assert [float(a) for a in outs] == [2, 3, 4, 5, 6]


@parts
def test_map_variables(name):
    def twice(variables):
        return jax.tree.map(lambda a: a * 2, variables)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            cls = nn.map_variables(ToLinen, "params", trans_in_fn=twice, init=self.is_initializing())
            return cls(LAYERS[name][0], name="layer")(x)

    variables = initial(Model(), X)
    params = linen_params(name, twice(variables["params"]["layer"]))
    close(Model().apply(variables, X), LinenLayer().apply({"params": params}, X))


@parts
def test_lifted_gradients(name):
    class Model(nn.Module):
        layer: object

        @nn.compact
        def __call__(self, x):
            layer = self.layer(name="layer")
            if self.is_initializing():
                return layer(x)
            value, grads = nn.value_and_grad(lambda m, x: (m(x) ** 2).sum(), layer, x)
            out, vjp = nn.vjp(lambda m, x: m(x), layer, x)
            ones = {"params": jax.tree.map(jnp.ones_like, layer.variables["params"])}
            return value, grads, vjp(out), nn.jvp(lambda m, x: m(x), layer, (x,), (x,), ones)

    part = LAYERS[name][0]
    model = Model(lambda name: ToLinen(part, name=name))
    variables = initial(model, X)
    native = {"params": {"layer": linen_params(name, variables["params"]["layer"])}}
    value, grads, (own, pulled), pushed = model.apply(variables, X)
    want = Model(LinenLayer).apply(native, X)
    close((value, grads, pulled, pushed), (want[0], want[1], want[2][1], want[3]))
    close(linen_params(name, own["params"]), want[2][0]["params"])


def test_scan_of_remat_with_dropout_statistics_and_sown_values():
    class Cell(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x, _):
            x = self.drop(self.norm(x))
            self.sow(nnx.Intermediate, "dropped", x == 0)
            return x, None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            cls = nn.scan(
                nn.remat(ToLinen),
                variable_axes={"params": 0, "batch_stats": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                length=3,
            )
            return cls(Cell, name="cells")(x, None)[0]

    variables = initial(Model(), X)
    given = {"rngs": {"dropout": KEY}, "mutable": ["batch_stats", "intermediates"]}
    out, new = Model().apply(variables, X, **given)
    (dropped,) = new["intermediates"]["cells"]["dropped"]
    assert dropped.shape == (3, 4, 3) and not same(dropped[0], dropped[1])
    np.testing.assert_allclose(
        new["batch_stats"]["cells"]["norm"]["mean"][0],
        variables["batch_stats"]["cells"]["norm"]["mean"][0] * 0.9 + X.mean(0) * 0.1,
        rtol=1e-5,
    )
    grads = jax.grad(lambda v: Model().apply(v, X, **given)[0].sum())(variables)
    assert np.isfinite(grads["params"]["cells"]["norm"]["scale"]).all()
    assert same(Model().apply(variables, X, **given)[0], out)


def test_modules_made_anew_at_each_trace_know_what_equal_ones_have_learned():
    made = []

    class Layer(nnx.Module):
        def __init__(self, size, *, rngs):
            made.append(size)
            self.dense = nnx.Linear(3, size, rngs=rngs)

        def __call__(self, x):
            return self.dense(x)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(5):
                x = ToLinen(Layer, 3)(x)
            return ToLinen(Layer, size=2)(x)

    variables = initial(Model(), X)
    Model().apply(variables, X)
    before = len(made)
    assert jax.jit(Model().apply)(variables, X).shape == (4, 2)
    assert len(made) == before


def test_cond_and_while():
    class Counter(nnx.Module):
        def __init__(self):
            self.count = nnx.Cache(jnp.zeros((), jnp.int32))

        def __call__(self, x):
            self.count[...] += 1
            return x + self.count[...]

    class Model(nn.Module):
        def setup(self):
            self.counter, self.layer = ToLinen(Counter), ToLinen(haiku_layer)

        def __call__(self, x, up):
            if self.is_initializing():
                return self.layer(self.counter(x))
            x = nn.cond(up, lambda m, x: m.layer(x), lambda m, x: x, self, x)
            return nn.while_loop(
                lambda m, x: m.counter.variables["cache"]["count"] < 3,
                lambda m, x: m.counter(x),
                self,
                x,
                carry_variables="cache",
                broadcast_variables="params",
            )

    variables = initial(Model(), X, True)
    out, new = Model().apply(variables, X, True, mutable=["cache"])
    layer = LinenLayer().apply({"params": linen_params("haiku", variables["params"]["layer"])}, X)
    np.testing.assert_allclose(out, layer + 6, rtol=1e-6)
    assert int(new["cache"]["counter"]["count"]) == 3
    out, _ = Model().apply(variables, X, False, mutable=["cache"])
    np.testing.assert_allclose(out, X + 6, rtol=1e-6)


def test_parts_beside_native_layers():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))
            x = ToLinen(nnx.BatchNorm, 3)(x, use_running_average=not train)
            return nn.Dropout(0.5, deterministic=not train)(ToLinen(haiku_layer)(x))

    variables = initial(Model(), X, False)
    assert sorted(variables["batch_stats"]) == ["BatchNorm_0", "ToLinen_0"]
    _, new = Model().apply(variables, X, True, rngs={"dropout": KEY}, mutable=["batch_stats"])
    assert all(not same(new["batch_stats"][n], variables["batch_stats"][n]) for n in new["batch_stats"])


def test_capture_intermediates_of_all_modules():
    model = InSetup(haiku_layer)
    variables = initial(model, X)
    out, new = model.apply(variables, X, capture_intermediates=True, mutable=["intermediates"])
    assert same(new["intermediates"]["__call__"], (out,))
    assert len(new["intermediates"]["first"]["__call__"]) == 2


def test_tabulate():
    table = nn.tabulate(InSetup(haiku_layer), KEY, console_kwargs={"force_terminal": False, "width": 200})(X)
    assert "first" in table and "rest_1" in table and "ToLinen" in table
    assert "Total Parameters: 36" in table
    table = ToLinen(CoreLayer).tabulate(KEY, X, console_kwargs={"force_terminal": False, "width": 200})
    assert "Total Parameters: 12" in table


def test_linen_modules_that_parts_make_are_nobodys():
    class Outer(br.Module):
        def __call__(self, x):
            return br.FlaxModule(lambda: nn.Dense(2), name="inner")(x)

    variables = initial(ToLinen(Outer), X)
    assert sorted(flat(variables)) == [f"params/outer/inner/params/{leaf}" for leaf in ("bias", "kernel")]
    assert ToLinen(Outer).apply(variables, X).shape == (4, 2)
