"""The examples of Flax's guide "NNX Basics", in its order, with a wrapped part in the place of each layer.

The guide's layer has a weight, and a count that goes up at every call. Here it is written in Haiku, in Linen, in the core
and in NNX, and the examples are run with each, without their graph mode (as the guide has them) and with it.
"""

from __future__ import annotations

import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.errors import TraceContextError

import bridges as br
from bridges import nnx_adapter


class Count(nnx.Variable): ...


class Native(nnx.Pytree):
    """The guide's layer itself."""

    def __init__(self, din: int, dout: int, *, rngs: nnx.Rngs):
        self.din, self.dout = din, dout
        self.w = nnx.Param(rngs.uniform((din, dout)))
        self.count = Count(jnp.array(0))

    def __call__(self, x):
        self.count[...] += 1
        return x @ self.w


class HaikuLayer(hk.Module):
    def __init__(self, din, dout):
        super().__init__(name="layer")
        self.shape = (din, dout)

    def __call__(self, x):
        hk.set_state("count", hk.get_state("count", (), jnp.int32, jnp.zeros) + 1)
        return x @ hk.get_parameter("w", self.shape, init=hk.initializers.RandomUniform(0, 1))


class LinenLayer(nn.Module):
    din: int
    dout: int

    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.uniform(1.0), (self.din, self.dout))
        count = self.variable("Count", "count", lambda: jnp.zeros((), jnp.int32))
        if not self.is_initializing():
            count.value += 1
        return x @ w


class CoreCount(br.Variable): ...


class CoreLayer(br.Module):
    din: int
    dout: int

    def __call__(self, x):
        w = self.get("w", lambda: jax.random.uniform(br.rng("params"), (self.din, self.dout)), kind=br.Param)
        self.put("count", self.get("count", jnp.zeros, (), jnp.int32, kind=CoreCount) + 1)
        return x @ w


X, Y = jnp.ones((3, 2)), jnp.ones((3, 5))
PARTS = ("haiku", "linen", "core", "nnx")


def layer(part: str, din: int, dout: int, rngs: nnx.Rngs) -> Any:
    """Returns the guide's layer as a part of a framework, in NNX; the native one for 'native'."""
    if part == "native":
        return Native(din, dout, rngs=rngs)
    made = {
        "haiku": lambda: br.ToNNX(HaikuLayer, din, dout, rngs=rngs),
        "linen": lambda: br.ToNNX(LinenLayer(din, dout), rngs=rngs),
        "core": lambda: br.ToNNX(CoreLayer, din=din, dout=dout, rngs=rngs),
        "nnx": lambda: br.ToNNX(functools.partial(Native, din, dout), rngs=rngs),
    }[part]()
    return made.lazy_init(jnp.ones((1, din)))


def count_type(part: str) -> type[nnx.Variable]:
    """Returns the Variable type of the layer's count, for filters."""
    return {
        "haiku": nnx.BatchStat,
        "linen": nnx.variable_type_from_name("Count", allow_register=True),
        "core": nnx_adapter.variable_type(CoreCount),
        "nnx": Count,
        "native": Count,
    }[part]


def count(model: Any) -> Any:
    """Returns the one count of a model."""
    (found,) = [leaf for path, leaf in nnx.to_flat_state(nnx.state(model)) if "count" in path[-1]]
    return found.get_value()


def weight(model: Any) -> Any:
    """Returns the one weight of a model."""
    (found,) = jax.tree.leaves(nnx.state(model, nnx.Param))
    return found


# All parts as the guide has it, two of them in graph mode.
@pytest.fixture(params=[(False, p) for p in PARTS] + [(True, "haiku"), (True, "linen")], autouse=True)
def mode(request):
    with nnx.graphlib.set_graph_mode(request.param[0]), nnx.graphlib.set_graph_updates(request.param[0]):
        yield request.param


@pytest.fixture
def part(mode):
    return mode[1]


# Pytrees and Variables -----------------------------------------------------------------------------------------------


def test_display(part, capsys):
    model = layer(part, 2, 5, nnx.Rngs(0))
    assert isinstance(model, nnx.Module)
    assert all(isinstance(leaf, nnx.Variable) for _, leaf in nnx.to_flat_state(nnx.state(model)))
    nnx.display(model)
    shown = capsys.readouterr().out
    assert "ToNNX(" in shown
    assert "w" in shown
    assert "Param" in shown
    assert "Param: 10 (40 B)" in repr(model)
    assert "shape=(2, 5)" in repr(model)


