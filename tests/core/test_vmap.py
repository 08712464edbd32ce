"""`vmap`: shared and stacked state, axes, and keys for every member."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridges as br


class Dense(br.Module):
    def __call__(self, x):
        w = self.get("w", lambda: jax.random.normal(br.rng(), (2, 3)))
        n = self.get("n", jnp.zeros, (), jnp.int32)
        self.put("n", n + 1)
        return x @ w


X = jnp.arange(8.0).reshape(4, 2)


def test_shared_state_is_created_once_and_written_once():
    net = Dense()
    run = lambda x: br.vmap(net)(x)  # noqa: E731
    state = br.init(run)({}, X, seed=0)
    assert state["dense/w"].shape == (2, 3)
    np.testing.assert_array_equal(state["dense/n"], 0)
    for fn in (br.pure(run), jax.jit(br.pure(run))):
        new, out = fn(state, X)
        np.testing.assert_allclose(out, X @ state["dense/w"], rtol=1e-6)
        assert new["dense/n"] == 1


def test_stacked_state_is_an_ensemble():
    net = Dense()
    for axis in (0, 1):
        run = lambda x, axis=axis: br.vmap(net, in_axes=None, axis_size=5, state_axes={net: axis, "dense/n": 0})(x)  # noqa: E731
        state = br.init(run)({}, X, seed=0)
        assert state["dense/w"].shape == ((5, 2, 3) if axis == 0 else (2, 5, 3)) and state["dense/n"].shape == (5,)
        members = jnp.moveaxis(state["dense/w"], axis, 0)
        assert len(np.unique(members)) == members.size
        new, out = jax.jit(br.pure(run))(state, X)
        np.testing.assert_allclose(out, jnp.einsum("bi,nij->nbj", X, members), rtol=1e-5)
        assert new["dense/n"].tolist() == [1] * 5 and new["dense/w"].shape == state["dense/w"].shape
        created, out = br.pure(run)({}, X, seed=0, create=True)
        assert created["dense/n"].tolist() == [1] * 5


def test_a_stacked_and_a_shared_part():
    one, each = Dense(name="one"), Dense(name="each")

    def run(x):
        return br.vmap(lambda x: each(x) + one(x), state_axes={each: 0})(x)

    state = br.init(run)({}, X, seed=0)
    assert state["one/w"].shape == (2, 3) and state["each/w"].shape == (4, 2, 3)
    new, out = br.pure(run)(state, X)
    np.testing.assert_allclose(out, X @ state["one/w"] + jnp.einsum("bi,bij->bj", X, state["each/w"]), rtol=1e-5)
    assert new["one/n"] == 1 and new["each/n"].tolist() == [1] * 4


def test_gradients_of_an_ensemble():
    net = Dense()

    def loss(x):
        return (br.vmap(net, in_axes=None, axis_size=2, state_axes={net: 0})(x) ** 2).sum()

    state = br.init(loss)({}, X, seed=0)
    _, (_, _, grads) = br.pure(lambda x: br.grad(loss, net)(x))(state, X)
    wanted = jax.grad(lambda w: (jnp.einsum("bi,nij->nbj", X, w) ** 2).sum())(state["dense/w"])
    np.testing.assert_allclose(grads["dense/w"], wanted, rtol=1e-5)


def test_a_shared_entry_written_with_different_values_is_an_error():
    def fn(x):
        br.get("n", jnp.zeros, (2,))
        br.context().write("n", x)
        return x

    with pytest.raises(br.EntryShapeError, match=r"(?s)differ between the members.*'n'.*pmean.*state_axes"):
        br.pure(lambda x: br.vmap(fn)(x))({"n": jnp.zeros(2)}, X)

    def mean(x):
        br.context().write("n", jax.lax.pmean(x, "batch"))
        return x

    state, _ = br.pure(lambda x: br.vmap(mean, axis_name="batch")(x))({"n": jnp.zeros(2)}, X)
    np.testing.assert_array_equal(state["n"], X.mean(0))


@pytest.mark.parametrize("axes", [None, {"": 0}])
def test_collectives_run_while_entries_are_made(axes):
    def mean(x):
        m = jax.lax.pmean(x, "batch")
        return m + br.get("w", lambda: m)

    run = lambda x: br.vmap(mean, axis_name="batch", state_axes=axes)(x)  # noqa: E731
    state = br.init(run)({}, X)
    np.testing.assert_array_equal(state["w"], jnp.broadcast_to(X.mean(0), (4, 2)) if axes else X[0])


def test_axes_of_arguments_and_outputs():
    def fn(x, y, z):
        return {"a": x * y["p"] + z * br.get("w", jnp.ones, ())}

    args = (X, {"p": X.T}, 3.0)
    kwargs = {"in_axes": (0, {"p": 1}, None), "out_axes": {"a": 1}}
    want = jax.vmap(lambda x, y, z: {"a": x * y["p"] + z}, **kwargs)(*args)
    got = br.pure(lambda *a: br.vmap(fn, **kwargs)(*a))({}, *args, create=True)[1]
    np.testing.assert_array_equal(got["a"], want["a"])


def test_keyword_arguments_are_mapped_as_jax_does():
    def fn(x, *, y, mode):
        assert mode == "a"
        return (x * y).sum() * br.get("w", jnp.ones, ())

    out = br.pure(lambda x, y: br.vmap(fn)(x, y=y, mode="a"))({}, X, 2 * X, create=True)[1]
    np.testing.assert_array_equal(out, (X * 2 * X).sum(1))
    out = br.pure(lambda y: br.vmap(lambda *, y: y.sum())(y=y))({}, X)[1]
    np.testing.assert_array_equal(out, X.sum(1))


def test_lists_of_modules_name_the_stacked_state():
    a, b = Dense(name="a"), Dense(name="b")
    run = lambda x: br.vmap(lambda x: a(x) + b(x), state_axes={(a, "b"): 0})(x)  # noqa: E731
    state = br.init(run)({}, X, seed=0)
    assert state["a/w"].shape == state["b/w"].shape == (4, 2, 3)


def test_vmap_outside_of_a_pure_function_is_a_context_error():
    with pytest.raises(br.ContextError):
        br.vmap(Dense())(X)


def test_stacked_layers_run_by_scan():
    """The usual way to have many equal layers: made by vmap, run by scan."""

    class Layer(br.Module):
        def __call__(self, x):
            return jnp.tanh(x @ self.get("w", lambda: jax.random.normal(br.rng(), (2, 2))))

    layer = Layer()

    def fn(x):
        br.vmap(lambda _: layer(x), state_axes={layer: 0})(jnp.arange(3))
        weights = layer.getm()
        return br.scan(lambda x, w: (jnp.tanh(x @ w["layer/w"]), None), x, weights)[0]

    state = br.init(fn)({}, X, seed=0)
    assert state["layer/w"].shape == (3, 2, 2)
    want = X
    for w in state["layer/w"]:
        want = jnp.tanh(want @ w)
    np.testing.assert_allclose(br.pure(fn)(state, X)[1], want, rtol=1e-5)
