"""Names, sharing, get and put, in and out of lists, methods and processes."""

from __future__ import annotations

import collections
import copy
import os
import pickle
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bridges as br


class Dense(br.Module):
    """A layer without randomness: `x @ ones + zeros`."""

    def __init__(self, units=2):
        self.units = units

    def __call__(self, x):
        w = self.get("w", jnp.ones, (x.shape[-1], self.units))
        return x @ w + self.get("b", jnp.zeros, (self.units,))


X = jnp.ones((1, 2))


def paths(fn, *args, **kwargs):
    return sorted({path.rsplit("/", 1)[0] for path in br.init(fn)({}, *args, **kwargs)})


def test_names_come_from_attributes():
    class Net(br.Module):
        def __init__(self):
            self.enc = Dense()
            self.layers = [Dense(), Dense()]
            self.heads = {"a": Dense(), "b": Dense()}
            self.pair = (Dense(), Dense(name="own"))
            self.nested = [[Dense()], {"k": Dense()}]

        def __call__(self, x):
            every = [self.enc, *self.layers, *self.heads.values(), *self.pair, self.nested[0][0], self.nested[1]["k"]]
            for layer in every:
                x = layer(x)
            return x

    assert paths(Net(), X) == [
        "net/enc", "net/heads_a", "net/heads_b", "net/layers_0", "net/layers_1", "net/nested_0_0", "net/nested_1_k",
        "net/own", "net/pair_0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "container, names",
    [
        (list, ["net/layers_0", "net/layers_1", "net/layers_2"]),  # appended after the list was assigned
        (collections.deque, ["net/dense", "net/dense_1", "net/dense_2"]),  # nothing names them
    ],
)
def test_modules_of_a_container_are_named_in_their_order(container, names):
    class Net(br.Module):
        def __init__(self):
            self.layers = container()
            for units in (3, 4, 5):
                self.layers.append(Dense(units))

        def forward(self, x):
            return [layer(x) for layer in self.layers]

        def backward(self, x):
            return [layer(x) for layer in reversed(self.layers)]

    expected = dict(zip(names, (3, 4, 5), strict=True))
    for method in ("forward", "backward"):  # whichever runs first
        state = br.init(getattr(Net(), method))({}, X)
        assert {p: state[f"{p}/b"].shape[0] for p in expected} == expected


def test_inline_modules_are_numbered_and_prefixed_by_their_method():
    class Net(br.Module):
        def __call__(self, x):
            return self.encode(Dense()(Dense()(x)))

        def encode(self, x):
            return Dense()(x)

    assert paths(Net(), X) == ["net/dense", "net/dense_1", "net/encode_dense"]


def test_the_same_call_gives_the_same_inline_modules():
    class Net(br.Module):
        def __call__(self, x):
            return Dense()(x)

    net = Net()
    assert paths(lambda x: net(net(x)), X) == ["net/dense"]


def test_super_and_the_overriding_method_do_not_share_inline_modules():
    class Base(br.Module):
        def __call__(self, x):
            return Dense(2)(x)

    class Child(Base):
        def __call__(self, x):
            return Dense(2)(super().__call__(x))

    assert paths(Child(), X) == ["child/dense", "child/dense_1"]


def test_inheritance_properties_and_super_init():
    class Base(br.Module):
        def __init__(self, units):
            self.enc = Dense(units)

        @property
        def bias(self):
            return self.get("bias", jnp.ones, (2,))

    class Child(Base):
        def __init__(self):
            super().__init__(2)
            self.dec = Dense(2)

        def __call__(self, x):
            return self.dec(self.enc(x)) + self.bias

    assert sorted(br.init(Child())({}, X)) == ["child/bias", "child/dec/b", "child/dec/w", "child/enc/b", "child/enc/w"]


def test_a_method_called_in_init_leaves_the_name_to_the_parent():
    class Enc(br.Module):
        def __init__(self):
            self.build(3)

        def build(self, units):
            self.layer = Dense(units)
            self.rest = [Dense(units)]
            self.local = {"f": Dense(units)}["f"]

        def __call__(self, x):
            return self.rest[0](self.layer(x))

    class Net(br.Module):
        def __init__(self):
            self.first = Enc()
            self.second = Enc()

        def __call__(self, x):
            return self.second(self.first(x))

    assert paths(Net(), X) == ["net/first/layer", "net/first/rest_0", "net/second/layer", "net/second/rest_0"]
    assert paths(lambda x: Net()(x), X) == paths(Net(), X)