def test_a_call_updates_in_place_and_jax_maps_the_model(part):
    model = layer(part, 2, 5, nnx.Rngs(0))
    y = model(X)
    assert y.shape == (3, 5)
    assert count(model) == 1
    doubled = jax.tree.map(lambda x: x * 2, model)
    assert type(doubled) is br.ToNNX
    np.testing.assert_array_equal(weight(doubled), weight(model) * 2)
    assert (count(doubled), count(model)) == (2, 1)
    np.testing.assert_array_equal(doubled(X), y * 2)
    paths = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(model)}
    assert all(path.startswith(".variables['") and path.endswith("'].value") for path in paths)
    assert [p.rpartition("[")[2] for p in paths if "count" in p] == ["'count'].value"]
    assert [leaf.shape for path, leaf in paths.items() if "['w']" in path] == [(2, 5)]


# Rngs ----------------------------------------------------------------------------------------------------------------


def test_rngs_draw_in_turn(part):
    rngs = nnx.Rngs(0)
    one, two = layer(part, 2, 5, rngs), layer(part, 2, 5, rngs)
    assert not np.array_equal(weight(one), weight(two))
    assert np.array_equal(weight(one), weight(layer(part, 2, 5, nnx.Rngs(0))))
    assert rngs.normal((2, 3)).shape == (2, 3)


# Nested modules ------------------------------------------------------------------------------------------------------


class MLP(nnx.Pytree):
    def __init__(self, part, din, dmid, dout, *, rngs):
        self.linear1, self.linear2 = layer(part, din, dmid, rngs), layer(part, dmid, dout, rngs)

    def __call__(self, x):
        return self.linear2(nnx.relu(self.linear1(x)))


def test_nested(part, capsys):
    mlp = MLP(part, 2, 16, 5, rngs=nnx.Rngs(0))
    assert mlp(jnp.ones((3, 2))).shape == (3, 5)
    nnx.display(mlp)
    assert "linear2" in capsys.readouterr().out
    params = nnx.state(mlp, nnx.Param)
    assert [leaf.shape for leaf in jax.tree.leaves(params)] == [(2, 16), (16, 5)]
    assert set(params) == {"linear1", "linear2"}


# JAX's transformations -----------------------------------------------------------------------------------------------


def test_jit_of_jax_leaves_the_state_alone(part):
    model = layer(part, 2, 5, nnx.Rngs(0))
    forward = jax.jit(lambda model, x: model(x))
    np.testing.assert_allclose(forward(model, X), X @ weight(model), rtol=1e-6)
    assert count(model) == 0


def test_jit_of_jax_with_state_and_update(part):
    model = layer(part, 2, 5, nnx.Rngs(0))
    kind = count_type(part)

    @jax.jit
    def forward(model, x):
        return model(x), nnx.state(model, kind)

    variables = [leaf for _, leaf in nnx.to_flat_state(nnx.state(model))]
    y, updates = forward(model, X)
    assert len(jax.tree.leaves(updates)) == 1
    nnx.update(model, updates)
    assert count(model) == 1
    assert len(variables) == 2
    np.testing.assert_allclose(y, X @ weight(model), rtol=1e-6)


def trained(part: str, step: Any) -> tuple[Any, ...]:
    """Returns the weight, the count and the optimizer's step after a training step, from the same weight for each part."""
    model = layer(part, 2, 5, nnx.Rngs(0))
    same = jax.tree.map(lambda w: jnp.arange(w.size, dtype=w.dtype).reshape(w.shape) / 10, nnx.state(model, nnx.Param))
    nnx.update(model, same)
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    step(model, optimizer, X, Y)
    return weight(model), int(count(model)), int(optimizer.step[...])


def step_of_jax(kind: type[nnx.Variable], refreshed: bool = True) -> Any:
    """Returns the guide's training step with JAX's own transformations."""

    @jax.jit
    def train_step(model, optimizer, x, y):
        graphdef, params, nondiff = nnx.split(model, nnx.Param, ...)

        def loss_fn(params, nondiff):
            if refreshed:
                nondiff = nnx.clone(nondiff)
            model = nnx.merge(graphdef, params, nondiff)
            return jnp.mean((model(x) - y) ** 2), nnx.state(model, kind)

        grads, updates = jax.grad(loss_fn, has_aux=True)(params, nondiff)
        nnx.update(model, updates)
        optimizer.update(model, grads)
        return nnx.state((model, optimizer))

    return lambda model, optimizer, x, y: nnx.update((model, optimizer), train_step(model, optimizer, x, y))


