"""Kinds and their metadata, on every entry, through everything that a state goes through."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridges as br
import converters


class Calls(br.Variable):
    pass


class Lora(br.Param):
    pass


AXES = br.Param(axes=("in", "out"), scale=2)


class Net(br.Module):
    def __call__(self, x):
        w = self.get("w", lambda: jax.random.normal(br.rng(), (2, 2)), kind=AXES)
        a = self.get("a", jnp.ones, (2,), kind=Lora)
        mean = self.get("mean", jnp.zeros, (2,), kind=br.BatchStat)
        cache = self.get("cache", jnp.zeros, (2,), kind=br.Cache)
        calls = self.get("calls", jnp.zeros, (), jnp.int32, kind=Calls)
        key = self.get("key", lambda: br.rng(), kind=br.RngState)
        y = x @ w * a + jax.random.uniform(key, (2,))
        self.put("mean", 0.9 * mean + 0.1 * y.mean(0))
        self.put("cache", cache + 1)
        self.put("calls", calls + 1)
        self.put("key", jax.random.split(key)[0])
        self.put("y", y, kind=br.Intermediate(layer="net"))
        return (y**2).mean()


KINDS = {
    "net/a": Lora, "net/cache": br.Cache, "net/calls": Calls, "net/key": br.RngState, "net/mean": br.BatchStat,
    "net/w": AXES, "net/y": br.Intermediate(layer="net"),
}  # fmt: skip
X = jnp.arange(6.0).reshape(3, 2)


@pytest.fixture(scope="module")
def state():
    return br.init(Net())({}, X, seed=0)


def grad_step(x):
    net = Net()
    loss, params, grads = br.grad(net, net)(x)
    assert params.kinds == grads.kinds == {"net/a": Lora, "net/w": AXES}
    return loss


def scanned(x):
    net = Net()
    return br.scan(lambda c, x: (c, net(x)), 0, x[None])


RUNS = {
    "pure": br.pure(Net()),
    "br.jit": br.jit(Net()),
    "jax.jit": jax.jit(br.pure(Net())),
    "br.grad": br.pure(grad_step),
    "br.scan": br.pure(scanned),
    "br.cond": br.pure(lambda x: br.cond(True, Net(), lambda x: 0.0, x)),
    "br.vmap": br.pure(lambda x: br.vmap(Net(), in_axes=None, axis_size=2)(x)),
    "br.checkpoint": br.pure(lambda x: br.checkpoint(Net())(x)),
    "br.jit inside": br.pure(lambda x: br.jit(Net())(x)),
    "apply": lambda state, x: br.apply(Net(), state)(x)[::-1],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_keeps_them(state, name):
    assert state.kinds == KINDS
    new, _ = RUNS[name](state, X)
    assert new.kinds == KINDS and (new["net/calls"] == 1).all()


@pytest.mark.parametrize(
    "through",
    [
        lambda s: jax.tree.map(jnp.copy, s),
        lambda s: jax.tree.map(lambda x, y: x, s, s),
        lambda s: jax.tree.unflatten(jax.tree.structure(s), jax.tree.leaves(s)),
        lambda s: jax.eval_shape(lambda s: s, s),
        lambda s: jax.lax.scan(lambda s, _: (s, None), s, length=2)[0],
        lambda s: jax.lax.cond(True, lambda s: s, lambda s: s, s),
        lambda s: jax.vmap(lambda s: s, axis_size=2)(jax.tree.map(lambda x: jnp.stack([x, x]), s)),
        lambda s: jax.device_put(s, jax.devices()[0]),
        lambda s: pickle.loads(pickle.dumps(s)),
        copy.copy,
        copy.deepcopy,
        lambda s: s.copy(),
        lambda s: s | {},
        lambda s: {} | s,
        lambda s: br.State(s),
        lambda s: br.State().merge(*s.partition(br.Param, br.Not(br.Param))),
    ],
)
def test_a_copy_keeps_them(state, through):
    copied = through(state)
    assert isinstance(copied, br.State) and copied.kinds == KINDS
    assert copied.kind("net/w").metadata == {"axes": ("in", "out"), "scale": 2}


def test_gradients_by_jax_keep_them(state):
    params, rest = state.partition(br.Param, ...)
    grads, updates = jax.grad(lambda p: br.apply(Net(), p, rest)(X), has_aux=True)(params)
    assert grads.kinds == params.kinds == {"net/a": Lora, "net/w": AXES} and updates.kinds == KINDS
    new = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    assert new.kinds == params.kinds


def test_stacked_by_jax_vmap_they_are_kept(state):
    many = jax.vmap(lambda key: br.init(Net())({}, X, seed=key))(jax.random.split(jax.random.key(0), 3))
    assert many.kinds == KINDS and many["net/w"].shape == (3, 2, 2) and len(np.unique(many["net/w"])) == 12


@pytest.mark.parametrize("format", ["npz", "msgpack", "safetensors", "pickle", "orbax"])
def test_files_hold_names_and_values_and_a_state_of_the_program_the_kinds(state, format, tmp_path):
    """No format has a place for kinds; `restore` takes them from a state that the program makes, abstract or not."""
    kept = state.filter(br.Not(br.Intermediate))
    data = jax.tree.map(lambda x: jax.random.key_data(x) if x.dtype == kept["net/key"].dtype else x, kept)
    converters.save(tmp_path / "state", data, format=format)
    like = jax.tree.map(lambda x: x * 0 if x.dtype != kept["net/key"].dtype else x, kept)
    restored = like.restore(converters.load(tmp_path / "state"))
    assert restored.kinds == kept.kinds and jax.tree.structure(restored) == jax.tree.structure(kept)
    for path, value in restored.items():
        wanted, value = (jax.random.key_data(v) if path == "net/key" else v for v in (kept[path], value))
        np.testing.assert_array_equal(value, wanted)
    assert br.apply(Net(), restored)(X)[0] == br.apply(Net(), kept)(X)[0]


def test_a_loaded_state_is_declared_by_the_code_that_reads_it(state):
    """The other way: run over plain entries, whose kinds the code declares."""
    new, _ = br.pure(Net())(dict(state.filter(br.Not(br.Intermediate))), X)
    assert new.kinds == KINDS


def test_restore_is_strict(state):
    abstract = jax.eval_shape(lambda s: s, state)
    raw = {**state, "net/key": jax.random.key_data(state["net/key"])}
    assert abstract.restore(state).kinds == abstract.restore(raw).kinds == KINDS
    assert abstract.restore(raw)["net/key"] == state["net/key"]
    some = state.filter(br.Param)
    with pytest.raises(br.StructureError, match=r"(?s)missing 'net/w'.*unexpected 'net/v'"):
        some.restore({"net": {"a": np.ones(2), "v": np.ones(2)}})
    with pytest.raises(br.EntryShapeError, match=r"'net/w'.*\(3, 2\)|'net/w': got float32\[3,2\]"):
        some.restore({"net/a": np.ones(2, np.float32), "net/w": np.ones((3, 2), np.float32)})
    with pytest.raises(br.EntryShapeError, match="lose more than precision"):
        state.filter(Calls).restore({"net/calls": np.float32(1)})
    halved = some.restore({"net/a": np.ones(2, np.float16), "net/w": np.ones((2, 2), np.float64)})
    assert {value.dtype for value in halved.values()} == {np.dtype(np.float32)}


def test_metadata_must_be_hashable_and_is_part_of_the_structure():
    one, two = (br.State({"w": 1.0}, {"w": br.Param(axes=axes)}) for axes in ("a", "b"))
    assert jax.tree.structure(one) != jax.tree.structure(two)
    with pytest.raises(ValueError, match=r"w: Param\(axes='b'\)"):
        jax.tree.map(lambda a, b: a, one, two)
