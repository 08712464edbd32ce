"""What NNX, JAX and Python offer for modules, on wrapped parts: transformations, walks, copies, tables, metrics."""

from __future__ import annotations

import copy
import functools
import os
import pathlib
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.errors import TraceContextError
from jax.ad_checkpoint import checkpoint_name

import bridges as br
from tests.nnx_side.models import same
from tests.nnx_side.wrapped import PARTS, X, random_one, wrapped


@pytest.fixture(params=PARTS)
def part(request):
    return request.param


@pytest.fixture(params=["haiku", "core"])
def stateful(request):
    """Parts whose call changes their state."""
    return request.param


def state(model):
    return [leaf for leaf in jax.tree.leaves(nnx.state(model)) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]


def close(a, b, atol=1e-6):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=atol), a, b)


# Transformations -----------------------------------------------------------------------------------------------------


def test_cond_and_switch_change_the_state_of_the_branch_taken(stateful):
    model, plain = random_one(stateful), random_one(stateful)
    branches = lambda model, x: model(x), lambda model, x: jnp.zeros((4, 2))

    @nnx.jit
    def choose(model, x, first):
        return nnx.cond(first, *branches, model, x)

    before = state(model)
    assert not choose(model, X, False).any()
    close(state(model), before)
    close(choose(model, X, True), plain(X))
    close(state(model), state(plain))
    close(nnx.jit(lambda model, x: nnx.switch(0, branches, model, x))(model, X), plain(X))
    close(state(model), state(plain))


def test_loops_carry_the_state(stateful):
    model, plain = random_one(stateful), random_one(stateful)

    def once(model, x):
        model(x)
        return model, x

    nnx.while_loop(lambda carry: carry[2] < 2, lambda carry: (*once(*carry[:2]), carry[2] + 1), (model, X, 0))
    nnx.fori_loop(0, 3, lambda i, carry: once(*carry), (model, X))
    for _ in range(5):
        plain(X)
    close(state(model), state(plain))


def test_scan_with_the_model_in_the_carry(stateful):
    model, plain = random_one(stateful), random_one(stateful)
    batches = jnp.stack([X, X + 1, X * 2])

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def run(model, x):
        return model, model(x)

    _, outs = run(model, batches)
    close(outs, jnp.stack([plain(x) for x in batches]))
    close(state(model), state(plain))


def test_members_made_by_nnx_are_mapped_by_jax(part):
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=0)
    def create(rngs):
        return wrapped(part, rngs)

    model = nnx.jit(create)(nnx.Rngs(0))
    graphdef, stacked = nnx.split(model)
    outs = jax.jit(jax.vmap(lambda state: nnx.merge(graphdef, state)(X)))(stacked)
    assert not np.array_equal(outs[0], outs[1])
    close(jax.jit(jax.vmap(lambda model: model(X)))(model), outs)  # The model itself is a tree.
    one = jax.tree.map(lambda leaf: leaf[1], stacked)
    close(jax.jit(lambda state: nnx.merge(graphdef, state)(X))(one), outs[1])
    close(nnx.jit(nnx.vmap(lambda model, x: model(x), in_axes=(0, None)))(model, X), outs)


@pytest.mark.parametrize("part, graph", [("haiku", False), ("core", True), ("linen", False)])
def test_donated_models_are_trained(part, graph):
    def step(model, optimizer, x):
        graphdef, params, rest = nnx.split(model, nnx.Param, ..., graph=graph)

        def loss(params, rest):
            return (nnx.merge(graphdef, params, rest)(x) ** 2).mean()

        value, grads = nnx.value_and_grad(loss, graph=graph)(params, rest)
        optimizer.update(model, grads)
        return value

    losses = []
    for donated in ((), (0, 1)):
        model = random_one(part)
        optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
        run = nnx.jit(step, donate_argnums=donated, graph=graph)
        losses.append([run(model, optimizer, X) for _ in range(3)])
    assert losses[0] == losses[1]
    assert losses[0][2] < losses[0][0]


def test_static_arguments(part):
    @nnx.jit(static_argnames=("train", "times"))
    def run(model, x, train, times=1):
        model.train() if train else model.eval()
        for _ in range(times):
            out = model(x)
        return out

    model = random_one(part)
    before = model.use_running_average
    close(run(model, X, train=False, times=2), random_one_in_evaluation(part))
    assert (before, model.use_running_average) == (None, True)


def random_one_in_evaluation(part):
    model = random_one(part)
    model.eval()
    return model(X)


@pytest.mark.parametrize("policy", ["dots", "names"])
def test_remat_policies(part, policy):
    policies = jax.checkpoint_policies
    chosen = {
        "dots": policies.dots_with_no_batch_dims_saveable,
        "names": policies.save_only_these_names("out"),
    }[policy]

    def loss(model, x):
        return (checkpoint_name(model(x), "out") ** 2).sum()

    plain = nnx.grad(loss)(random_one(part), X)
    # The gradient of a bias before BatchNorm is zero up to rounding.
    close(nnx.jit(nnx.grad(nnx.remat(loss, policy=chosen)))(random_one(part), X), plain, atol=2e-5)


