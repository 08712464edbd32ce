"""`ToLinen` in training: `TrainState`, checkpoints, partitioned variables, compiled programs, parts in parts."""

from __future__ import annotations

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx, serialization
from flax.training.train_state import TrainState

import bridges as br
from bridges.linen_adapter import ToLinen
from tests.hlo import compiled, opcodes
from tests.linen.models import inputs, same
from tests.linen.to_linen_models import KEY, Core, LinenNet, Net, X, batch_net, close, flat, initial

LABELS = jnp.array([0, 1, 1, 0])


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


class State(TrainState):
    rest: object


# Training ------------------------------------------------------------------------------------------------------------


def linen_losses(model, variables, steps, key=None, **kwargs):
    """Trains a Linen module in the usual way and returns its losses."""
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    state = State.create(apply_fn=model.apply, params=variables["params"], tx=optax.adam(1e-2), rest=rest)

    @jax.jit
    def step(state, key):
        def loss(params):
            rngs = None if key is None else {"dropout": key}
            out, rest = state.apply_fn(
                {"params": params, **state.rest}, X, rngs=rngs, mutable=list(state.rest), **kwargs
            )
            return cross_entropy(out), rest

        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, rest={**state.rest, **rest}), value

    losses = []
    for i in range(steps):
        state, value = step(state, None if key is None else jax.random.fold_in(key, i))
        losses.append(float(value))
    return losses, state


def haiku_losses(variables, steps):
    params, state = br.haiku_adapter.unflatten(br.State(flat(variables)))
    native, tx = hk.transform_with_state(batch_net), optax.adam(1e-2)
    opt = tx.init(params)

    @jax.jit
    def step(params, state, opt):
        def loss(params):
            out, new = native.apply(params, state, None, X)
            return cross_entropy(out), new

        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), state, opt, value

    losses = []
    for _ in range(steps):
        params, state, opt, value = step(params, state, opt)
        losses.append(float(value))
    return losses


def nnx_module(variables):
    module = Net(rngs=nnx.Rngs(params=0, dropout=0))
    entries = {p: v for p, v in br.nnx_adapter.flatten(module).items() if p.startswith("Rng")} | flat(variables)
    nnx.update(module, br.nnx_adapter.unflatten(br.State(entries), nnx.state(module)))
    return module


def nnx_losses(variables, steps, key):
    module = nnx_module(variables)
    optimizer = nnx.Optimizer(module, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer, key):
        nnx.reseed(module, dropout=key)
        value, grads = nnx.value_and_grad(lambda module: cross_entropy(module(X)))(module)
        optimizer.update(module, grads)
        nnx.pop(module, nnx.Intermediate)  # NNX sows into tuples that grow.
        return value

    with pytest.warns(DeprecationWarning, match="sow"):  # Of NNX itself.
        return [float(step(module, optimizer, jax.random.fold_in(key, i))) for i in range(steps)]


def test_haiku_trains_to_the_native_losses():
    variables = initial(ToLinen(batch_net), X)
    losses, _ = linen_losses(ToLinen(batch_net), variables, 20)
    np.testing.assert_allclose(losses, haiku_losses(variables, 20), rtol=1e-5)
    assert losses[-1] < losses[0]


def test_nnx_trains_to_the_native_losses():
    variables = initial(ToLinen(Net), X)
    losses, _ = linen_losses(ToLinen(Net), variables, 20, KEY)
    np.testing.assert_allclose(losses, nnx_losses(variables, 20, KEY), rtol=1e-5)


def test_core_trains_to_the_native_losses():
    variables = initial(ToLinen(Core), X)
    losses, _ = linen_losses(ToLinen(Core), variables, 20)
    state, tx = {p.partition("/")[2]: v for p, v in flat(variables).items()}, optax.adam(1e-2)
    params, rest = br.init(Core())(state, X).partition(br.Param, ...)
    rest = rest.filter(br.Not(br.Intermediate))
    opt, want = tx.init(params), []

    @jax.jit
    def step(params, rest, opt):
        def loss(params):
            new, out = br.pure(Core())(params | rest, X)
            return cross_entropy(out), new.filter(br.Not((br.Param, br.Intermediate)))

        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), rest, opt, value

    for _ in range(20):
        params, rest, opt, value = step(params, rest, opt)
        want.append(float(value))
    np.testing.assert_allclose(losses, want, rtol=1e-5)


