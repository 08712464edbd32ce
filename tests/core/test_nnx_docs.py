"""Each example of the two NNX documents, with the core: the README of NNX 0.0.8, and "NNX Basics" of Flax.

Adapted as `docs/nnx.md` says: a module holds no arrays, so that it is its own `ModuleDef` and the state stands beside it;
shapes that fit, `jax.tree.map` for the removed `jax.tree_map`. The second document's examples are compared with Flax's own
run of them; `tests/nnx_side` has them for modules made by `ToNNX`.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bridges as br

# The README of NNX 0.0.8 --------------------------------------------------------------------------------------------


class Count(br.Variable):
    pass


class Linear(br.Module):
    din: int
    dout: int

    def __call__(self, x):
        w = self.get("w", lambda: jax.random.uniform(br.rng("params"), (self.din, self.dout)), kind=br.Param)
        b = self.get("b", jnp.zeros, (self.dout,), kind=br.Param)
        count = self.get("count", jnp.zeros, (), jnp.int32, kind=Count)  # track the number of calls
        self.put("count", count + 1)
        return x @ w + b


X, Y = jnp.ones((8, 12)), jnp.zeros((8, 2))


def test_getting_started():
    model = Linear(din=12, dout=2)
    state = br.init(model)({}, X, seed={"params": 0})
    assert state.kinds == {"linear/b": br.Param, "linear/count": Count, "linear/w": br.Param}
    # Forward pass and verify the call count
    y, state = br.apply(model, state)(X)
    assert y.shape == (8, 2) and state["linear/count"] == 1


def test_training_with_the_functional_api():
    model = Linear(din=12, dout=2)
    params, counts = br.init(model)({}, X, seed=0).partition(br.Param, Count)

    @jax.jit
    def train_step(params, counts, x, y):
        def loss_fn(params):
            y_pred, updates = br.apply(model, params, counts)(x)
            loss = jnp.mean((y_pred - y) ** 2)
            return loss, updates.filter(Count)

        # compute gradient
        grads, counts = jax.grad(loss_fn, has_aux=True)(params)
        # SGD update
        params = jax.tree.map(lambda w, g: w - 0.1 * g, params, grads)
        return params, counts

    # execute the training step
    before = params
    params, counts = train_step(params, counts, X, Y)
    params, counts = train_step(params, counts, X, Y)
    state = params.merge(counts)
    assert state["linear/count"] == 2 and train_step._cache_size() == 1
    assert (params["linear/w"] != before["linear/w"]).all() and params.kinds == before.kinds


def test_training_with_lifted_transforms():
    model = Linear(din=12, dout=2)

    def train_step(x, y):
        def loss_fn(x, y):
            return jnp.mean((model(x) - y) ** 2)

        # compute gradient
        loss, params, grads = br.grad(loss_fn, model)(x, y)
        # SGD update
        model.put(jax.tree.map(lambda w, g: w - 0.1 * g, params, grads))
        return loss

    step = br.jit(train_step)
    state = br.init(train_step)({}, X, Y, seed=0)
    # execute the training step
    state, first = step(state, X, Y)
    state, second = step(state, X, Y)
    assert state["linear/count"] == 2 and second < first


class Foo(br.Module):
    def __init__(self):
        self.submodule = Linear(din=2, dout=4)
        # static attributes
        self.int = 1
        self.float = 2.0
        self.str = "hello"
        self.list = [1, 2, 3]

    def __call__(self, x):
        # entries: of a kind, or of none in particular; arrays and trees of arrays
        self.get("variable", jnp.array, 1, kind=br.Param)
        self.get("np_buffer", np.array, 2)
        self.get("jax_buffer", jnp.array, 3)
        self.get("node", lambda: [jnp.array(4), jnp.array(5)])
        return self.submodule(x) * self.int

    def some_method(self, x):
        return x * self.float * self.get("variable")


def test_modules():
    state = br.init(Foo())({}, jnp.ones((1, 2)), seed=0)
    assert {path: kind.__name__ for path, kind in state.kinds.items()} == {
        "foo/jax_buffer": "Variable",
        "foo/node/0": "Variable",
        "foo/node/1": "Variable",
        "foo/np_buffer": "Variable",
        "foo/submodule/b": "Param",
        "foo/submodule/count": "Count",
        "foo/submodule/w": "Param",
        "foo/variable": "Param",
    }
    foo = Foo()
    assert br.pure(lambda: foo.get("node", lambda: [jnp.array(0)] * 2))(state)[1] == [4, 5]
    assert (foo.int, foo.float, foo.str, foo.list) == (1, 2.0, "hello", [1, 2, 3])


def test_functional_api():
    model, x = Foo(), jnp.ones((3, 2))
    state = br.init(model)({}, x, seed=0)
    # run __call__
    y, state = br.apply(model, state)(x)
    # run some_method
    z, state = br.apply(model, state).some_method(x)
    # run submodule
    again, state = br.apply(model, state).submodule(x)
    assert (y == again).all() and (z == 2).all() and state["foo/submodule/count"] == 2
    # states are pytrees, and a module is none: it goes into a transformation as what it is, code
    assert jax.tree.leaves(model) == [model] and len(jax.tree.leaves(state)) == 8
    out, _ = jax.jit(lambda state, x: br.apply(model, state)(x))(state, x)
    np.testing.assert_allclose(out, y, rtol=1e-6)


class Normed(br.Module):
    def __init__(self):
        self.linear = Linear(din=2, dout=2)
        self.norm = br.FlaxModule(nn.BatchNorm)

    def __call__(self, x):
        return self.norm(self.linear(x))


def test_partitioning_state():
    model, x = Normed(), jnp.ones((3, 2))
    state = br.init(model)({}, x, seed=0, flags={"train": False})
    # all of it
    assert state.partition() == state.partition(...) == state
    # verify that the state contains only params, else raise an error
    with pytest.raises(br.FilterError, match="norm/batch_stats/mean"):
        state.partition(br.Param)
    # split the state into params and batch_stats, verify nothing is left
    with pytest.raises(br.FilterError, match="linear/count"):
        state.partition(br.Param, br.BatchStat)
    # if there is anything left, use the `...` filter to capture it
    params, batch_stats, rest = state.partition(br.Param, br.BatchStat, ...)
    assert [len(part) for part in (params, batch_stats, rest)] == [4, 2, 1]
    # a predicate (path, value) -> bool
    matrices, rest_ = state.partition(lambda path, value: value.ndim == 2, ...)
    assert list(matrices) == ["normed/linear/w"] and len(rest_) == 6
    # to reconstruct, merge
    merged = params.merge(batch_stats, rest)
    assert jax.tree.structure(merged) == jax.tree.structure(state)
    # the same is true for apply
    y, new = br.apply(model, params, batch_stats, rest, flags={"train": False})(x)
    params, batch_stats, rest = new.partition(br.Param, br.BatchStat, ...)
    assert y.shape == (3, 2) and rest["normed/linear/count"] == 1
    # only get params; params and batch_stats
    assert new.filter(br.Param) == params
    one, two = new.filter(br.Param, br.BatchStat)
    assert one == params and two == batch_stats
    # the module's own forms, where its state runs
    inside = br.pure(lambda: (model.partition(br.Param, ...)[0], model.linear.filter(Count)))(new)[1]
    assert inside[0] == params and inside[1] == rest


def test_filters():
    state = br.init(Foo())({}, jnp.ones((1, 2)), seed=0)
    rest = state.filter(br.Not(br.Param))
    buffers = state.filter(br.arrays)  # all entries are arrays: those of no kind are
    plain = state.filter(lambda path, value: state.kind(path) is br.Variable)
    some = state.filter((Count, "foo/submodule"))  # any of these
    assert set(rest) == set(state) - {"foo/variable", "foo/submodule/w", "foo/submodule/b"} and buffers == state
    assert list(plain) == ["foo/jax_buffer", "foo/node/0", "foo/node/1", "foo/np_buffer"]
    assert list(some) == ["foo/submodule/b", "foo/submodule/count", "foo/submodule/w"]


class Captures(br.Module):
    def __call__(self, x):
        w = self.get("w", lambda: jax.random.uniform(br.rng("params"), (12, 2)))
        y = x @ w + self.get("b", jnp.zeros, (2,))
        self.put("y", y, kind=br.Intermediate)
        return y


def test_capturing_intermediate_values():
    model = Captures()
    params = br.init(model)({}, X, seed=0).filter(br.Param)
    # y is made by the call, wherever that runs
    y, state = br.apply(model, params)(X)
    intermediates = state.pop(br.Intermediate)
    assert list(intermediates) == ["captures/y"] and (intermediates["captures/y"] == y).all() and state == params
    # "pop" by partition, or filter without removing
    _, state = jax.jit(lambda params: br.apply(model, params)(X))(params)
    intermediates, rest = state.partition(br.Intermediate, ...)
    assert list(state.filter(br.Intermediate)) == list(intermediates) == ["captures/y"] and list(rest) == list(params)

    # pop_state of the module, where its state runs
    def call(x):
        y = model(x)
        return y, model.pop(br.Intermediate)

    state, (y, popped) = br.pure(call)(params, X)
    assert (popped["captures/y"] == y).all() and state == params


class Block(br.Module):
    dim: int

    def __init__(self):
        self.linear = br.FlaxModule(nn.Dense, self.dim, kernel_init=nn.initializers.uniform(1.0))
        self.dropout = br.FlaxModule(nn.Dropout, 0.5)

    def __call__(self, x):
        return jax.nn.gelu(self.dropout(self.linear(x)))


class ScanMLP(br.Module):
    """With the lifted scan: it makes, slices and writes the stacked entries."""

    dim: int
    n_layers: int

    def __init__(self):
        self.layers = Block(dim=self.dim)

    def __call__(self, x):
        scan_fn = lambda x, _: (self.layers(x), None)  # noqa: E731
        x, _ = br.scan(scan_fn, x, length=self.n_layers, state_axes={self.layers: 0})
        return x


def manual(block, n_layers, stacked, x, key):
    """The same by hand, as the document has it: parameters and dropout keys are inputs of JAX's own scan."""

    def scan_fn(x, inputs):
        params, dropout_key = inputs
        return br.apply(block, params, seed={"dropout": dropout_key}, flags={"train": True})(x)

    return jax.lax.scan(scan_fn, x, (stacked, jax.random.split(key, n_layers)))