def test_gradient_of_what_a_path_names(part):
    name = {"haiku": "linear_1", "linen": "Dense_1", "core": "linear", "nnx": "linear"}[part]
    model = random_one(part)
    grads = nnx.grad(lambda m: (m(X) ** 2).sum(), argnums=nnx.DiffState(0, nnx.PathContains(name)))(model)
    assert len(jax.tree.leaves(grads)) == 2
    whole = nnx.grad(lambda m: (m(X) ** 2).sum())(random_one(part))
    close(grads, nnx.filter_state(whole, nnx.PathContains(name)))


def test_split_by_path_and_by_type(part):
    name = {"haiku": "linear", "linen": "Dense_0", "core": "linear", "nnx": "linear"}[part]
    model = random_one(part)
    graphdef, named, params, rest = nnx.split(model, nnx.PathContains(name), nnx.Param, ...)
    assert len(jax.tree.leaves(named)) == 2
    assert same(nnx.merge(graphdef, named, params, rest)(X), model(X))


# Walks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [True, False])
def test_walks_see_one_module_and_its_variables(part, graph):
    model = nnx.List([wrapped(part)])
    assert [(path, type(m)) for path, m in nnx.iter_modules(model, graph=graph)] == [
        ((0,), br.ToNNX),
        ((), nnx.List),
    ]
    variables = {path: v for path, v in nnx.iter_graph(model, graph=graph) if isinstance(v, nnx.Variable)}
    assert variables.keys() == {path for path, _ in nnx.to_flat_state(nnx.state(model))}
    assert next(iter(nnx.iter_children(model[0], graph=graph)), None) is None or part == "linen"


@pytest.mark.parametrize("graph", [True, False])
def test_recursive_map(part, graph):
    def double(path, node):
        return nnx.Param(node.get_value() * 2) if isinstance(node, nnx.Param) else node

    model = nnx.clone(random_one(part))
    got = nnx.recursive_map(double, model, graph=graph)
    want = jax.tree.map(lambda v: v * 2, nnx.state(random_one(part), nnx.Param))
    close(nnx.to_pure_dict(nnx.state(got, nnx.Param)), nnx.to_pure_dict(want))
    assert got(X).shape == (4, 2)


def test_attributes_set_from_outside(part):
    model = nnx.List([wrapped(part)])
    model.set_attributes(deterministic=True, use_running_average=True)
    viewed = nnx.view(model, deterministic=False)
    assert (model[0].deterministic, viewed[0].deterministic, viewed[0].use_running_average) == (True, False, True)
    assert viewed[0].variables.tree.keys() == model[0].variables.tree.keys()
    assert all(a is b for a, b in zip(jax.tree.leaves(viewed), jax.tree.leaves(model), strict=True))
    with pytest.raises(ValueError, match="Could not find at least one instance"):
        model.set_attributes(momentum=0.5)


def test_tables():
    # In a process of its own: nnx.tabulate replaces methods of NNX's classes while it runs.
    program = (
        "import warnings; warnings.simplefilter('ignore', DeprecationWarning); from flax import nnx;"
        " from tests.nnx_side.wrapped import PARTS, wrapped, X\n"
        "for part in PARTS: print(nnx.tabulate(wrapped(part), X, console_kwargs={'width': 200, 'no_color': True}))"
    )
    done = run(program)
    assert done.count("ToNNX Summary") == len(PARTS)
    assert done.count("Total Parameters") == len(PARTS)


def run(program, **environment):
    root = pathlib.Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path, **environment}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_metrics(part):
    model = random_one(part)
    metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"), accuracy=nnx.metrics.Accuracy())

    @nnx.jit
    def evaluate(model, metrics, x, labels):
        out = model(x)
        metrics.update(loss=out.mean(), logits=out, labels=labels)
        return out

    out = evaluate(model, metrics, X, jnp.zeros(4, jnp.int32))
    found = metrics.compute()
    np.testing.assert_allclose(found["loss"], out.mean(), rtol=1e-6)
    assert found["accuracy"] == (out.argmax(-1) == 0).mean()


# Streams -------------------------------------------------------------------------------------------------------------


def test_streams_are_split_for_members_and_put_back():
    model = br.ToNNX(nn.Dropout(0.5, deterministic=False), rngs=nnx.Rngs(dropout=0)).lazy_init(X)
    axes = nnx.StateAxes({nnx.RngState: 0, ...: None})

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(axes, None))
    def members(model, x):
        return model(x)

    outs = members(model, X)
    assert len({out.tobytes() for out in outs}) == 3
    assert model.rngs.dropout.key.shape == ()
    assert int(model.rngs.dropout.count[...]) == 2  # One for the initial values, one for the split.
    backups = nnx.split_rngs(model, splits=2)
    assert model.rngs.dropout.key.shape == (2,)
    nnx.restore_rngs(backups)
    assert model.rngs.dropout.key.shape == ()