def test_get_makes_a_submodule_once():
    class Net(br.Module):
        def __call__(self, x):
            assert self.get("h", Dense, 3) is self.get("h", Dense, 3)
            return self.get("h", Dense, 3)(x)

    assert sorted(br.init(Net())({}, X)) == ["net/h/b", "net/h/w"]


def test_one_instance_is_one_set_of_entries():
    class User(br.Module):
        def __init__(self, shared):
            self.shared = shared

        def __call__(self, x):
            return self.shared(x)

    class Net(br.Module):
        def __init__(self):
            self.emb = Dense()
            self.a, self.b = User(self.emb), User(self.emb)

        def __call__(self, x):
            return self.a(self.b(x))

    assert paths(Net(), X) == ["net/emb"]
    outside = Dense(name="outside")
    a, b = User(outside, name="a"), User(outside, name="b")
    assert paths(lambda x: a(b(x)), X) == ["outside"]


def test_two_root_modules_of_one_path_are_an_error():
    a, b = Dense(), Dense()
    with pytest.raises(br.NamingError, match=r"Two modules have the path 'dense'.*name="):
        br.init(lambda x: a(b(x)))({}, X)
    c = Dense(name="c")
    assert paths(lambda x: a(c(x)), X) == ["c", "dense"]


def test_two_root_modules_of_one_path_are_an_error_by_their_parts():
    class Net(br.Module):
        def __init__(self):
            self.enc = Dense()

    a, b = Net(), Net()
    with pytest.raises(br.NamingError, match="Two modules have the path 'net/enc'"):
        br.init(lambda x: a.enc(b.enc(x)))({}, X)


def test_a_root_module_and_an_inline_one_of_one_path_are_an_error():
    net = Dense()
    for order in (lambda x: Dense()(net(x)), lambda x: net(Dense()(x))):
        with pytest.raises(br.NamingError, match="Two modules have the path 'dense'"):
            br.init(order)({}, X)


def test_explicit_names_given_twice_are_an_error():
    class Net(br.Module):
        def __call__(self, x):
            return Dense(name="a")(Dense(name="a")(x))

    with pytest.raises(br.NamingError, match="'a' is taken already under 'net'"):
        br.init(Net())({}, X)

    class Twice(br.Module):
        def __init__(self):
            self.x = Dense(name="a")
            self.y = Dense(name="a")

    with pytest.raises(br.NamingError, match="taken"):
        Twice()
    with pytest.raises(br.NamingError, match="taken"):
        br.init(lambda x: Dense(name="a")(Dense(name="a")(x)))({}, X)


def test_a_submodule_of_get_and_an_inline_one_do_not_share_a_name():
    class First(br.Module):
        def __call__(self, x):
            x = self.get("h", Dense)(x)
            return Dense(name="h")(x)

    class Second(br.Module):
        def __call__(self, x):
            x = Dense(name="h")(x)
            return self.get("h", Dense)(x)

    class Third(br.Module):
        def __init__(self):
            self.h = Dense()

        def __call__(self, x):
            return self.h(self.get("h", Dense, 2)(x))

    for net in (First(), Second(), Third()):
        with pytest.raises(br.NamingError, match="'h' is taken"):
            br.init(net)({}, X)


def test_an_automatic_name_avoids_explicit_ones():
    class Net(br.Module):
        def __init__(self):
            self.a = Dense(name="dense")
            self.rest = collections.deque([Dense()])  # what no attribute names

        def __call__(self, x):
            return self.rest[0](self.a(x))

    assert paths(Net(), X) == ["net/dense", "net/dense_1"]


@pytest.mark.parametrize("name", ["", "a/b", "a b", "{x}", "a%", 3])
def test_a_bad_name_is_refused(name):
    with pytest.raises(br.NamingError, match="name"):
        Dense(name=name)


def test_internal_attributes_cannot_be_overwritten():
    class Net(br.Module):
        def __init__(self):
            self._path = "elsewhere"

    with pytest.raises(br.NamingError, match="'_path'"):
        Net()


