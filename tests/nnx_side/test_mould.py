"""Modules that a mould makes are those that `nnx.merge` makes, and what a call does to them is noticed alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bridges as br
from bridges._nnx._mould import Mould
from bridges._nnx._template import Template


class Shared(nnx.Module):
    """Two names for one layer, a way back to the root, and an array that is no Variable."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(3, 3, rngs=rngs)
        self.second = self.first
        self.tail = nnx.Sequential(nnx.Linear(3, 3, rngs=rngs), nnx.relu, nnx.BatchNorm(3, rngs=rngs))
        self.tail.root = nnx.data(self)
        self.mask = nnx.data(jnp.asarray([1.0, 0.0, 1.0]))
        self.weight = self.first.kernel
        self.note = {"a": (1, "b")}

    def __call__(self, x):
        return self.tail(self.second(x) * self.mask) @ self.weight[...]


class Boxed(nnx.Module):
    """Layers in containers of Python, whose leaves are no attributes."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.data([nnx.Linear(3, 3, rngs=rngs)])

    def __call__(self, x):
        return self.layers[0](x)


class Fresh(nnx.Module):
    """An empty list, into which a call may put a Variable."""

    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        self.kept = nnx.data([])

    def __call__(self, x):
        return self.linear(x)


class Slotted(nnx.Module):
    """A class that asks for an argument as an object is made."""

    def __new__(cls, rngs):
        return super().__new__(cls)

    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


MOULDED = {
    "linear": lambda rngs: nnx.Linear(3, 3, rngs=rngs),
    "norm": lambda rngs: nnx.BatchNorm(3, rngs=rngs),
    "dropout": lambda rngs: nnx.Dropout(0.5, rngs=rngs),
    "attention": lambda rngs: nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs),
    "lora": lambda rngs: nnx.LoRALinear(3, 3, lora_rank=2, rngs=rngs),
    "list": lambda rngs: nnx.Sequential(nnx.Linear(3, 3, rngs=rngs), nnx.List([nnx.Linear(3, 3, rngs=rngs)])[0]),
    "shared": Shared,
    "new": Slotted,
}


def randomised(template):
    rng = np.random.default_rng(0)
    drawn = {}
    for path, want in template.entries.items():
        if jax.dtypes.issubdtype(want.dtype, jax.dtypes.prng_key):
            drawn[path] = jax.random.key(3)
        else:
            drawn[path] = jnp.asarray(rng.uniform(0.5, 1.5, want.shape), want.dtype)
    return drawn


@pytest.mark.parametrize("name", MOULDED)
def test_makes_what_merge_makes(name):
    template = Template.traced(lambda: MOULDED[name](nnx.Rngs(0)))
    assert template.mould is not None
    entries = randomised(template)
    merged, _ = template.build(entries)
    nodes = template.mould.cast(template.made(entries)[0])
    cast = nodes[0].node
    (graph, state), (wanted, values) = nnx.split(cast, graph=True), nnx.split(merged, graph=True)
    assert graph == wanted
    assert jax.tree.structure(state) == jax.tree.structure(values)
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(values), strict=True):
        assert one is two
    mine = {keys: node for keys, node in nnx.iter_graph(cast, graph=True) if isinstance(node, nnx.Pytree)}
    for keys, node in nnx.iter_graph(merged, graph=True):
        if isinstance(node, nnx.Pytree):
            assert type(mine[keys]) is type(node)
            assert list(vars(mine[keys])) == list(vars(node))
    assert {id(made.node) for made in nodes} == set(map(id, mine.values()))


def test_nodes_belong_to_the_trace_that_makes_them():
    template = Template.traced(lambda: nnx.Linear(3, 3, rngs=nnx.Rngs(0)))
    entries = randomised(template)

    def attribute(x):
        module = template.mould.cast(template.made(entries)[0])[0].node
        module.note = "set"  # NNX refuses this for a module of another trace.
        module.kernel[...] = module.kernel[...] * x
        return module(jnp.ones((1, 3)))

    want = jnp.ones((1, 3)) @ (entries["params/kernel"] * 2.0) + entries["params/bias"]
    # A dot product of three float32 numbers, compiled and not: a few units in the last place.
    np.testing.assert_allclose(jax.jit(attribute)(2.0), want, rtol=1e-6)
    assert template.mould is not None


@pytest.mark.parametrize("cls", [Boxed, Fresh])
def test_leaves_in_containers_are_left_to_merge(cls):
    assert Template.traced(lambda: cls(nnx.Rngs(0))).mould is None
    net = br.NNXModule(cls, name="net")
    x = jnp.ones((2, 3))
    state = br.init(net)({}, x, seed=0)
    np.testing.assert_array_equal(br.pure(net)(state, x)[1], cls(nnx.Rngs(0))(x))


def test_leaves_that_are_one_object_are_left_to_merge():
    template = Template.traced(lambda: Shared(nnx.Rngs(0)))
    whole = template.build(template.entries)[1]
    same = [whole[0]] * len(whole)
    assert Mould.of(lambda: (template.build(template.entries)[0], same)) is None


class Odd(nnx.Module):
    """Does to its attributes what a call is told."""

    def __init__(self, rngs: nnx.Rngs):
        self.a = nnx.Param(jnp.ones(2))
        self.b = nnx.Param(jnp.ones(2))
        self.mode = "plain"
        self.last = 1

    def __call__(self, what):
        if what == "swap":
            self.a, self.b = self.b, self.a
        elif what == "rename":  # As many attributes, of the same values, in the same order.
            value = self.last
            del self.last
            self.newest = value
        elif what == "mode":
            self.mode = "other"
        elif what == "set":
            self.b[...] = self.b[...] * 3
        elif what == "replace":
            self.a = nnx.Param(self.a[...] * 5)
        return self.a[...] + self.b[...]


@pytest.mark.parametrize("what", ["swap", "set", "replace"])
def test_changes_of_values_are_written_back_every_time(what):
    net = br.NNXModule(Odd, name="net")
    state = br.init(net)({}, "nothing", seed=0)
    state = br.State({"net/params/a": jnp.asarray([2.0, 3.0]), "net/params/b": jnp.asarray([5.0, 7.0])}, state.kinds)
    pure, native = br.pure(net), Odd(nnx.Rngs(0))
    nnx.update(native, {"a": state["net/params/a"], "b": state["net/params/b"]})
    for _ in range(3):
        state, out = pure(state, what)
        np.testing.assert_array_equal(out, native(what))
        np.testing.assert_array_equal(state["net/params/a"], native.a[...])
        np.testing.assert_array_equal(state["net/params/b"], native.b[...])


@pytest.mark.parametrize("what", ["rename", "mode"])
def test_changes_of_other_attributes_are_refused_every_time(what):
    net = br.NNXModule(Odd, name="net")
    state = br.init(net)({}, "nothing", seed=0)
    for _ in range(3):
        with pytest.raises(br.UnsupportedError, match=r"mode|newest|last"):
            br.pure(net)(state, what)


def test_what_a_call_returns_of_its_module_stays_as_it_was():
    net = br.NNXModule(nnx.Linear, 3, 3, name="net")
    state = br.init(net)({}, jnp.ones((1, 3)), seed=0)
    pure = br.pure(lambda: net(method=lambda module: module.kernel))
    kernel = pure(state)[1]
    other = br.State({path: value + 1 for path, value in state.items()}, state.kinds)
    pure(other)
    np.testing.assert_array_equal(kernel[...], state["net/params/kernel"])


def test_the_last_call_is_not_taken_for_another():
    """One wrapper called in turn in states of unlike layouts, with flags and without, and at two places."""
    net = br.NNXModule(nnx.BatchNorm, 3, name="net")
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)
    state = br.init(net)({}, x, seed=0)
    more = br.State({**state, "other": jnp.ones(1)}, state.kinds)
    pure = br.pure(net)
    for _ in range(2):
        trained, y = pure(state, x, flags={"train": True})
        evaluated, z = pure(state, x, flags={"train": False})
        assert not np.allclose(y, z)
        assert not np.array_equal(trained["net/batch_stats/mean"], state["net/batch_stats/mean"])
        np.testing.assert_array_equal(evaluated["net/batch_stats/mean"], state["net/batch_stats/mean"])
        np.testing.assert_array_equal(pure(more, x, flags={"train": True})[1], y)
        with pytest.raises(br.MissingEntryError, match=r"net/params/scale"):
            pure({path: value for path, value in state.items() if path != "net/params/scale"}, x)
        with pytest.raises(br.EntryShapeError, match=r"net/params/scale"):
            wrong = br.State(state)
            wrong["net/params/scale"] = jnp.ones(5)
            pure(wrong, x)