def test_forked_streams():
    rngs = nnx.Rngs(params=0, dropout=1)
    model = br.ToNNX(nn.Dropout(0.5, deterministic=False), rngs=rngs).lazy_init(X)
    other = nnx.clone(model)
    other.rngs = rngs.fork()
    assert not np.array_equal(model(X), other(X))
    nnx.split_rngs(other, splits=3)
    axes = nnx.StateAxes({nnx.RngState: 0, ...: None})
    outs = nnx.vmap(lambda model, x: model(x), in_axes=(axes, None))(other, X)
    assert len({out.tobytes() for out in outs}) == 3


# Python's own --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [copy.deepcopy, nnx.clone])
def test_copies_are_apart_and_of_one_structure(part, how):
    model = random_one(part)
    other = how(model)
    assert nnx.graphdef(other) == nnx.graphdef(model)
    assert jax.tree.structure(other) == jax.tree.structure(model)
    close(other(X), random_one(part)(X))
    nnx.update(other, jax.tree.map(jnp.zeros_like, nnx.state(other, nnx.Param)))
    assert not any(map(np.array_equal, *(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (model, other))))


def test_pickles(part):
    model = random_one(part)
    other = pickle.loads(pickle.dumps(model))
    assert same(state(other), state(model))
    assert nnx.graphdef(other) == nnx.graphdef(model)
    close(other(X), model(X))
    other.train()
    other(X)


def test_shallow_copies_share_the_variables(part):
    model = random_one(part)
    other = copy.copy(model)
    other.eval()
    assert model.deterministic is None
    assert all(a is b for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(other), strict=True))


def test_partial_updates(part):
    model = random_one(part)
    flat = list(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    before = [leaf.get_value() for _, leaf in flat]
    first = jax.tree.map(jnp.zeros_like, nnx.from_flat_state(flat[:1]))
    nnx.update(model, first)
    after = [leaf.get_value() for _, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    assert not after[0].any()
    assert all(a is b for a, b in zip(before[1:], after[1:], strict=True))
    nnx.update(model, jax.tree.map(jnp.ones_like, nnx.to_pure_dict(first)))
    assert (flat[0][1].get_value() == 1).all()


def test_containers_and_renamed_attributes(part):
    class Holder(nnx.Module):
        def __init__(self):
            self.old = random_one(part)

    holder = Holder()
    want = random_one(part)(X)
    holder.new = holder.old
    del holder.old
    assert set(nnx.state(holder)) == {"new"}
    close(nnx.jit(lambda m, x: m.new(x))(holder, X), want)
    both = nnx.Dict(a=random_one(part), b=nnx.List([random_one(part)]))
    close(nnx.jit(lambda m, x: m["a"](x) + m["b"][0](x))(both, X), want * 2)
    assert set(nnx.state(both)) == {"a", "b"}
    assert nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), random_one(part))(X).shape == (4, 2)


# Number formats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part, dtype", [("haiku", "bfloat16"), ("core", "bfloat16"), ("linen", "float64")])
def test_other_number_formats(part, dtype):
    with jax.enable_x64(dtype == "float64"):

        def cast(leaf):
            return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        model = jax.tree.map(cast, random_one(part))
        out = nnx.jit(lambda m, x: m(x))(model, X.astype(dtype))
        assert out.dtype == dtype
        floats = [v for v in state(model) if jnp.issubdtype(v.dtype, jnp.floating)]
        assert {str(v.dtype) for v in floats} == {dtype}
        grads = nnx.grad(lambda m: m(X.astype(dtype)).sum())(model)
        assert {str(v.dtype) for v in jax.tree.leaves(grads)} == {dtype}


# Devices -------------------------------------------------------------------------------------------------------------

