"""A file with its model is planned with all that the model tells: the order of calls, and which modules are stacks."""

import pickle

import flax
import flax.linen as nn
import haiku as hk
import jax
import numpy as np
import pytest

import converters
from bridges import MappingError
from bridges.param_mapping import Mapping
from converters._models import ModelError

X = np.random.default_rng(1).normal(size=(2, 8)).astype(np.float32)


class OuterFirst(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8)(nn.relu(nn.Dense(8)(x)))  # the outer one is made first, so it is Dense_0


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        hidden = nn.Dense(16)(x)
        return x + nn.Dense(8)(nn.relu(hidden)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(2)(blocks(name="blocks")(x, None)[0])


def in_turn(x):
    hidden = hk.Linear(8)(x)
    return hk.Linear(8)(jax.nn.relu(hidden))


class Layer(hk.Module):
    def __call__(self, x):
        hidden = hk.Linear(16)(x)
        return x + hk.Linear(8)(jax.nn.relu(hidden))


def unrolled(x):
    for i in range(3):
        x = Layer(name=f"layer{i}")(x)
    return hk.Linear(2)(x)


def saved(model, path):
    numbers = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(1), X)
    variables = jax.tree.map(lambda a: numbers.normal(size=a.shape).astype(a.dtype), shapes)
    path.write_bytes(flax.serialization.to_bytes(variables))
    return variables


def test_the_flow_of_data_places_what_numbers_would_exchange(tmp_path):
    """By number, the two layers would change places, and nothing would show it: their shapes are the same."""
    variables = saved(OuterFirst(), tmp_path / "in.msgpack")
    ends = {"src_model": OuterFirst(), "dst_model": in_turn, "inputs": (X,)}
    converters.convert(tmp_path / "in.msgpack", tmp_path / "out.pkl", **ends)
    params = pickle.loads((tmp_path / "out.pkl").read_bytes())
    out = hk.without_apply_rng(hk.transform(in_turn)).apply(params, X)
    np.testing.assert_array_equal(out, OuterFirst().apply(variables, X))


def test_scanned_blocks_are_placed_without_a_line(tmp_path):
    variables = saved(Scanned(), tmp_path / "in.msgpack")
    done = converters.convert(
        tmp_path / "in.msgpack", tmp_path / "out.pkl", src_model=Scanned(), dst_model=unrolled, inputs=(X,)
    )
    assert done.verdict == "exact"
    params = pickle.loads((tmp_path / "out.pkl").read_bytes())
    out = hk.without_apply_rng(hk.transform(unrolled)).apply(params, X)
    # The scan's sums may be ordered otherwise: a few units in the last place.
    np.testing.assert_allclose(out, Scanned().apply(variables, X), rtol=1e-5, atol=1e-5)


def test_an_error_without_the_sources_model_asks_for_it(tmp_path):
    saved(Scanned(), tmp_path / "in.msgpack")
    with pytest.raises(
        MappingError, match=r"planned without the model that the source is of.*--from-model, src_model="
    ):
        converters.convert(tmp_path / "in.msgpack", tmp_path / "out.pkl", dst_model=unrolled, inputs=(X,))


def test_a_mapping_may_be_a_dict_or_a_file(tmp_path):
    saved(OuterFirst(), tmp_path / "in.msgpack")
    lines = {"modules": {"Dense_0": "linear_1", "Dense_1": "linear"}}
    Mapping.of(lines).dump(tmp_path / "m.toml")
    ends = {"src_model": OuterFirst(), "dst_model": in_turn, "inputs": (X,)}
    for name, mapping in (("a.pkl", lines), ("b.pkl", tmp_path / "m.toml"), ("c.pkl", Mapping.of(lines))):
        converters.convert(tmp_path / "in.msgpack", tmp_path / name, mapping=mapping, **ends)
    assert len({(tmp_path / name).read_bytes() for name in ("a.pkl", "b.pkl", "c.pkl")}) == 1
    with pytest.raises(MappingError, match="A mapping is wanted, not a list"):
        converters.convert(tmp_path / "in.msgpack", tmp_path / "d.pkl", mapping=[lines], **ends)
    old = hk.without_apply_rng(hk.transform(in_turn))
    assert converters.verify(OuterFirst(), old, X, plan=lines, dtypes=("float32",)).ok


def test_a_call_that_fails_is_the_models_error_and_says_how_inputs_are_given(tmp_path):
    saved(OuterFirst(), tmp_path / "in.msgpack")
    with pytest.raises(
        ModelError, match=r"raises, with the inputs \(float32\[2,8\], 3\):\n.*\n.*is_training=false"
    ) as err:
        converters.convert(
            tmp_path / "in.msgpack", tmp_path / "out.pkl", src_model=OuterFirst(), dst_model=in_turn, inputs=(X, 3)
        )
    assert isinstance(err.value.__cause__, TypeError)
