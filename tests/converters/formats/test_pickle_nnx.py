"""Pickles of `nnx.state(model)`: the arrays, by path; nothing of NNX is made to read them."""

import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

import converters
from bridges.core._errors import BridgeError
from bridges.core._flat import flatten


class Loss(nnx.Variable):
    """A kind of the user's own."""


class Net(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.loss = Loss(np.float32(3))


def test_a_pickled_state_is_its_arrays(tmp_path):
    state = nnx.state(Net(nnx.Rngs(0)))
    (tmp_path / "state.pkl").write_bytes(pickle.dumps(state))
    found, wanted = (flatten(tree) for tree in (converters.load(tmp_path / "state.pkl"), nnx.to_pure_dict(state)))
    assert found.keys() == wanted.keys() and "layers/1/kernel" in found and "loss" in found
    for path, value in wanted.items():
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            value, found[path] = jax.random.key_data(value), jax.random.key_data(found[path])
        assert np.array_equal(found[path], value) and found[path].dtype == value.dtype


def test_nothing_of_flax_is_imported(tmp_path):
    state = nnx.state(Net(nnx.Rngs(0)), nnx.Param)
    (tmp_path / "state.pkl").write_bytes(pickle.dumps(state))
    code = f"""
import sys
sys.modules["flax"] = None
import converters
print(sorted(converters.load({str(tmp_path / "state.pkl")!r})))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "['layers', 'norm']\n"


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize("place", ["_raw_value", "_trace_state"])
def test_a_variable_hides_no_code(tmp_path, place):
    """What stands in a field that is not read is not run either."""
    variable = nnx.Param(np.ones(3))
    object.__setattr__(variable, place, Evil())
    try:
        data = pickle.dumps({"a": variable})
    except Exception:
        pytest.fail("the test's own pickle cannot be made")
    (tmp_path / "state.pkl").write_bytes(data)
    try:
        found = converters.load(tmp_path / "state.pkl")
    except BridgeError as err:
        assert "exec" in str(err)
    else:
        assert place != "_raw_value" and np.array_equal(found["a"], np.ones(3))