# Parts in parts ------------------------------------------------------------------------------------------------------


def in_core(part):
    class Around(br.Module):
        def __call__(self, x):
            return self.get("inner", br.FromFlax(ToLinen(part)))(x)

    return Around


def in_linen(part):
    class Around(nn.Module):
        @nn.compact
        def __call__(self, x):
            return ToLinen(part, name="inner")(x)

    return Around()


@pytest.mark.parametrize("part", [batch_net, Core, LinenNet(), functools.partial(Net, rate=0.0)])
def test_three_deep_trains_to_the_losses_of_one(part):
    """Linen around the core around Linen around the part: what the innermost modifies is carried all the way."""
    deep, one = in_linen(in_core(part)), ToLinen(part)
    variables = initial(one, X)
    values = flat(variables)
    shapes = flat(jax.eval_shape(lambda: deep.init(KEY, X)))
    filled = {path: values[path.rpartition("inner/")[2]] for path in shapes}
    assert len(filled) == len(values)
    losses, _ = linen_losses(deep, br.linen_adapter.unflatten(br.State(filled)), 20)
    want, _ = linen_losses(one, variables, 20)
    np.testing.assert_allclose(losses, want, rtol=1e-5)


# The compiled program ------------------------------------------------------------------------------------------------


def sgd(loss):
    """A training step from parameters and the rest to new ones."""

    def step(params, rest, x, key):
        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params, rest, x, key)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), rest, value

    return step


def test_the_training_step_of_haiku_is_native():
    variables = initial(ToLinen(batch_net), X)
    params, state = br.haiku_adapter.unflatten(br.State(flat(variables)))

    def ours(params, state, x, key):
        out, new = ToLinen(batch_net).apply({"params": params, "state": state}, x, mutable=["state"])
        return (out**2).mean(), new["state"]

    def native(params, state, x, key):
        out, new = hk.transform_with_state(batch_net).apply(params, state, None, x)
        return (out**2).mean(), new

    one = compiled(sgd(ours), variables["params"], variables["state"], X, KEY)
    two = compiled(sgd(native), params, state, X, KEY)
    assert opcodes(one) == opcodes(two)
    got, want = one(variables["params"], variables["state"], X, KEY), two(params, state, X, KEY)
    close(flat({"params": got[0], "state": got[1]}), dict(br.haiku_adapter.flatten(*want[:2])))


def test_the_training_step_of_nnx_is_native():
    variables = initial(ToLinen(Net), X)
    graphdef, params, rest, rng = nnx.split(nnx_module(variables), nnx.Param, nnx.BatchStat, ...)

    def ours(params, stats, x, key):
        given = {"rngs": {"dropout": key}, "mutable": ["batch_stats"]}
        out, new = ToLinen(Net).apply({"params": params, "batch_stats": stats}, x, **given)
        return (out**2).mean(), new["batch_stats"]

    def native(params, stats, x, key):
        module = nnx.merge(graphdef, params, stats, rng, copy=True)
        nnx.reseed(module, dropout=key)
        out = module(x)
        return (out**2).mean(), nnx.state(module, nnx.BatchStat)

    one = compiled(sgd(ours), variables["params"], variables["batch_stats"], X, KEY)
    with pytest.warns(DeprecationWarning, match="sow"):
        two = compiled(sgd(native), params, rest, X, KEY)
    assert opcodes(one) == opcodes(two)
    got, want = one(variables["params"], variables["batch_stats"], X, KEY), two(params, rest, X, KEY)
    close(flat({"params": got[0], "batch_stats": got[1]}), dict(br.nnx_adapter.flatten(nnx.merge_state(*want[:2]))))


