"""A checkpoint into a wrapper that `nnx.eval_shape` made: strict, with paths in the errors, and no initialiser runs."""

from __future__ import annotations

import haiku as hk
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx, serialization

import bridges as br
import converters
from bridges import nnx_adapter
from tests.nnx_side.models import same
from tests.nnx_side.wrapped import X, random_one, wrapped

RAN: list[bool] = []  # Whether each initialiser that ran was traced.


def counting(key, shape, dtype=jnp.float32):
    RAN.append(isinstance(key, jax.core.Tracer))
    return jax.random.normal(key, shape, dtype)


class Haiku(hk.Module):
    def __call__(self, x):
        hk.set_state("calls", hk.get_state("calls", (), init=jnp.zeros) + 1)
        w = hk.get_parameter("w", (3, 2), init=lambda shape, dtype: counting(hk.next_rng_key(), shape, dtype))
        return x @ w + hk.get_parameter("b", (2,), init=jnp.zeros)


class Core(br.Module):
    def __call__(self, x):
        w = self.get("w", lambda: counting(br.rng("params"), (3, 2)), kind=br.Param)
        return x @ w + self.get("b", jnp.zeros, (2,))


PARTS = {
    "haiku": Haiku,
    "linen": nn.Dense(2, kernel_init=counting),
    "core": Core,
    "nnx": lambda rngs: nnx.Linear(3, 2, kernel_init=counting, rngs=rngs),
}


def new(part):
    rngs = nnx.Rngs(0)
    if part == "nnx":  # A function is taken for Haiku's.
        return br.ToNNX(nnx.Linear, 3, 2, kernel_init=counting, rngs=rngs).lazy_init(X)
    return br.ToNNX(PARTS[part], rngs=rngs).lazy_init(X)


def trained(part):
    """Returns a wrapper with values that no initialiser gives."""
    model = new(part)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda v: jnp.arange(v.size, dtype=v.dtype).reshape(v.shape) + 0.5, params))
    return model


@pytest.mark.parametrize("file", ["orbax", "msgpack", "dictionary"])
@pytest.mark.parametrize("part", PARTS)
def test_no_initialiser_runs(part, file, tmp_path):
    model = trained(part)
    tree = nnx.to_pure_dict(nnx.state(model))
    want = model(X)
    if file == "orbax":
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "state", nnx.state(trained(part)))
        tree = converters.load(tmp_path / "state")
    elif file == "msgpack":
        (tmp_path / "state.msgpack").write_bytes(serialization.to_bytes(tree))
        tree = converters.load(tmp_path / "state.msgpack")

    RAN.clear()
    graphdef, like = nnx.split(nnx.eval_shape(lambda: new(part)))
    assert RAN
    assert all(RAN), "nothing is computed by nnx.eval_shape"
    RAN.clear()
    fresh = nnx.merge(graphdef, nnx_adapter.restore(jax.tree.map(jnp.asarray, tree), like))
    assert same(fresh(X), want)
    forward = jax.make_jaxpr(lambda state: nnx.merge(graphdef, state)(X))(nnx.state(fresh))
    assert not {"random_bits", "random_fold_in", "random_split", "threefry2x32"} & primitives(forward.jaxpr)
    fresh.lazy_init(X)
    assert all(RAN), "nothing but shapes is ever asked of the initialisers"


def primitives(jaxpr):
    """Returns the names of all primitives of a program, those of inner programs too."""
    found = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found |= primitives(inner)
    return found


def changed(how):
    flat = dict(nnx.to_flat_state(nnx.state(random_one("haiku"))))
    path = ("variables", "params", "linear", "w")
    if how == "missing":
        del flat[path]
    elif how == "extra":
        flat[(*path[:-1], "v")] = nnx.Param(jnp.ones(3))
    else:
        flat[path] = nnx.Param(jnp.ones((3, 5)))
    return nnx.from_flat_state(flat)


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        ("missing", br.StructureError, r"missing 'variables/params/linear/w'"),
        ("extra", br.StructureError, r"unexpected 'variables/params/linear/v"),
        ("misshapen", br.EntryShapeError, r"'variables/params/linear/w': got float32\[3,5\], wanted float32\[3,6\]"),
    ],
)
def test_what_does_not_fit_is_an_error_with_its_path(how, error, match, tmp_path):
    graphdef, like = nnx.split(nnx.eval_shape(lambda: wrapped("haiku")))
    spoiled = changed(how)
    with pytest.raises(error, match=match):
        nnx_adapter.restore(nnx.to_pure_dict(spoiled), like)
    with pytest.raises(error, match=match):
        nnx_adapter.restore(spoiled, like)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", spoiled)
    with pytest.raises(error, match=match):
        nnx_adapter.restore(converters.load(tmp_path / "state"), like)
    if how != "misshapen":  # Orbax refuses too; over a shape it leaves coroutines behind, which warn when collected.
        with ocp.StandardCheckpointer() as checkpointer, pytest.raises(ValueError):
            checkpointer.restore(tmp_path / "state", like)
    # And so does the first call after an update that asks no questions.
    model = nnx.merge(graphdef, like)
    nnx.update(model, spoiled)
    if how == "missing":
        with pytest.raises(br.MissingEntryError, match=r"no values(.|\n)*'params/linear/w' \(float32"):
            model(X)
    else:
        with pytest.raises(error, match="variables/params/linear/"):
            model(X)


def test_keys_and_counts_of_streams_come_back():
    model = random_one("linen")
    model(X, train=True)
    tree = nnx.to_pure_dict(nnx.state(model))
    raw = jax.tree.map(lambda v: jax.random.key_data(v) if v.dtype == model.rngs.default.key.dtype else v, tree)
    like = nnx.eval_shape(lambda: wrapped("linen"))
    for given in (tree, raw):
        restored = nnx.merge(nnx.graphdef(model), nnx_adapter.restore(given, like))
        assert int(restored.rngs.default.count[...]) == int(model.rngs.default.count[...])
        np.testing.assert_array_equal(restored(X, train=True), nnx.clone(model)(X, train=True))


def test_native_modules_restore_too():
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    tree = nnx.to_pure_dict(nnx.state(model))
    as_text = {"layers": {str(i): layer for i, layer in tree["layers"].items()}}  # Orbax has no other keys.
    assert same(nnx_adapter.restore(as_text, nnx.eval_shape(lambda: model)), nnx.state(model))
    with pytest.raises(br.StructureError, match="Nested dictionaries are wanted"):
        nnx_adapter.restore([1], model)


def test_numbers_of_python_come_back_as_the_arrays_that_variables_hold():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    tree = nnx.to_pure_dict(nnx.state(optimizer)) | {"step": 3}  # The step of a TrainState that no jit has run.
    nnx.update(optimizer, nnx_adapter.restore(tree, nnx.state(optimizer)))
    optimizer.update(model, nnx.state(model, nnx.Param))
    assert optimizer.step[...] == 4 and optimizer.step.dtype == jnp.uint32
    kept = nnx_adapter.restore(tree | {"step": 2.5}, nnx.state(optimizer))["step"].get_value()
    assert kept == 2.5  # No value is changed to fit.
