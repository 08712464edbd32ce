"""What a module does with the entries below it: filter, partition, pop; and names that a class or layer has itself."""

from __future__ import annotations

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import bridges as br

X = jnp.ones((3, 2))


class Layer(br.Module):
    def __call__(self, x):
        y = x @ self.get("w", lambda: jax.random.normal(br.rng(), (2, 2)))
        self.get("mean", jnp.zeros, (2,), kind=br.BatchStat)
        self.put("y", y, kind=br.Intermediate)
        return y


class Net(br.Module):
    def __init__(self):
        self.a = Layer()
        self.b = Layer()

    def __call__(self, x):
        return self.b(self.a(x))


NET = Net()


def run(fn, state=None, **options):
    state = br.init(lambda: NET(X))({}, seed=0) if state is None else state
    return br.pure(fn)(state, **options)


def test_filter_and_partition_below_a_module():
    def fn():
        params, stats, rest = NET.partition(br.Param, br.BatchStat, ...)
        assert list(params) == ["net/a/w", "net/b/w"] and list(stats) == ["net/a/mean", "net/b/mean"]
        assert list(rest) == ["net/a/y", "net/b/y"]
        assert list(NET.a.filter(br.Param)) == list(NET.filter(br.All(NET.a, br.Param))) == ["net/a/w"]
        assert list(NET.filter("a")) == list(NET.filter("net/a")) == list(NET.a.filter(...))
        assert params["a/w"] is params["net/a/w"]
        with pytest.raises(br.FilterError, match="net/a/mean"):
            NET.partition(br.Param)
        NET.put(jax.tree.map(lambda w: w + 1, params))
        assert (params["a/w"] + 1 == NET.a.get("w")).all()

    before, _ = run(lambda: None)
    after, _ = run(fn, before)
    assert (after["net/b/w"] == before["net/b/w"] + 1).all() and after.kinds == before.kinds


def test_pop_removes_from_the_state():
    def fn():
        NET(X)
        first = NET.a.pop(br.Intermediate)
        ys, stats = NET.pop(br.Intermediate, "b/mean")
        assert list(first) == ["net/a/y"] and list(ys) == ["net/b/y"] and list(stats) == ["net/b/mean"]
        with pytest.raises(br.MissingEntryError, match="net/b/y"):
            NET.b.get("y")
        return ys["net/b/y"]

    before, _ = run(lambda: None)
    for pure in (br.pure(fn), jax.jit(br.pure(fn)), br.jit(fn)):
        after, y = pure(before)
        assert list(after) == ["net/a/mean", "net/a/w", "net/b/w"]
        assert (y == X @ before["net/a/w"] @ before["net/b/w"]).all()
        assert after.kind("net/a/mean") is br.BatchStat


def test_a_step_that_pops_what_it_recorded_keeps_one_structure():
    def step():
        y = NET(X)
        return y, NET.pop(br.Intermediate)["a/y"]

    state = run(lambda: NET.pop(br.Intermediate))[0]
    assert not state.filter(br.Intermediate)
    jitted = br.jit(step)
    new, (_, y) = jitted(state)
    assert jax.tree.structure(new) == jax.tree.structure(state) and (y == X @ state["net/a/w"]).all()
    assert new["net/a/w"] is state["net/a/w"]  # handed on, not copied


@pytest.mark.parametrize("lift", [br.jit, br.checkpoint])
def test_pop_inside_a_transformation_reaches_the_state(lift):
    def fn():
        popped = lift(lambda: NET.pop(br.Intermediate))()
        assert "net/a/y" not in br.context()
        return popped

    for pure in (br.pure(fn), jax.jit(br.pure(fn))):
        after, popped = pure(run(lambda: None)[0])
        assert list(popped) == ["net/a/y", "net/b/y"] and not after.filter(br.Intermediate)


def test_pop_inside_of_a_gradient():
    def loss():
        y = NET(X)
        return (y**2).sum() + NET.pop(br.Intermediate)["net/a/y"].sum()

    after, (_, _, grads) = run(lambda: br.grad(loss, NET)())
    before = run(lambda: None)[0]
    want = jax.grad(lambda w: ((X @ w @ before["net/b/w"]) ** 2).sum() + (X @ w).sum())(before["net/a/w"])
    assert jnp.allclose(grads["net/a/w"], want, rtol=1e-5) and not after.filter(br.Intermediate)


@pytest.mark.parametrize(
    "lift",
    [
        lambda fn: br.scan(lambda c, x: (c, fn()), 0, length=2),
        lambda fn: br.cond(True, fn, fn),
        lambda fn: br.vmap(fn, axis_size=2)(),
    ],
)
def test_where_a_function_may_run_often_only_its_own_records_are_removed(lift):
    def own():
        y = NET(X)
        return y + sum(NET.pop(br.Intermediate).values())

    clean, _ = run(lambda: NET.pop(br.Intermediate))
    after, _ = run(lambda: lift(own), clean)
    assert jax.tree.structure(after) == jax.tree.structure(clean)
    with pytest.raises(br.UnsupportedError, match=r"(?s)removed inside of bridges\..*net/a/mean"):
        run(lambda: lift(lambda: NET.pop(br.BatchStat) and 0), clean)


def test_pop_and_write_again_is_a_modification():
    def fn():
        NET.a.put("mean", NET.a.pop(br.BatchStat)["mean"] + 1, kind=br.BatchStat)

    with pytest.raises(br.CreateError, match="net/a/mean"):  # gone is gone, but where entries may be created
        run(fn)
    before = run(lambda: None)[0]
    after, _ = run(fn, before, create=True)
    assert jax.tree.structure(after) == jax.tree.structure(before) and (after["net/a/mean"] == 1).all()


def test_permissions():
    with pytest.raises(br.PermissionsError, match="may not be removed"):
        run(lambda: NET.pop(br.BatchStat), modify=False)
    with pytest.raises(br.FilterError, match="Nothing was named"):
        run(lambda: NET.pop())
    with pytest.raises(br.LeakError, match="remove the state entry"):
        run(lambda: jax.jit(lambda: NET.pop(br.Intermediate))())
    with pytest.raises(br.ContextError):
        NET.filter(br.Param)


def test_a_class_may_have_methods_of_these_names():
    class Other(br.Module):
        def filter(self, x):
            return x * self.get("w", jnp.ones, ())

    state = br.init(Other().filter)({}, X)
    assert list(state) == ["other/w"]
    other = Other()
    assert br.pure(lambda: br.Module.filter(other, br.Param))(state)[1] == state


class Haiku(hk.Module):
    def filter(self, x):
        return hk.Linear(4)(x)


class Linen(nn.Module):
    @nn.compact
    def pop(self, x):
        return nn.Dense(4)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.partition = nnx.Linear(2, 4, rngs=rngs)


@pytest.mark.parametrize(
    "wrapper, name",
    [
        (br.HaikuModule(Haiku), "filter"),
        (br.FlaxModule(Linen), "pop"),
        (br.NNXModule(Nnx), "partition"),
    ],
)
def test_a_wrapped_layers_own_name_comes_first(wrapper, name):
    method = getattr(wrapper, name)
    state = br.init(method)({}, X, seed=0)
    assert br.apply(method, state)(X)[0].shape == (3, 4)
    assert br.pure(lambda: wrapper.getm().filter(br.Param))(state)[1].keys() == state.keys()
    others = {"filter", "partition", "pop"} - {name}
    assert all(br.pure(lambda other=other: getattr(wrapper, other)(...))(state)[1] == state for other in others)
