"""`init`: all of the state and none of the compute."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridges as br


class Dense(br.Module):
    units: int = 4

    def __call__(self, x):
        init = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        w = self.get("w", lambda: init(br.rng(), (x.shape[-1], self.units)))
        return x @ w + self.get("b", jnp.zeros, self.units)


X = jnp.ones((2, 3))


def test_it_does_not_do_the_compute():
    ran = []

    def fn(x):
        jax.debug.callback(lambda v: ran.append(1), x)
        y = jax.pure_callback(lambda v: ran.append(2) or v, x, x)
        return net(y).sum()

    net = Dense()
    state = br.init(fn)({}, X, seed=0)
    jax.effects_barrier()
    assert ran == [] and set(state) == {"dense/w", "dense/b"}
    jaxpr = str(jax.make_jaxpr(lambda s, x: br.init(fn)(s, x, seed=0))({}, X))
    assert "dot_general" not in jaxpr and "callback" not in jaxpr


@pytest.mark.parametrize("lift", [br.checkpoint, br.jit, lambda f: lambda x: br.cond(True, f, f, x)])
def test_it_does_not_do_the_compute_inside_of_lifted_functions(lift):
    net = Dense()
    jaxpr = str(jax.make_jaxpr(lambda x: br.init(lambda x: lift(net)(x))({}, x, seed=0))(X))
    assert "dot_general" not in jaxpr


def test_values_are_bit_for_bit_those_of_the_initialiser():
    class Net(br.Module):
        def __call__(self, key):
            for i, init in enumerate(
                (jax.nn.initializers.lecun_normal(), jax.nn.initializers.orthogonal(), jax.nn.initializers.he_uniform())
            ):
                self.get(f"w{i}", init, key, (8, 8))
            self.get("t", jax.nn.initializers.truncated_normal(0.3), key, (64,))

    key = jax.random.key(7)
    state = br.init(Net())({}, key)
    expected = [
        jax.nn.initializers.lecun_normal()(key, (8, 8)), jax.nn.initializers.orthogonal()(key, (8, 8)),
        jax.nn.initializers.he_uniform()(key, (8, 8)), jax.nn.initializers.truncated_normal(0.3)(key, (64,)),
    ]  # fmt: skip
    for path, value in zip(("net/w0", "net/w1", "net/w2", "net/t"), expected, strict=True):
        np.testing.assert_array_equal(state[path], value)


def test_several_functions_one_after_another():
    class Net(br.Module):
        def __init__(self):
            self.enc, self.dec = Dense(), Dense(units=3)

        def encode(self, x):
            return self.enc(x)

        def decode(self, z):
            return self.dec(z)

    net = Net()
    state = br.init(net.encode)({}, X, seed=0)
    first = dict(state)
    state = br.init(net.decode)(state, jnp.ones((2, 4)), seed=1)
    assert set(state) == {"net/enc/w", "net/enc/b", "net/dec/w", "net/dec/b"}
    assert all(state[path] is value for path, value in first.items())
    both = br.init(lambda x: net.decode(net.encode(x)))({}, X, seed=0)
    np.testing.assert_array_equal(both["net/enc/w"], state["net/enc/w"])


def test_existing_entries_stay_as_they_are():
    given = {"dense/b": np.full(4, 5.0, np.float32)}
    state = br.init(Dense())(given, X, seed=0)
    assert state["dense/b"] is given["dense/b"] and len(given) == 1


def test_values_at_creation_not_after_the_call():
    def fn():
        n = br.get("n", jnp.zeros, ())
        br.context().write("n", n + 5)

    assert br.init(fn)({})["n"] == 0


def test_data_dependent_values():
    class Norm(br.Module):
        def __call__(self, x):
            mean = self.get("mean", lambda: x.mean(0))
            return x - mean

    x = jax.random.normal(jax.random.key(0), (16, 3))
    norm, dense = Norm(), Dense()
    np.testing.assert_array_equal(br.init(norm)({}, x)["norm/mean"], x.mean(0))
    state = br.init(lambda x: norm(dense(x)))({}, x, seed=0)
    np.testing.assert_allclose(state["norm/mean"], (x @ state["dense/w"]).mean(0), rtol=1e-6)


def test_python_arguments_stay_python():
    def fn(x, flag, size, *, mode):
        assert flag is True and mode == "a" and isinstance(size, int)
        return br.get("w", jnp.zeros, (size,)) + x

    assert br.init(fn)({}, 1.0, True, 3, mode="a")["w"].shape == (3,)


def test_shapes_of_init_cost_nothing():
    big = jax.ShapeDtypeStruct((1, 1 << 16), jnp.float32)
    shapes = jax.eval_shape(lambda x: br.init(Dense(units=1 << 16))({}, x, seed=0), big)
    assert isinstance(shapes, br.State) and shapes["dense/w"].shape == (1 << 16, 1 << 16)
    assert shapes.kind("dense/w") is br.Param


def test_init_under_jit_and_with_shardings():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = br.init(Dense(), out_shardings=sharding)({}, X, seed=0)
    assert all(value.sharding == sharding for value in state.values())
    jitted = jax.jit(br.init(Dense()))({}, X, seed=0)
    eager = br.init(Dense())({}, X, seed=0)
    assert isinstance(jitted, br.State)
    np.testing.assert_allclose(jitted["dense/w"], eager["dense/w"], rtol=1e-6)


def test_a_seed_only_where_one_is_drawn():
    with pytest.raises(br.SeedError, match="seed=0"):
        br.init(Dense())({}, X)
    assert len(br.init(lambda: br.get("b", jnp.zeros, ()))({})) == 1
    assert len(br.init(Dense())({"dense/w": jnp.ones((3, 4)), "dense/b": jnp.ones(4)}, X)) == 2


def test_a_failing_function_fails_init():
    def fn(x):
        br.get("w", jnp.ones, 2)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        br.init(fn)({}, X)


def test_entries_of_every_dtype():
    def fn():
        br.get("key", lambda: br.rng("a"))
        br.get("old", lambda: jax.random.PRNGKey(3))
        br.get("half", jnp.ones, 2, jnp.bfloat16)
        br.get("flag", lambda: jnp.array(True))
        br.get("number", 3.5)
        br.get("numpy", lambda: np.arange(3, dtype=np.int8))

    state = br.init(fn)({}, seed=0)
    assert state.kind("key") is br.RngState
    dtypes = {path: str(value.dtype) for path, value in state.items()}
    assert dtypes == {
        "key": "key<fry>", "old": "uint32", "half": "bfloat16", "flag": "bool", "number": "float32", "numpy": "int8",
    }  # fmt: skip
    assert all(isinstance(value, jax.Array) for value in state.values())


def test_it_takes_what_pure_and_jit_give():
    for wrap in (br.pure, br.jit, lambda f: f):
        assert set(br.init(wrap(Dense()))({}, X, seed=0)) == {"dense/w", "dense/b"}


def test_an_argument_of_which_only_the_shape_matters():
    state = br.init(Dense())({}, jax.ShapeDtypeStruct((2, 3), jnp.float32), seed=0)
    np.testing.assert_array_equal(state["dense/w"], br.init(Dense())({}, X, seed=0)["dense/w"])
