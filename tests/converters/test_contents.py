"""Contents: what is recognised in a tree, by what evidence, and what is asked for where it is not clear."""

import typing

import haiku as hk
import jax
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training import train_state

from bridges import nnx_adapter
from bridges.core._flat import flatten
from converters import CheckpointError
from converters._contents import contents

W, B, K = np.ones((2, 3)), np.zeros(3), np.full((2, 3), 2.0)
HAIKU = {"mlp/~/linear_0": {"w": W, "b": B}}
STATE = {"bn/~/mean_ema": {"average": B, "counter": np.int32(1)}}
LINEN = {"Dense_0": {"kernel": K, "bias": B}}
STATS = {"BatchNorm_0": {"mean": B, "var": B}}
NNX = {"layers": {"0": {"kernel": {"value": K}}}, "bn": {"mean": {"value": B}, "var": {"value": B}}}


class Training(typing.NamedTuple):
    params: typing.Any
    state: typing.Any
    opt_state: typing.Any
    step: int


def adam(params):
    return optax.adam(1e-3).init(params)


def trained():
    made = train_state.TrainState.create(apply_fn=None, params=LINEN, tx=optax.adam(1e-3))
    return serialization.to_state_dict(made)


CASES = {
    "haiku params": (HAIKU, "haiku", "bare", 2, []),
    "haiku params of plain names": ({"linear": {"w": W, "b": B}}, "haiku", "bare", 2, []),
    "haiku immutable": (hk.data_structures.to_immutable_dict(HAIKU), "haiku", "bare", 2, []),
    "haiku pair": ((HAIKU, STATE), "haiku", "tuple", 4, []),
    "haiku pair without state": ((HAIKU, {}), "haiku", "tuple", 2, []),
    "haiku triple": ((HAIKU, STATE, adam(HAIKU)), "haiku", "tuple", 4, ["optimizer"]),
    "haiku params and optimizer": ((HAIKU, adam(HAIKU)), "haiku", "tuple", 2, ["optimizer"]),
    "haiku named": (Training(HAIKU, STATE, adam(HAIKU), 3), "haiku", "fields", 4, ["optimizer", "rest"]),
    "haiku dictionary": ({"params": HAIKU, "opt_state": adam(HAIKU)}, "haiku", "fields", 2, ["optimizer"]),
    "haiku and an average": ({"params": HAIKU, "ema_params": HAIKU, "rng": B}, "haiku", "fields", 2, ["rest", "twin"]),
    "haiku by paths": (flatten({"params": {"mlp": {"~": {"linear_0": {"w": W, "b": B}}}}}), "haiku", "flat", 2, []),
    "haiku by paths, nested": ({"params": {"mlp": {"~": {"linear_0": {"w": W, "b": B}}}}}, "haiku", "flat", 2, []),
    "linen variables": ({"params": LINEN, "batch_stats": STATS}, "linen", "fields", 4, []),
    "linen params": (LINEN, "linen", "bare", 2, []),
    "linen under params": ({"params": {"dense": {"kernel": K}}}, "linen", "fields", 1, []),
    "linen training": (trained(), "linen", "fields", 2, ["optimizer", "rest"]),
    "linen variables in params": ({"params": {"params": LINEN}, "step": 1}, "linen", "fields", 2, ["rest"]),
    "linen in a wrapper": ({"default": {"params": LINEN, "step": 1}}, "linen", "fields", 2, ["rest"]),
    "nnx saved by orbax": (NNX, "nnx", "bare", 3, []),
    "nnx pure dictionary": ({"layers": {0: {"kernel": K}, 1: {"kernel": K}}}, "nnx", "bare", 2, []),
    "nnx statistics": ({"bn": {"mean": B, "var": B, "scale": B}}, "nnx", "bare", 3, []),
    "nnx and optimizer": (
        {"model": NNX, "optimizer": {"step": {"value": np.uint32(3)}, "opt_state": {"0": {"count": {"value": B}}}}},
        "nnx",
        "fields",
        3,
        ["optimizer"],
    ),
    "flat": ({"classifier/w": W}, "flat", "flat", 1, []),
}


@pytest.mark.parametrize("name", CASES)
def test_recognised(name):
    tree, framework, form, count, roles = CASES[name]
    found = contents(tree)
    assert (found.framework, found.form, len(found.variables)) == (framework, form, count)
    others = [role for _, role in found.fields if role in ("optimizer", "rest", "twin")]
    assert sorted(others) == roles
    assert found.why and found.why in str(found)
    # Every leaf of the tree is somewhere, and as it was.
    parts = (dict(found.variables), found.optimizers, found.twins, found.rest)
    there = {id(leaf) for part in parts for leaf in jax.tree.leaves(part)}
    assert all(id(leaf) in there for leaf in jax.tree.leaves(tree) if isinstance(leaf, np.ndarray))


def test_kinds_and_paths_are_those_of_the_adapter():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs)])
            self.bn, self.drop = nnx.BatchNorm(3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    state = nnx.state(Net(nnx.Rngs(0)))
    native = nnx_adapter.flatten(state)
    found = contents(nnx.to_pure_dict(state))
    assert list(found.variables) == list(native)
    for path in native:
        assert found.variables.kind(path).__class__ in (type, native.kind(path).__class__)
    spec = nnx_adapter.spec(Net)
    assert contents(nnx.to_pure_dict(state), spec=spec).variables.declared == spec.entries.declared


def test_nnx_arrays_that_the_model_lacks():
    spec = nnx_adapter.spec(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(CheckpointError, match=r"no Variables for these arrays:\n  - 'kernle'. Did you mean 'kernel'"):
        contents({"kernle": K, "bias": B}, spec=spec)


UNCLEAR = {
    "linen or nnx": ({"dense": {"kernel": K}}, r"Flax Linen: nothing speaks .*\n.*Flax NNX: nothing speaks"),
    "nothing known": ({"dense": {"q": K}}, r"not clear of which framework .*holds dense"),
    "contradiction": (
        {"a/b": {"kernel": K}},
        r"for it: a module is called 'a/b'; against it: a leaf is called 'kernel'",
    ),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_unclear(name):
    tree, text = UNCLEAR[name]
    with pytest.raises(CheckpointError, match=text):
        contents(tree)


def test_said_overrules_found():
    assert contents({"dense": {"kernel": K}}, "nnx").framework == "nnx"
    assert list(contents({"dense": {"q": K}}, "haiku").variables) == ["params/dense/q"]
    with pytest.raises(CheckpointError, match=r"'lnen' is no framework. Did you mean 'linen'"):
        contents(LINEN, "lnen")
    with pytest.raises(CheckpointError, match=r"no Haiku variables .as said.: Haiku variables are"):
        contents({"a": {"b": K}, "c": K}, "haiku")


def test_part():
    tree = {"best": {"weights": (HAIKU, STATE)}, "other": 1}
    assert len(contents(tree, part="best/weights").variables) == 4
    assert len(contents(tree, part="best/weights/0").variables) == 2
    with pytest.raises(CheckpointError, match=r"no part 'best/wights': best holds .'weights'.. Did you mean 'weights'"):
        contents(tree, part="best/wights")


def test_fields_without_parameters():
    class Other(typing.NamedTuple):
        a: typing.Any

    with pytest.raises(CheckpointError, match=r"Other with the fields .'a'. has none that is known to hold parameters"):
        contents(Other(HAIKU))


def test_trees_beside_haiku_are_named():
    with pytest.raises(CheckpointError, match=r"trees that are not known: extra"):
        contents({"params": HAIKU, "extra": {"x": B}})