def test_training_step_with_jax(part):
    got, want = trained(part, step_of_jax(count_type(part))), trained("native", step_of_jax(Count))
    assert got[1:] == want[1:] == (1, 1)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)


def test_a_training_step_without_clone_is_refused_as_for_a_native_layer(part):
    for each in (part, "native"):
        with pytest.raises(TraceContextError, match="Cannot mutate"):
            trained(each, step_of_jax(count_type(each), refreshed=False))


# NNX's transformations -----------------------------------------------------------------------------------------------


def test_training_step_with_nnx(part):
    @nnx.jit
    def train_step(model, optimizer, x, y):
        graphdef, params, nondiff = nnx.split(model, nnx.Param, ...)

        def loss_fn(params, nondiff):
            return jnp.mean((nnx.merge(graphdef, params, nondiff)(x) - y) ** 2)

        optimizer.update(model, nnx.grad(loss_fn)(params, nondiff))

    got, want = trained(part, train_step), trained("native", train_step)
    assert got[1:] == want[1:] == (1, 1)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)


# Graph mode ----------------------------------------------------------------------------------------------------------


class Foo(nnx.Module):
    """Two attributes that may be one."""

    def __init__(self, a, b):
        self.a, self.b = a, b


def test_a_shared_part_is_an_error_of_tree_mode(part):
    shared = layer(part, 2, 2, nnx.Rngs(0))
    model = Foo(shared, shared)

    @nnx.jit(graph=False)
    def forward(model, x):
        return model.b(model.a(x))

    with pytest.raises(ValueError, match=r"Duplicate(.|\n)*\.a\.variables(.|\n)*\.b\.variables"):
        forward(model, X)
    with pytest.raises(ValueError, match="Duplicate"):
        nnx.split(model, graph=False)
    with pytest.raises(ValueError, match="Duplicate"):
        nnx.state(model, graph=False)


def test_a_shared_part_in_graph_mode(part):
    shared = layer(part, 2, 2, nnx.Rngs(0))
    model = Foo(shared, shared)

    @nnx.jit(graph=True)
    def forward(model, x):
        return model.b(model.a(x))

    w = weight(shared)
    np.testing.assert_allclose(forward(model, X), X @ w @ w, rtol=1e-6)
    assert count(shared) == 2
    assert model.a is model.b
    assert len(jax.tree.leaves(nnx.state(model, nnx.Param, graph=True))) == 1


def test_one_variable_in_two_parts(part):
    """A Variable shared by two wrappers, as by the attributes of the guide's Foo."""
    a, b = (layer(part, 2, 2, nnx.Rngs(i)) for i in range(2))
    (path,) = nnx.to_flat_state(nnx.state(a, nnx.Param)).paths
    keys = "/".join(path[1:])
    above, _, name = keys.rpartition("/")
    b.variables[above].tree[name] = a.variables[keys]
    model = Foo(a, b)

    def forward(model, x):
        model.a.variables[keys][...] += 1.0
        return model.b(x)

    with pytest.raises(ValueError, match="Duplicate"):
        nnx.jit(forward, graph=False)(model, X)
    w = weight(a)
    np.testing.assert_allclose(nnx.jit(forward, graph=True)(model, X), X @ (w + 1), rtol=1e-6)
    assert model.b.variables[keys] is model.a.variables[keys]


# Hijax ---------------------------------------------------------------------------------------------------------------


def test_hijax(part):
    with nnx.var_defaults(hijax=True):
        model = layer(part, 2, 5, nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
        assert "hijax=True" in repr(model)

        @jax.jit
        def train_step(model, optimizer, x, y):
            graphdef, params, nondiff = nnx.split(model, nnx.Param, ...)

            def loss_fn(params):
                return jnp.mean((nnx.merge(graphdef, params, nondiff)(x) - y) ** 2)

            grads = jax.grad(loss_fn)(nnx.with_vars(params, hijax=False))
            optimizer.update(model, grads)

        before = jnp.array(weight(model))
        train_step(model, optimizer, X, Y)
    assert count(model) == 1
    assert optimizer.step[...] == 1
    grad = jax.grad(lambda w: jnp.mean((X @ w - Y) ** 2))(before)
    step, _ = optax.adam(1e-3).update(grad, optax.adam(1e-3).init(before))
    np.testing.assert_allclose(weight(model), before + step, rtol=1e-6)


def test_hijax_variables_by_switch(part):
    model = nnx.with_vars(layer(part, 2, 5, nnx.Rngs(0)), hijax=True)
    forward = jax.jit(lambda model, x: model(x))
    forward(model, X)
    forward(model, X)
    assert count(model) == 2