def test_scopes_prefix_entries_and_modules():
    class Net(br.Module):
        def __call__(self, x):
            with br.scope("a") as path:
                assert path == "net/a"
                x = Dense()(x) + self.get("v", jnp.zeros, ())
                with br.scope("b"):
                    x = self.get("h", Dense)(x) + br.get("v", jnp.zeros, ())
            with br.scope("a"):
                x = Dense()(x)
            return x

    entries = sorted(p for p in br.init(Net())({}, X) if not p.endswith("/w"))
    assert entries == ["net/a/b/h/b", "net/a/b/v", "net/a/dense/b", "net/a/dense_1/b", "net/a/v"]

    def plain(x):
        with br.scope("s"):
            return br.get("v", jnp.zeros, ()) + x

    assert list(br.init(plain)({}, 1.0)) == ["s/v"]


PROGRAM = """
import jax, jax.numpy as jnp, bridges as br
class Dense(br.Module):
    def __call__(self, x):
        return x + self.get('b', jax.random.normal, br.rng(), (2,))
class Net(br.Module):
    def __init__(self):
        self.layers = {k: Dense() for k in ('x', 'y')}
        self.rest = [Dense() for _ in range(2)]
        self.more = []
        self.more.append(Dense())
    def __call__(self, x):
        for l in [*self.layers.values(), *self.rest, *self.more, Dense(), Dense()]:
            x = l(x)
        return x + self.get('t', lambda: {'p': (jnp.ones(1), jnp.ones(1)), 'q': jnp.ones(1)})['q']
state = br.init(Net())({}, jnp.ones(2), seed=0)
print(sorted((k, v.sum().item()) for k, v in state.items()))
"""


def test_paths_and_values_are_those_of_every_process():
    outputs = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"}
        outputs.add(subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, check=True).stdout)
    (text,) = outputs
    assert b"net/more" in text or b"net/dense" in text


class Counter(br.Module):
    def __call__(self):
        n = self.get("n", jnp.zeros, (), jnp.int32)
        self.put("n", n + 1)
        assert self.get("n") is not n
        return self.get("n")


def test_get_put_and_relative_names():
    class Net(br.Module):
        def __call__(self):
            self.get("w", jnp.ones, 2)
            counter = self.get("c", Counter)
            counter()
            found = self.getm()
            assert sorted(found) == ["net/c/n", "net/w"]
            found["w"] += 1
            found["c/n"] += 1
            assert "w" in found and "net/w" in found and "v" not in found
            self.putm(found)
            self.put({"w": self.get("w") * 10})
            self.put({"net/w": self.get("w") + 1})
            found = self.getm("w")
            assert list(found) == ["net/w"]
            doubled = found["w"]
            assert self.getm("nothing") == {}
            assert list(self.getm(".*n$")) == ["net/c/n"]
            self.put(self.getm())
            return counter.getm()["n"], doubled

    state = br.init(Net())({})
    assert state["net/c/n"] == 0
    state, (count, doubled) = br.pure(Net())(state)
    assert count == 2 and state["net/c/n"] == 2
    np.testing.assert_array_equal(doubled, [21, 21])


def test_getm_is_a_copy():
    class Net(br.Module):
        def __call__(self):
            self.get("w", jnp.ones, 2)
            found = self.getm()
            found["w"] = jnp.zeros(2)
            return self.get("w")

    np.testing.assert_array_equal(br.pure(Net())({}, create=True)[1], [1, 1])


def test_getm_of_one_module_excludes_a_sibling_with_its_name_as_prefix():
    a, b = Dense(name="net"), Dense(name="net2")

    def run(x):
        b(a(x))
        return list(a.getm())

    assert br.pure(run)({}, X, create=True)[1] == ["net/b", "net/w"]


TREE = (jnp.ones(2), {"a/b": jnp.zeros(1), "c": ()}, [None, br.State({"net/w": jnp.ones(1)})])


class Trees(br.Module):
    def __call__(self, x):
        params = {"w": x, "b": x}
        opt = self.get("opt", optax.adam(1e-3).init, params)
        tree = self.get("tree", lambda: TREE)
        empty = self.get("empty", lambda: ())
        sgd = self.get("sgd", optax.sgd(0.1).init, params)
        assert jax.tree.structure(opt) == jax.tree.structure(optax.adam(1e-3).init(params))
        assert jax.tree.structure(tree) == jax.tree.structure(TREE)
        assert empty == () and jax.tree.structure(sgd) == jax.tree.structure(optax.sgd(0.1).init(params))
        self.put("opt", jax.tree.map(lambda x: x + 1, opt))
        self.put("tree", jax.tree.map(lambda x: x + 1, tree))
        self.put("empty", ())
        return self.get("opt"), self.get("tree"), self.get("empty")