def test_scan_over_layers():
    model, x = ScanMLP(dim=10, n_layers=5), jnp.ones((3, 10))
    state = br.init(model)({}, x, seed={"params": 0}, flags={"train": False})
    kernels = state["scan_mlp/layers/linear/params/kernel"]
    assert kernels.shape == (5, 10, 10) and len(np.unique(kernels)) == 500  # each layer has different parameters
    run = br.jit(model)
    y = run(state, x, seed={"dropout": 1}, flags={"train": True})[1]
    other = run(state, x, seed={"dropout": 2}, flags={"train": True})[1]
    assert y.shape == (3, 10) and (y != other).any()
    still = run(state, x, flags={"train": False})[1]
    want = x
    for kernel in kernels:
        want = jax.nn.gelu(want @ kernel)
    np.testing.assert_allclose(still, want, rtol=1e-5, atol=1e-7)


def test_scan_over_layers_by_hand():
    block, x = Block(dim=10, name="block"), jnp.ones((3, 10))
    make = lambda key: br.init(block)({}, x, seed={"params": key}, flags={"train": False})  # noqa: E731
    stacked = jax.vmap(make)(jax.random.split(jax.random.key(0), 5))
    run = jax.jit(manual, static_argnums=(0, 1))
    y, new = run(block, 5, stacked, x, jax.random.key(1))
    other, _ = run(block, 5, stacked, x, jax.random.key(2))
    assert y.shape == (3, 10) and (y != other).any()
    assert jax.tree.structure(new) == jax.tree.structure(stacked)


