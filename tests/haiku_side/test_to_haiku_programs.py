"""Parts as Haiku modules: compiled steps, training, threads, files."""

from __future__ import annotations

import pickle
import threading

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import bridges as br
from tests.haiku_side.models import same
from tests.haiku_side.to_haiku_models import (
    KEY,
    NET,
    NNX_NET,
    Net,
    X,
    first,
    native_net,
    nnx_native,
    randomised,
)
from tests.hlo import compiled, opcodes


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


def test_conventions_place_the_layers_of_a_guest():
    """The spec of a program has no type for a guest's entries, so that leaf names and ranks say what they are."""
    x = jnp.ones((2, 3))

    def old(x):
        return hk.Linear(2, name="head")(hk.Linear(4, name="encoder")(x))

    def new(x):
        return br.ToHaiku(nnx.Linear, 4, 2, name="head")(hk.Linear(4, name="encoder")(x))

    src, dst = (br.haiku_adapter.spec(fn, x) for fn in (old, new))
    assert {path: layer.type for path, layer in dst.layers.items() if "ToHaiku" not in layer.type} == {
        "encoder": "haiku.Linear"
    }
    mapping = br.Mapping.loads("""
[modules]
"head" = "head"
[[rules]]
src = "params/encoder/{leaf}"
dst = "params/encoder/{leaf}"
""")
    plan = (mapping | br.conventions("haiku", "nnx")).plan(src, dst)
    net = hk.without_apply_rng(hk.transform(old))
    params = jax.tree.map(lambda p: p + 0.5, net.init(KEY, x))
    moved, _ = br.haiku_adapter.unflatten(plan.forward(br.haiku_adapter.flatten(params)))
    assert same(net.apply(params, x), hk.without_apply_rng(hk.transform(new)).apply(moved, x))