def test_trees_come_back_whole():
    net = Trees()
    state = br.init(net)({}, X)
    assert all(isinstance(value, jax.Array) for value in state.values())
    assert "trees/tree/1/a%2Fb" in state
    for module in (net, Trees()):  # the second knows nothing of the structures
        new, (opt, tree, empty) = jax.jit(br.pure(module))(state, X)
        assert type(opt[0]).__name__ == "ScaleByAdamState" and opt[0].count == 1 and empty == ()
        assert isinstance(tree[2][1], br.State) and tree[1]["c"] == ()
        assert set(new) == set(state)


def test_trees_come_back_whole_in_a_fresh_process(tmp_path):
    state = br.init(Trees())({}, X)
    np.savez(tmp_path / "state.npz", **state)
    (tmp_path / "state.pkl").write_bytes(pickle.dumps(state))
    program = textwrap.dedent(f"""
        import pickle, sys, numpy as np
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import test_module as t, bridges as br
        import pathlib
        folder = pathlib.Path({str(tmp_path)!r})
        loaded = pickle.loads((folder / 'state.pkl').read_bytes())
        plain = dict(np.load(folder / 'state.npz'))
        for state in (loaded, plain):
            new, (opt, tree, empty) = br.pure(t.Trees())(state, t.X)
            assert opt[0].count == 1 and empty == () and isinstance(tree[2][1], br.State)
        print('fine')
    """)
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert out.stdout == "fine\n", out.stderr


def test_a_tree_of_another_structure_is_refused():
    class Net(br.Module):
        def __call__(self, value):
            self.get("t", lambda: {"a": jnp.ones(1), "b": jnp.ones(2)})
            self.put("t", value)

    for value in ({"a": jnp.ones(1)}, {"a": jnp.ones(1), "c": jnp.ones(2)}, jnp.ones(1), (jnp.ones(1), jnp.ones(2))):
        with pytest.raises(br.EntryShapeError, match=r"'net/t'"):
            br.init(Net())({}, value)
    with pytest.raises(br.EntryShapeError, match=r"'net/t/b' is float32\[2\] and was written with float32\[3\]"):
        br.init(Net())({}, {"a": jnp.ones(1), "b": jnp.ones(3)})


def test_an_array_is_not_replaced_by_a_tree():
    class Net(br.Module):
        def __call__(self, value):
            self.get("w", jnp.ones, 1)
            self.put("w", value)

    with pytest.raises(br.EntryShapeError, match="single array"):
        br.init(Net())({}, (jnp.ones(1),))


def test_an_entry_below_an_array_is_refused():
    class Net(br.Module):
        def __call__(self, x):
            self.get("h", jnp.ones, 1)
            return Dense(name="h")(x)

    with pytest.raises(br.CollisionError, match=r"'net/h/w' would lie below 'net/h'"):
        br.init(Net())({}, X)


def test_reading_a_tree_without_its_constructor_says_what_to_do():
    class Net(br.Module):
        def __call__(self):
            return self.get("t")

    with pytest.raises(br.BridgeError, match=r"'net/t'.*tree"):
        br.pure(Net())({"net/t/a": jnp.ones(1), "net/t/b": jnp.ones(1)})


def test_one_module_serves_states_of_different_sizes():
    class Net(br.Module):
        def __call__(self, x):
            w = self.get("w", jnp.ones, x.shape)
            opt = self.get("opt", optax.adam(1e-3).init, {"w": w})
            self.put("opt", opt)
            return (w * x).sum()

    net = Net()
    small, large = br.init(net)({}, jnp.ones(2)), br.init(net)({}, jnp.ones(3))
    for _ in range(2):
        br.pure(net)(small, jnp.ones(2))
        br.pure(net)(large, jnp.ones(3))


def test_values_that_are_no_arrays_are_refused():
    class Net(br.Module):
        def __call__(self):
            return self.get("w", lambda: "text")

    with pytest.raises(br.StructureError, match=r"'net/w'.*str"):
        br.init(Net())({})


def test_get_takes_values_kinds_and_partials():
    import functools

    class Calls(br.Variable):
        pass

    class Net(br.Module):
        def __call__(self):
            self.get("n", 3, kind=Calls)
            self.get("x", np.float32(2))
            self.get("m", functools.partial(Counter))()
            return self.get("p", functools.partial(jnp.ones, shape=(2,)), kind=br.BatchStat)

    state = br.init(Net())({})
    assert state.kind("net/n") is Calls and state["net/n"].dtype == jnp.int32 and not state["net/n"].weak_type
    assert state.kind("net/p") is br.BatchStat and isinstance(state["net/x"], jax.Array)