class SharingBlock(br.Module):
    def __init__(self, linear):
        self.linear = linear
        self.bn = br.FlaxModule(nn.BatchNorm)

    def __call__(self, x):
        return nn.relu(self.bn(self.linear(x)))


class Sharing(br.Module):
    def __init__(self):
        shared = br.FlaxModule(nn.Dense, 2)
        self.block1 = SharingBlock(shared)
        self.block2 = SharingBlock(shared)

    def __call__(self, x):
        return self.block2(self.block1(x))


def test_shared_state():
    model = Sharing()

    def loss_fn(x, y):
        with br.flags(use_running_average=True):
            y_pred = model(x)
        return jnp.mean((y - y_pred) ** 2)

    def train(x, y):
        loss, params, grads = br.grad(loss_fn, model)(x, y)
        model.put(jax.tree.map(lambda w, g: w - 0.1 * g, params, grads))
        return loss

    x, y = jax.random.normal(jax.random.key(1), (5, 2)), jnp.zeros((5, 2))
    state = br.init(train)({}, x, y, seed=0)
    assert [path for path in state if "kernel" in path] == ["sharing/dense/params/kernel"]
    new, loss = br.jit(train)(state, x, y)
    # it is in sync at all times in both blocks, since it is one
    assert (new["sharing/dense/params/kernel"] != state["sharing/dense/params/kernel"]).any()
    assert all((new[path] == state[path]).all() for path in state.filter(br.BatchStat))
    assert br.jit(train)(new, x, y)[1] < loss


# NNX Basics ---------------------------------------------------------------------------------------------------------


