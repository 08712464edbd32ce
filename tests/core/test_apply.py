"""`apply`: `(out, state)` for any method or submodule, over states in parts."""

from __future__ import annotations

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridges as br


class Count(br.Variable):
    pass


class Linear(br.Module):
    units: int = 2

    def __call__(self, x):
        w = self.get("w", lambda: jax.random.normal(br.rng(), (x.shape[-1], self.units)))
        self.put("count", self.get("count", jnp.zeros, (), jnp.int32, kind=Count) + 1)
        return x @ w

    @property
    def norm(self):
        return jnp.linalg.norm(self.get("w"))


class Net(br.Module):
    def __init__(self):
        self.enc = Linear()
        self.layers = [Linear(), {"a": (Linear(),)}]
        self.foreign = br.HaikuModule(hk.nets.MLP, [2])

    def __call__(self, x):
        return self.foreign(self.decode(self.encode(x)))

    def encode(self, x, *, seed=0, flags=1):  # as an option of apply is called
        return self.enc(x) * flags + seed

    def decode(self, x):
        return self.layers[1]["a"][0](self.layers[0](x))

    def drop(self, x):
        return x * jax.random.bernoulli(br.rng("dropout"), 0.5, x.shape) if br.flag("train") else x


NET = Net()
X = jnp.arange(6.0).reshape(3, 2)


@pytest.fixture(scope="module")
def state():
    return br.init(NET)({}, X, seed=0)


@pytest.mark.parametrize(
    "name, through, directly",
    [
        ("call", lambda a: a(X), lambda: NET(X)),
        ("method", lambda a: a.encode(X), lambda: NET.encode(X)),
        ("the method's own arguments", lambda a: a.encode(X, seed=3, flags=2), lambda: NET.encode(X, seed=3, flags=2)),
        ("submodule", lambda a: a.enc(X), lambda: NET.enc(X)),
        ("of a list", lambda a: a.layers[0](X), lambda: NET.layers[0](X)),
        ("nested", lambda a: a.layers[1]["a"][0](X), lambda: NET.layers[1]["a"][0](X)),
        ("a wrapped layer", lambda a: a.foreign(X), lambda: NET.foreign(X)),
        ("an entry", lambda a: a.layers[0].get("w"), lambda: NET.layers[0].get("w")),
    ],
)
def test_what_can_be_reached(state, name, through, directly):
    wanted, out = br.pure(directly)(state)
    params, rest = state.partition(br.Param, ...)
    for states in ([state], [params, rest], [dict(rest), params]):
        got, new = through(br.apply(NET, *states))
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), (got, dict(new)), (out, dict(wanted))))
    assert new.keys() == state.keys() and state["net/enc/count"] == 0


def test_bound_methods_functions_and_pure_ones(state):
    wanted = br.pure(NET.encode)(state, X)[1]
    for fn in (NET.encode, lambda x: NET.encode(x), br.pure(NET.encode)):
        out, new = br.apply(fn, state)(X)
        np.testing.assert_array_equal(out, wanted)
        assert isinstance(new, br.State)
    out, new = br.apply(lambda x: x + 1)(X)
    assert new == {} and (out == X + 1).all()


def test_seeds_and_flags(state):
    assert (br.apply(NET, state).drop(X)[0] == X).all()
    with pytest.raises(br.SeedError, match="dropout"):
        br.apply(NET, state, flags={"train": True}).drop(X)
    one, two = (br.apply(NET, state, flags={"train": True}, seed={"dropout": s}).drop(X)[0] for s in (0, 1))
    assert (one != two).any()
    fixed = br.pure(NET.drop, flags={"train": True})
    np.testing.assert_array_equal(br.apply(fixed, state, seed={"dropout": 1})(X)[0], two)
    np.testing.assert_array_equal(br.pure(NET.drop)(state, X, seed={"dropout": 1}, flags={"train": True})[1], two)


def test_under_the_transformations_of_jax(state):
    params, rest = state.partition(br.Param, ...)

    @jax.jit
    def step(params, rest, x):
        def loss(params):
            out, new = br.apply(NET, params, rest)(x)
            return (out**2).mean(), new.filter(Count)

        grads, counts = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), counts

    for n in range(2):
        params, rest = step(params, rest, X)
        assert (rest["net/enc/count"], rest["net/layers_0/count"]) == (n + 1, n + 1)
    assert step._cache_size() == 1
    many = jax.vmap(lambda x: br.apply(NET.enc, params, rest)(x)[0])(X)
    np.testing.assert_allclose(many, X @ params["net/enc/w"], rtol=1e-6)


def test_inside_of_another_stateful_function_it_has_its_own_state(state):
    class Outer(br.Module):
        def __init__(self):
            self.inner = Linear()

        def __call__(self, x):
            y = self.inner(x)
            out, new = br.apply(self.inner, self.inner.getm())(x)
            return y == out, new["outer/inner/count"], self.inner.get("count")

    outer = Outer()
    state = br.init(outer)({}, X, seed=0)
    new, (same, inner, count) = br.pure(outer)(state, X)
    assert same.all() and inner == 2 and count == new["outer/inner/count"] == 1


def test_layers_by_jax_lax_scan():
    """The manual lifting of the first NNX: parameters as inputs of a scan, a layer a step."""
    layer = Linear(name="layer")
    keys = jax.random.split(jax.random.key(0), 3)
    stacked = jax.vmap(lambda key: br.init(layer)({}, X, seed=key))(keys)
    assert stacked["layer/w"].shape == (3, 2, 2)
    x, new = jax.lax.scan(lambda x, layers: br.apply(layer, layers)(x), X, stacked)
    want = X
    for i in range(3):
        want, _ = br.apply(layer, jax.tree.map(lambda a, i=i: a[i], stacked))(want)
    np.testing.assert_allclose(x, want, rtol=1e-6)
    assert new.kinds == stacked.kinds and new["layer/count"].tolist() == [1, 1, 1]


def test_foreign_layers_of_every_sort():
    net = br.FlaxModule(nn.BatchNorm)
    state = br.init(net)({}, X, flags={"train": True}, seed=0)
    params, stats = state.partition(br.Param, br.BatchStat)
    _, new = br.apply(net, params, stats, flags={"train": True})(X)
    assert (new["batch_norm/batch_stats/mean"] != stats["batch_norm/batch_stats/mean"]).any()
    assert new.kinds == state.kinds


def test_what_goes_wrong(state):
    params, rest = state.partition(br.Param, ...)
    with pytest.raises(br.CollisionError, match="net/enc/w"):
        br.apply(NET, state, params)
    with pytest.raises(br.StructureError, match=r"got float32\[3,2\] among these.*apply\(net, state\)\(x\)"):
        br.apply(NET, state, X)
    with pytest.raises(br.StructureError, match="flat"):
        br.apply(NET, {"net": {"w": X}})
    with pytest.raises(br.CreateError, match="net/enc/w"):
        br.apply(NET, rest)(X)
    with pytest.raises(br.FieldError, match=r"has no \.encoder"):
        br.apply(NET, state).encoder(X)
    with pytest.raises(br.FieldError, match=r"layers has no \[7\]"):
        br.apply(NET, state).layers[7](X)
    with pytest.raises(br.FieldError, match=r"enc\.units is int and cannot be called"):
        br.apply(NET, state).enc.units()
    assert "layers[0]" in repr(br.apply(NET, state).layers[0])