def test_the_training_step_of_core_is_native():
    variables = initial(ToLinen(Core), X)
    whole = br.init(Core())({p.partition("/")[2]: v for p, v in flat(variables).items()}, X)
    params, rest = whole.filter(br.Not(br.Intermediate)).partition(br.Param, ...)

    def ours(params, rest, x, key):
        out, new = ToLinen(Core).apply({"params": params, "Calls": rest}, x, mutable=["Calls"])
        return (out**2).mean(), new["Calls"]

    def native(params, rest, x, key):
        new, out = br.pure(Core())(params | rest, x)
        return (out**2).mean(), new.filter(br.Not((br.Param, br.Intermediate)))

    one = compiled(sgd(ours), variables["params"], variables["Calls"], X, KEY)
    two = compiled(sgd(native), params, rest, X, KEY)
    assert opcodes(one) == opcodes(two)


def test_scanned_layers_compile_as_native_ones():
    class Stack(nn.Module):
        layer: object

        @nn.compact
        def __call__(self, x):
            scan = nn.scan(
                lambda layer, x, _: (layer(x), None), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            return scan(self.layer(name="layer"), x, None)[0]

    def haiku(x):
        return jnp.tanh(hk.Linear(3, name="dense")(x))

    ours, native = Stack(functools.partial(ToLinen, haiku)), Stack(_Layer)
    variables = initial(ours, X)
    dense = variables["params"]["layer"]["dense"]
    params = {"params": {"layer": {"dense": {"kernel": dense["w"], "bias": dense["b"]}}}}
    one = compiled(lambda v, x: jax.grad(lambda v: (ours.apply(v, x) ** 2).sum())(v), variables, X)
    two = compiled(lambda v, x: jax.grad(lambda v: (native.apply(v, x) ** 2).sum())(v), params, X)
    assert opcodes(one) == opcodes(two)


class _Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.Dense(3, name="dense")(x))


def test_apply_is_traced_once():
    traces = []

    class Counting(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            traces.append(1)
            return self.dense(x)

    model = ToLinen(Counting)
    variables = initial(model, X)
    step = jax.jit(model.apply)
    step(variables, X)
    before = len(traces)
    for _ in range(3):
        step(variables, X)
    assert before == len(traces) == 2  # Once for init, once here: no rehearsal.


# Checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [batch_net, Net, Core])
def test_msgpack_and_orbax(part, tmp_path):
    model, variables = ToLinen(part), initial(ToLinen(part), X)
    call = functools.partial(model.apply, rngs={"dropout": KEY}, mutable=True)
    want = call(variables, X)
    restored = serialization.from_bytes(variables, serialization.to_bytes(variables))
    assert same(jax.tree.map(jnp.asarray, restored), variables)
    assert same(call(restored, X), want)
    assert same(call(serialization.msgpack_restore(serialization.to_bytes(variables)), X)[0], want[0])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "variables", variables)
        checkpointer.wait_until_finished()
        like = jax.eval_shape(lambda: ToLinen(part).init(KEY, X))  # No initialiser runs.
        loaded = checkpointer.restore(tmp_path / "variables", like)
    assert same(loaded, variables)
    assert same(ToLinen(part).apply(loaded, X, rngs={"dropout": KEY}, mutable=True), want)


# Partitioned variables -----------------------------------------------------------------------------------------------


class Sharded(nnx.Module):
    def __init__(self, rngs):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("embed", "mlp"))
        self.dense = nnx.Linear(3, 3, kernel_init=init, rngs=rngs)
        self.mean = nnx.BatchStat(jnp.zeros(3), out_sharding=("embed",), eager_sharding=False)

    def __call__(self, x):
        self.mean[...] = x.mean(0)
        return self.dense(x)