class Basic(br.Module):
    din: int
    dout: int

    def __call__(self, x):
        w = self.get("w", lambda: jax.random.uniform(br.rng(), (self.din, self.dout)), kind=br.Param)
        count = self.get("count", jnp.zeros, (), jnp.int32, kind=Count)
        self.put("count", count + 1)
        return x @ w


class NativeCount(nnx.Variable):
    pass


class Native(nnx.Module):
    def __init__(self, din, dout, *, rngs):
        self.din, self.dout = din, dout
        self.w = nnx.Param(rngs.uniform((din, dout)))
        self.count = NativeCount(jnp.array(0))

    def __call__(self, x):
        self.count[...] += 1
        return x @ self.w


def pair():
    """Returns the document's model, and the core's with the state of the same values."""
    native, model = Native(2, 5, rngs=nnx.Rngs(0)), Basic(din=2, dout=5, name="model")
    state = br.State({"model/w": native.w[...], "model/count": native.count[...]}, {"model/count": Count})
    return native, model, state


IN, OUT = jnp.ones((3, 2)), jnp.ones((3, 5))


def test_pytrees_and_variables():
    native, model, state = pair()
    y, state = br.apply(model, state)(IN)
    np.testing.assert_array_equal(y, native(IN))
    assert y.shape == (3, 5) and state["model/count"] == native.count[...] == 1
    # jax.tree.map works directly on the state
    doubled = jax.tree.map(lambda x: x * 2, state)
    np.testing.assert_allclose(doubled["model/w"].sum(), 2 * state["model/w"].sum(), rtol=1e-6)
    leaves = {jax.tree_util.keystr(path): value for path, value in jax.tree.leaves_with_path(state)}
    assert list(leaves) == ["['model/count']", "['model/w']"]


def test_rngs():
    def draw():
        key1 = br.rng()
        key2 = br.rng()  # another one
        return key1, key2, jax.random.normal(br.rng(), (2, 3))

    _, (key1, key2, arr) = br.pure(draw)({}, seed=0)
    assert key1 != key2 and arr.shape == (2, 3)
    assert br.pure(draw)({}, seed=0)[1][0] == key1  # nothing is kept: the same seed, the same keys

    # Kept in the state, as Rngs keep them: a key and a count.
    class Rngs(br.Module):
        def __call__(self):
            key = self.get("key", br.rng, kind=br.RngState)
            count = self.get("count", jnp.zeros, (), jnp.uint32, kind=br.RngState)
            self.put("count", count + 1)
            return jax.random.fold_in(key, count)

    rngs = Rngs()
    state = br.init(rngs)({}, seed=0)
    assert list(state.filter(br.RngState)) == ["rngs/count", "rngs/key"]
    one, state = br.apply(rngs, state)()
    two, state = br.apply(rngs, state)()
    assert one != two and state["rngs/count"] == 2


class MLP(br.Module):
    din: int
    dmid: int
    dout: int

    def __init__(self):
        self.linear1 = Basic(din=self.din, dout=self.dmid)
        self.linear2 = Basic(din=self.dmid, dout=self.dout)

    def __call__(self, x):
        return self.linear2(jax.nn.relu(self.linear1(x)))


def test_nested_modules():
    mlp = MLP(din=2, dmid=16, dout=5)
    state = br.init(mlp)({}, IN, seed=0)
    y, state = br.apply(mlp, state)(IN)
    assert y.shape == (3, 5) and list(state) == [f"mlp/linear{n}/{name}" for n in (1, 2) for name in ("count", "w")]
    assert state["mlp/linear1/w"].shape == (2, 16) and state["mlp/linear2/count"] == 1


def test_jax_transforms_are_pure():
    native, model, state = pair()
    forward = jax.jit(lambda state, x: br.apply(model, state)(x)[0])  # what it does to the state is not handed out
    y = forward(state, IN)
    np.testing.assert_allclose(y, jax.jit(lambda model, x: model(x))(native, IN), rtol=1e-6)
    assert state["model/count"] == native.count[...] == 0


def test_jax_transforms_with_updates():
    native, model, state = pair()

    @jax.jit
    def forward(state, x):
        y, new = br.apply(model, state)(x)
        return y, new.filter(Count)  # propagate state

    y, updates = forward(state, IN)
    state = state | updates  # apply state updates
    assert state["model/count"] == 1 and state.kinds == {"model/count": Count, "model/w": br.Param}

    @jax.jit
    def of_flax(model, x):
        y = model(x)
        return y, nnx.state(model, NativeCount)

    wanted, updates = of_flax(native, IN)
    nnx.update(native, updates)
    np.testing.assert_array_equal(y, wanted)
    assert native.count[...] == 1


