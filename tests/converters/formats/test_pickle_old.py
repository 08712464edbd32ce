"""Pickles of old releases, read by this one, with and without Haiku and Optax; see fixtures/pickle/README.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import haiku as hk
import jax
import ml_dtypes
import numpy as np
import optax
import pytest

from converters.formats import pickle as format
from tests.converters.formats import old_pickles
from tests.converters.formats.arrays import assert_same
from tests.converters.formats.old_pickles import FIXTURES

REAL = sorted(path.name for path in FIXTURES.glob("real-*-haiku-p*.pkl"))
ASSEMBLED = sorted(path.name for path in FIXTURES.glob("jax-*.pkl"))


def read(name):
    path = FIXTURES / name
    assert format.recognises(path)
    return format.read(path).load()


# The assembler -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("real-*-twin-*.pkl")), ids=lambda path: path.stem)
def test_assembler_writes_what_a_release_wrote_to_the_byte(path):
    old = old_pickles
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    tree = old.flat_mapping({"lin": {"w": old.jax_array(w), "b": old.jax_array(w[0])}})
    if "opt" in path.name:
        adam = ("optax._src.transform", "ScaleByAdamState", old.jax_array(np.array(7, np.int32)), tree)
        tree = (old.namedtuple(*adam, old.numpy_array(w.T)), old.namedtuple("optax._src.base", "EmptyState"))
    protocol = int(re.search(r"-p(\d)", path.name).group(1))
    assert old.assemble(tree, protocol) == path.read_bytes()


def test_assembled_files_are_what_the_assembler_writes():
    files = old_pickles.files()
    assert {path.name for path in FIXTURES.glob("*.pkl") if not path.name.startswith("real-")} == set(files)
    assert all((FIXTURES / name).read_bytes() == content for name, content in files.items())


# Reading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_haiku_checkpoint_of_a_real_release_is_read_and_computes_the_same(name):
    def net(x, train):
        x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(3, 3)(x), train)
        return hk.nets.MLP([4, 2])(x.reshape(x.shape[0], -1))

    params, state, opt_state = tree = read(name)
    with np.load(FIXTURES / "real-jax-0.4.13-haiku.npz") as then:
        want = [then[key] for key in sorted(then) if key.startswith("leaf")]
        assert_same(jax.tree.leaves(tree), want)
        run = jax.jit(hk.transform_with_state(net).apply, static_argnums=4)
        out, _ = run(params, state, None, then["x"], False)
        np.testing.assert_allclose(out, then["y"], rtol=1e-5, atol=1e-6)  # Another XLA: other orders of summation.
    clip, (adam, scale) = opt_state
    assert isinstance(adam, optax.ScaleByAdamState) and isinstance(clip, optax.EmptyState)
    assert isinstance(scale, optax.EmptyState)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    jax.jit(tx.update)(params, opt_state)  # It goes on from there.


@pytest.mark.parametrize("name", ASSEMBLED)
def test_haiku_checkpoint_of_an_older_release_is_read(name):
    params, state, (adam, empty) = read(name)
    want = old_pickles.values()
    assert_same(params, want)
    assert isinstance(adam, optax.ScaleByAdamState)
    assert_same(adam, optax.ScaleByAdamState(np.int32(7), want, jax.tree.map(np.square, want)))
    assert_same(state["bn/~/mean_ema"], {"counter": np.int32(3), "hidden": np.arange(6.0).reshape(2, 3).T})
    assert isinstance(empty, optax.EmptyState)  # Which `ScaleState` is an alias of since.


def test_pickle_of_python_2_is_read():
    assert_same(read("python2.pkl"), {"w": old_pickles.values()["mlp/~/linear_0"]["w"]})


@pytest.mark.parametrize("release", ["0.4.13", "0.4.30"])
def test_kinds_of_a_real_release_are_read(release):
    tree = read(f"real-jax-{release}-kinds-p5.pkl")
    assert list(dict(tree["ordered"])) == ["z", "a"]
    plain = {name: tree.pop(name) for name in ("step", "name", "none", "complex")}
    assert plain == {"step": 12, "name": "run", "none": None, "complex": 1 + 2j}
    want = {
        "bfloat16": np.arange(3, dtype=ml_dtypes.bfloat16),
        "weak": np.float32(2.5),
        "weak_true": np.float32(2),
        "weak_jax": np.float32(2),
        "key": np.array([0, 3], np.uint32),
        "bool": np.array([True, False]),
        "scalar": np.float32(3.5),
        "half": np.ones((2, 2), np.float16),
        "empty": np.zeros((0, 3), np.float32),
        "f8": np.arange(3, dtype=ml_dtypes.float8_e4m3fn),
        "frozen": {"a": {"b": np.ones(2, np.float32)}},
        "ordered": type(tree["ordered"])(z=np.ones(1, np.float32), a=np.zeros(1, np.float32)),
        "big": np.arange(3, dtype=">i4"),
        "fortran": np.arange(6.0).reshape(2, 3),
    }
    assert_same(tree, want)


@pytest.mark.parametrize("release", ["0.4.13", "0.4.30"])
def test_typed_key_of_a_real_release_is_read(release):
    key = read(f"real-jax-{release}-key-p4.pkl")["key"]
    assert key.dtype == jax.random.key(5).dtype
    np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(jax.random.key(5)))


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("real-*-joblib*")), ids=lambda path: path.name)
def test_joblib_of_a_real_release_is_read(path):
    want = {"w": np.arange(12, dtype="f4").reshape(3, 4).T, "b": np.ones(2), "s": np.float32(1.5), "n": 3}
    assert_same(read(path.name), want)


@pytest.mark.parametrize("release", ["0.4.13", "0.4.30"])
def test_cloudpickle_of_a_real_release_is_read(release):
    params, _, _ = read("real-jax-0.4.13-haiku-p4.pkl")
    assert_same(read(f"real-jax-{release}-cloudpickle.pkl"), {"params": params})


# Alone ---------------------------------------------------------------------------------------------------------------

ALONE = """
import importlib.abc, pathlib, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition('.')[0] in ('haiku', 'optax', 'flax', 'joblib', 'cloudpickle', 'chex'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Absent())
from converters.formats import pickle
for path in map(pathlib.Path, sys.argv[1:]):
    assert pickle.recognises(path), path
    tree = pickle.read(path).load()
    if 'haiku' in path.name:
        adam = tree[2][1][0] if 'real' in path.name else tree[2][0]
        assert adam._fields == ('count', 'mu', 'nu') and type(adam).__module__ == 'optax._src.transform', adam
        assert type(adam.mu) is dict
"""


def test_all_are_read_where_haiku_and_optax_are_not_installed():
    paths = [str(path) for path in FIXTURES.iterdir() if ".pkl" in path.name]
    assert len(paths) > 20
    root = str(FIXTURES.parents[3])
    environment = {**os.environ, "PYTHONPATH": root + os.pathsep + os.environ.get("PYTHONPATH", "")}
    subprocess.run([sys.executable, "-W", "error", "-c", ALONE, *paths], check=True, env=environment)