SHARDED = """
import jax, jax.numpy as jnp, numpy as np, optax
from flax import linen as nn, nnx
import bridges as br

mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
logical = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("width",), rules=(("width", "model"),))
part, x = nn.Dense(8, kernel_init=init, bias_init=logical), jnp.ones((4, 3))

@nnx.jit
def create(x):
    model = br.ToNNX(part, rngs=nnx.Rngs(0)).lazy_init(x)
    state = nnx.state(model)
    nnx.update(model, jax.lax.with_sharding_constraint(state, nnx.get_partition_spec(state)))
    return model

with jax.set_mesh(mesh):
    model = create(x)
plain = br.ToNNX(part, rngs=nnx.Rngs(0)).lazy_init(x)
kernel, bias = model.variables["params/kernel"], model.variables["params/bias"]
assert kernel.get_value().sharding.spec == jax.P(None, "model"), kernel.get_value().sharding
assert bias.get_value().sharding.spec == jax.P("model"), bias.get_value().sharding
assert bias.get_metadata("out_sharding") == ("width",)
assert bias.get_metadata("sharding_rules") == (("width", "model"),)
np.testing.assert_allclose(kernel[...], plain.variables["params/kernel"][...], rtol=1e-6)

graphdef, state = nnx.split(plain)
with jax.set_mesh(mesh):
    placed = nnx.merge(graphdef, jax.device_put(state, nnx.get_named_sharding(state, mesh)))
    optimizer = nnx.Optimizer(placed, optax.adam(1e-2), wrt=nnx.Param)
    batch = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))

    @nnx.jit
    def step(model, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda m: (m(x) ** 2).mean())(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(placed, optimizer, batch)) for _ in range(3)]
assert placed.variables["params/kernel"].get_value().sharding.spec == jax.P(None, "model")
optimizer = nnx.Optimizer(plain, optax.adam(1e-2), wrt=nnx.Param)
np.testing.assert_allclose(losses, [float(step(plain, optimizer, x)) for _ in range(3)], rtol=1e-5)
plain = br.ToNNX(nn.Dense(8), rngs=nnx.Rngs(0)).lazy_init(x)  # Linen's boxes constrain, which shard_map has no use for.
each = nnx.shard_map(lambda m, x: m(x), mesh=mesh, in_specs=(jax.P(), jax.P("data")), out_specs=jax.P("data"))
np.testing.assert_allclose(each(plain, x), plain(x), rtol=1e-5)
print("done")
"""


def test_eight_devices():
    assert run(SHARDED, XLA_FLAGS="--xla_force_host_platform_device_count=8").endswith("done\n")


# Programs that do something with the module itself -------------------------------------------------------------------


@pytest.mark.parametrize("part", ["haiku", "core"])
def test_subclasses(part):
    class Scaled(br.ToNNX):
        def __init__(self, rngs):
            super().__init__(PARTS[part], rngs=rngs)
            self.scale = nnx.Param(jnp.full(2, 2.0))
            self.tag = "x"

        def __call__(self, x):
            return super().__call__(x) * self.scale

    model = Scaled(nnx.Rngs(0)).lazy_init(X)
    plain = nnx.clone(model)
    plain.scale[...] = jnp.ones(2)
    for graph in (True, False):
        close(nnx.jit(br.ToNNX.__call__, graph=graph)(nnx.clone(model), X), wrapped(part)(X))
        close(nnx.jit(lambda m, x: m(x), graph=graph)(nnx.clone(model), X), nnx.clone(plain)(X) * 2)
    assert set(nnx.grad(lambda m: m(X).sum())(nnx.clone(model))) == {"scale", "variables"}
    assert nnx.merge(*nnx.split(model)).tag == "x"


def test_what_a_compiled_function_does_to_the_module():
    model = random_one("linen")

    @nnx.jit
    def run(model, x):
        nnx.update(model, jax.tree.map(lambda v: v * 0, nnx.state(model, nnx.Param)))
        out = model(x)
        sown = nnx.pop(model, nnx.Intermediate)
        model.seen = nnx.Intermediate(x.sum())
        return out, sown

    for _ in range(2):
        out, sown = run(model, X)
        assert len(jax.tree.leaves(sown)) == (1 if "seen" not in sown else 2)
    assert not out.any()
    assert not any(v.any() for v in jax.tree.leaves(nnx.state(model, nnx.Param)))
    np.testing.assert_allclose(model.seen[...], X.sum(), rtol=1e-6)


def test_the_model_in_the_carry_of_jax(stateful):
    model, plain = random_one(stateful), random_one(stateful)

    def step(model, x):
        out = model(x)
        return model, out

    after, outs = jax.jit(lambda model, xs: jax.lax.scan(step, model, xs))(model, jnp.stack([X, X + 1]))
    close(outs, jnp.stack([plain(X), plain(X + 1)]))
    close(state(after), state(plain))
    assert any(not np.array_equal(a, b) for a, b in zip(state(model), state(plain), strict=True))


def test_a_closed_over_model_may_be_read_and_not_changed():
    model = random_one("haiku")
    model.eval()
    close(jax.jit(lambda x: model(x, is_training=False))(X), model(X, is_training=False))
    with pytest.raises(TraceContextError, match="Cannot mutate BatchStat"):
        jax.jit(lambda x: model(x, is_training=True))(X)
    empty = br.ToNNX(nn.Dense(2), rngs=nnx.Rngs(0))
    with pytest.raises(TraceContextError):
        jax.jit(lambda x: empty.lazy_init(x)(x))(X)
    assert len(empty.variables) == 0