def of_flax(lifted):
    """Returns the weights after the document's training step with JAX's transformations, or with NNX's."""
    model = Native(2, 5, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    def train_step(model, optimizer, x, y):
        graphdef, params, nondiff = nnx.split(model, nnx.Param, ...)

        def loss_fn(params, nondiff):
            model = nnx.merge(graphdef, params, nondiff if lifted else nnx.clone(nondiff))
            loss = jnp.mean((model(x) - y) ** 2)
            return loss, nnx.state(model, NativeCount)

        grads, updates = (nnx if lifted else jax).grad(loss_fn, has_aux=True)(params, nondiff)
        nnx.update(model, updates)
        optimizer.update(model, grads)
        return nnx.state((model, optimizer))

    updates = (nnx if lifted else jax).jit(train_step)(model, optimizer, IN, OUT)
    nnx.update((model, optimizer), updates)
    return model.w[...], model.count[...], optimizer.step[...]


def test_training_step_with_jax_transforms():
    _, model, state = pair()
    optimizer = optax.adam(1e-3)
    opt_state = optimizer.init(state.filter(br.Param))

    @jax.jit
    def train_step(state, opt_state, x, y):
        params, nondiff = state.partition(br.Param, ...)

        def loss_fn(params):
            out, new = br.apply(model, params, nondiff)(x)
            return jnp.mean((out - y) ** 2), new.filter(Count)  # propagate state

        grads, updates = jax.grad(loss_fn, has_aux=True)(params)
        moves, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, moves).merge(updates), opt_state

    state, opt_state = train_step(state, opt_state, IN, OUT)
    w, count, step = of_flax(lifted=False)
    np.testing.assert_allclose(state["model/w"], w, rtol=1e-6)
    assert state["model/count"] == count == 1 and opt_state[0].count == step == 1
    assert jax.tree.leaves(opt_state[0].mu)[0].shape == (2, 5) and isinstance(opt_state[0].mu, br.State)


def test_training_step_with_lifted_transforms():
    _, model, state = pair()
    optimizer = br.OptaxModule(optax.adam, 1e-3, name="optimizer")

    def train_step(x, y):
        return optimizer(model, lambda: jnp.mean((model(x) - y) ** 2))

    step = br.jit(train_step)
    state = br.init(train_step)(state, IN, OUT)
    state, metrics = step(state, IN, OUT)  # model and optimizer, weights, counts and moments: all of it is the state
    w, count, steps = of_flax(lifted=True)
    np.testing.assert_allclose(state["model/w"], w, rtol=1e-6)
    counts = [value for path, value in state.items() if path.startswith("optimizer") and path.endswith("count")]
    assert state["model/count"] == count == 1 and counts == [steps] and metrics["loss"] > 0


class Value(br.Module):
    def __call__(self):
        return self.get("p", jnp.ones, (), kind=br.Param)


class Tied(br.Module):
    def __init__(self, a, b):
        self.a, self.b = a, b

    def __call__(self, x):
        self.a.put("p", self.a() + 1.0)
        return self.a() * x + self.b()


def test_graph_mode():
    """One value in two places: a module passed to both. Every transformation takes it, and there is no mode to choose."""
    p = Value(name="p")
    model = Tied(p, p)  # shared
    state = br.init(model)({}, jnp.array(1.0))
    assert list(state) == ["p/p"]
    state, y = br.jit(model)(state, jnp.array(1.0))
    assert y == 4.0 and state["p/p"] == 2.0

    native = nnx.Dict(a=nnx.Param(jnp.array(1.0)))
    native.b = native.a

    @nnx.jit(graph=True, graph_updates=True)
    def forward(model, x):
        model.a[...] += 1.0
        return model.a * x + model.b

    assert forward(native, jnp.array(1.0)) == y and native.b[...] == 2.0


def test_in_place_updates():
    """Hijax Variables change in place under jax.jit; here the state that comes out takes the place of what went in."""
    v = Value(name="v")

    def inc():
        v.put("p", v() + 1)

    step = br.jit(inc, donate_argnums=0)  # and its memory is used again
    state = br.init(inc)({})
    first = state["v/p"]
    state, _ = step(state)
    assert state["v/p"] == 2 and first.is_deleted()
    # What a loss captures is the running state: nothing is passed, and gradients are of the entries named.
    _, (loss, _, grads) = br.pure(lambda: br.grad(lambda: v() ** 2, v)())(state)
    assert loss == 4 and grads["v/p"] == 4