def test_axis_names_of_nnx_are_boxes_of_linen():
    model = ToLinen(Sharded)  # Needs no mesh: names are notes.
    variables = model.init(KEY, X)
    kernel = variables["params"]["dense"]["kernel"]
    assert isinstance(kernel, nn.Partitioned) and kernel.names == ("embed", "mlp")
    spec = nn.get_partition_spec(variables)
    assert spec["params"]["dense"]["kernel"] == jax.sharding.PartitionSpec("embed", "mlp")
    assert spec["params"]["dense"]["bias"] == jax.sharding.PartitionSpec()
    out, new = model.apply(variables, X, mutable=["batch_stats"])
    np.testing.assert_allclose(out, X @ kernel.value, rtol=1e-6)
    assert new["batch_stats"]["mean"].names == ("embed",)
    np.testing.assert_allclose(new["batch_stats"]["mean"].value, X.mean(0), rtol=1e-6)
    plain, _ = model.apply(nn.unbox(variables), X, mutable=["batch_stats"])
    assert same(plain, out)
    grads = jax.grad(lambda v: model.apply(v, X, mutable=["batch_stats"])[0].sum())(variables)
    assert grads["params"]["dense"]["kernel"].names == ("embed", "mlp")


def test_axis_names_of_scanned_layers():
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(
                lambda layer, x, _: (layer(x), None),
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                length=2,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            return scan(ToLinen(Sharded, name="layer"), x, None)[0]

    variables = Stack().init(KEY, X)
    kernel = variables["params"]["layer"]["dense"]["kernel"]
    assert kernel.names == ("layers", "embed", "mlp") and kernel.value.shape == (2, 3, 3)
    out, new = Stack().apply(variables, X, mutable=["batch_stats"])
    np.testing.assert_allclose(out, X @ kernel.value[0] @ kernel.value[1], rtol=1e-5, atol=1e-6)
    assert new["batch_stats"]["layer"]["mean"].names == ("layers", "embed")


def test_boxes_of_linen_inside_a_core_part():
    class Outer(br.Module):
        def __call__(self, x):
            kernel = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
            return self.get("dense", br.FromFlax(nn.Dense), 2, kernel_init=kernel)(x)

    variables = ToLinen(Outer).init(KEY, X)
    kernel = variables["params"]["outer"]["dense"]["params"]["kernel"]
    assert isinstance(kernel, nn.LogicallyPartitioned) and kernel.names == ("in", "out")
    np.testing.assert_allclose(ToLinen(Outer).apply(variables, X), X @ kernel.value, rtol=1e-6)


def test_a_haiku_part_takes_boxes_and_gives_them_back():
    variables = initial(ToLinen(batch_net), X)
    names = {"params/linear/w": ("in", "out"), "state/batch_norm/~/mean_ema/hidden": (None, "out")}
    boxed = br.linen_adapter.with_axis_names(variables, names)
    out, new = ToLinen(batch_net).apply(boxed, X, mutable=["state"])
    want, plain = ToLinen(batch_net).apply(variables, X, mutable=["state"])
    assert same(out, want) and same(nn.unbox(new), plain)
    assert br.linen_adapter.axis_names(new) == {k: v for k, v in names.items() if k.startswith("state")}


def test_sharded_initialisation():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("embed", "mlp"))
    model = ToLinen(Sharded)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(model.init, KEY, X)
        shardings = nn.get_sharding(shapes, mesh)
        variables = jax.jit(model.init, out_shardings=shardings)(KEY, X)
        out, _ = jax.jit(lambda v, x: model.apply(v, x, mutable=["batch_stats"]))(variables, X)
    kernel = variables["params"]["dense"]["kernel"]
    assert kernel.value.sharding.spec == jax.sharding.PartitionSpec("embed", "mlp")
    np.testing.assert_allclose(out, X @ kernel.value, rtol=1e-6)


def test_parts_that_are_large_enough_to_matter_are_not_copied():
    x = inputs(2, 3)
    variables = initial(ToLinen(Core), x)
    _, new = ToLinen(Core).apply(variables, x, mutable=True)
    for path, value in flat(variables).items():
        if path.startswith("params/"):
            assert flat(new)[path] is value