def test_a_factory_of_modules_is_a_submodule():
    def make(units):
        return Dense(units)

    class Net(br.Module):
        def __call__(self, x):
            return self.get("h", make, 3)(x)

    net = Net()
    state = br.init(net)({}, X)
    assert sorted(p for p in state) == sorted(br.init(Net())({}, X))
    assert br.pure(net)(state, X)[1].shape == (1, 3)
    assert br.pure(Net())(state, X)[1].shape == (1, 3)
    assert all(p.startswith("net/h/") for p in state)


def test_modules_are_pickled_and_deep_copied():
    net = Trees()
    state = br.init(net)({}, X)
    for other in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net), copy.copy(net)):
        assert other.path == net.path
        br.pure(other)(state, X)
    fresh = pickle.loads(pickle.dumps(Dense(3, name="d")))
    assert sorted(br.init(fresh)({}, X)) == ["d/b", "d/w"]


def test_a_module_used_under_jit_holds_no_tracers():
    class Net(br.Module):
        def __call__(self, x):
            self.inner = Dense()
            self.unused = [Dense()]
            return self.get("h", Dense)(x) + Counter(name="c")()

    net = Net()
    state = br.init(net)({}, X)
    jax.jit(br.pure(net))(state, X)
    with jax.checking_leaks():
        jax.jit(lambda s, x: br.pure(net)(s, x))(state, X)


def test_out_of_context_use_says_to_wrap():
    for use in (lambda: Dense()(X), br.rng, br.state, br.context, lambda: br.get("x", 1), lambda: br.flag("train")):
        with pytest.raises(br.ContextError, match=r"pure\(fn\)"):
            use()
    with pytest.raises(br.ContextError, match=r"bridges\.init"):
        br.grad(lambda: 1.0, ["x"])()


def test_errors_carry_the_module_path():
    class Inner(br.Module):
        def __call__(self):
            raise ZeroDivisionError("no")

    class Net(br.Module):
        def __call__(self):
            return self.get("inner", Inner)()

    with pytest.raises(ZeroDivisionError) as info:
        br.pure(Net())({})
    assert info.value.__notes__ == ["This happened in Inner.__call__ of the module 'net/inner'."]


def test_get_at_the_root_of_a_plain_function():
    def fn():
        n = br.get("n", jnp.zeros, (), jnp.int32)
        t = br.get("t", lambda: (n, n))
        br.context().update({"n": n + 1})
        return br.get("n"), t

    state = br.init(fn)({})
    assert sorted(state) == ["n", "t/0", "t/1"]
    state, (n, t) = br.pure(fn)(state)
    assert n == 1 and len(t) == 2


def test_an_entry_has_a_name():
    for name in ("", "a//b", "a/"):
        with pytest.raises(br.NamingError, match="empty segment"):
            br.init(lambda name=name: br.get(name, jnp.ones, ()))({})


def test_a_module_assigned_in_a_method_has_the_same_path_in_every_call():
    class Net(br.Module):
        def __call__(self, x):
            self.h = Dense()
            return self.h(x)

    net = Net()
    assert paths(lambda x: net(net(x)), X) == paths(net, X) == ["net/h"]


def test_checkpoint_may_decorate_a_method():
    class Block(br.Module):
        @br.checkpoint
        def inner(self, x):
            return jnp.sin(x * self.get("w", jnp.ones, ()))

        def __call__(self, x):
            return self.inner(x)

    block = Block()
    state = br.init(block)({}, jnp.float32(0.5))
    gradient = jax.grad(lambda s: br.pure(block)(s, jnp.float32(0.5))[1])(state)
    np.testing.assert_allclose(gradient["block/w"], 0.5 * np.cos(0.5), rtol=1e-6)
    assert "prevent_cse" in str(jax.make_jaxpr(lambda s: br.pure(block)(s, jnp.float32(0.5))[1])(state))


@pytest.mark.parametrize("name", ["path", "name", "get", "put"])
def test_a_method_may_not_take_a_name_of_the_base_class(name):
    with pytest.raises(br.NamingError, match=f"defines '{name}'"):
        type("Net", (br.Module,), {name: lambda self: None})
