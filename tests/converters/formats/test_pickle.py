from __future__ import annotations

import bz2
import collections
import functools
import gzip
import io
import lzma
import os
import pickle
import shutil
import subprocess
import sys
import threading
import zlib
from typing import NamedTuple

import cloudpickle
import flax
import haiku as hk
import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import joblib
import ml_dtypes
import numpy as np
import optax
import pytest
from flax.training import train_state
from hypothesis import strategies as st

import bridges as br
import converters
from bridges.core._errors import UnsupportedError
from converters import CheckpointError
from converters.formats import LazyLeaf
from converters.formats import pickle as format
from tests.converters.formats.arrays import ARRAYS, EXTENDED, STRIDED, assert_same

PROTOCOLS = (2, 3, 4, 5)
LARGE = 5000  # Elements: more bytes than are read at once with the structure.


class TrainingState(NamedTuple):
    params: dict
    opt_state: tuple
    step: int = 0


class Step(NamedTuple):
    step: int
    params: dict


class Holder:
    """An object with attributes, as a data class is pickled."""

    def __init__(self, **fields):
        self.__dict__.update(fields)


def random(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(abs(rng.normal(size=a.shape)) + 3, a.dtype), tree)


@functools.cache
def haiku_checkpoint():
    """Returns (apply, inputs, (params, state, opt_state)) of a Haiku network, every number random."""

    def net(x, train):
        x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(3, 3)(x), train)
        return hk.nets.MLP([70, 40])(x.reshape(x.shape[0], -1))

    net = hk.transform_with_state(net)
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 2))
    params, state = jax.eval_shape(lambda: net.init(jax.random.key(0), x, True))
    opt_state = jax.eval_shape(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init, params)
    return jax.jit(net.apply, static_argnums=4), x, (random(params), random(state, 1), random(opt_state, 2))


def loaded(path, data, **options):
    path.write_bytes(data)
    assert format.recognises(path)
    return format.read(path, **options).load()


# Reading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_haiku_checkpoint_of_this_release_is_read(protocol, tmp_path):
    _, _, tree = haiku_checkpoint()
    params, state, opt_state = tree
    immutable = (hk.data_structures.to_immutable_dict(params), state, opt_state)
    assert_same(loaded(tmp_path / "a", pickle.dumps(immutable, protocol)), tree)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("table", [ARRAYS, EXTENDED, STRIDED], ids=["arrays", "extended", "strided"])
def test_every_array_of_numpy_is_read(table, protocol, tmp_path):
    assert_same(loaded(tmp_path / "a", pickle.dumps(table, protocol)), table)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_large_arrays_are_read_when_asked_for_and_not_before(protocol, tmp_path):
    bits = np.random.default_rng(0).integers(0, 256, LARGE, np.uint8)
    tree = {
        "bytes": bits,
        "fortran": np.asfortranarray(np.arange(float(LARGE)).reshape(50, -1)),
        "middle": np.moveaxis(np.arange(float(LARGE)).reshape(5, 10, -1), 1, 0),
        "jax": jnp.arange(LARGE, dtype=jnp.bfloat16),
        "swapped": np.arange(LARGE, dtype=">i4"),
    }
    (tmp_path / "a").write_bytes(pickle.dumps(tree, protocol))
    found = format.read(tmp_path / "a")
    assert all(isinstance(leaf, LazyLeaf) for leaf in jax.tree.leaves(found.tree))
    assert "'bytes'" in found.tree["bytes"].where
    assert_same(found.load(), tree)
    assert found.tree["bytes"].read() is not found.tree["bytes"].read()  # It keeps nothing.


def test_containers_and_plain_values_are_kept(tmp_path):
    tree = {
        "ordered": collections.OrderedDict([("z", np.ones(2)), ("a", None)]),
        "default": collections.defaultdict(dict, {"x": {"y": (1, [2, "three"], b"four")}}),
        "numbers": [True, -1, 2**70, 1.5, 1 + 2j, float("-inf"), np.int64(3), np.float32(2.5), ml_dtypes.bfloat16(3)],
        "keys": {1: "one", 2: "two"},
        "sets": ({1, 2}, frozenset(["a"])),
        "long": ("é" * LARGE, b"\xff" * LARGE),
        "empty": ({}, [], (), "", b"", None),
        "frozen": flax.core.freeze({"a": {"b": np.ones(1)}}),
        "shared": [x := {"w": np.ones(3)}, x],
    }
    for protocol in PROTOCOLS:
        found = loaded(tmp_path / "a", pickle.dumps(tree, protocol))
        assert isinstance(found["ordered"], collections.OrderedDict) and list(found["ordered"]) == ["z", "a"]
        assert isinstance(found["default"], collections.defaultdict) and found["default"]["new"] == {}
        lazy = format.read(tmp_path / "a").tree
        assert lazy["shared"][0] is lazy["shared"][1]
        assert type(found["frozen"]) is dict
        del found["default"]["new"]
        assert {**found, "ordered": 0, "frozen": 0, "shared": 0} == {**tree, "ordered": 0, "frozen": 0, "shared": 0}
        assert [type(x) for x in found["numbers"]] == [type(x) for x in tree["numbers"]]


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_typed_random_keys_are_read(implementation, tmp_path):
    keys = jax.random.split(jax.random.key(3, impl=implementation), 2)
    found = loaded(tmp_path / "a", pickle.dumps({"keys": keys, "one": keys[0]}))
    for name, want in {"keys": keys, "one": keys[0]}.items():
        assert found[name].dtype == want.dtype
        np.testing.assert_array_equal(jax.random.key_data(found[name]), jax.random.key_data(want))


def test_weak_types_and_literals_are_read_as_arrays(tmp_path):
    weak = jax.jit(lambda: 2.0)()
    assert weak.weak_type
    assert_same(loaded(tmp_path / "a", pickle.dumps([weak])), [np.float32(2)])


@pytest.mark.parametrize(
    "compress",
    [
        gzip.compress,
        bz2.compress,
        lzma.compress,
        lambda raw: lzma.compress(raw, lzma.FORMAT_ALONE),
        zlib.compress,
        lambda raw: gzip.compress(raw[:100]) + gzip.compress(raw[100:]),
        lambda raw: lzma.compress(raw[:100]) + bytes(8) + lzma.compress(raw[100:]),
    ],
    ids=["gzip", "bz2", "xz", "lzma", "zlib", "two gzip members", "two xz streams"],
)
def test_compressed_files_are_read(compress, tmp_path):
    tree = {"w": np.arange(140_000) % 7.0, "b": np.ones(3)}  # More than stays in memory.
    assert_same(loaded(tmp_path / "a", compress(pickle.dumps(tree))), tree)


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)])
def test_joblib_is_read(compress, tmp_path):
    tree = {
        "w": np.arange(LARGE, dtype=np.float32).reshape(50, -1).T,
        "b": [np.ones(2, ml_dtypes.bfloat16), np.zeros((0, 2)), np.array(3)],
        "j": jnp.ones(3),
        "step": 4,
    }
    joblib.dump(tree, tmp_path / "a", compress=compress)
    assert format.recognises(tmp_path / "a")
    assert_same(format.read(tmp_path / "a").load(), tree)


def test_cloudpickle_is_read_and_classes_by_value_are_refused(tmp_path):
    params = {"w": jnp.arange(3.0)}
    assert_same(loaded(tmp_path / "a", cloudpickle.dumps(params)), params)

    class Local(NamedTuple):
        params: dict

    (tmp_path / "a").write_bytes(cloudpickle.dumps(Local(params)))
    with pytest.raises(CheckpointError, match=r"cloudpickle\.\S+ at the top .* by value"):
        format.read(tmp_path / "a")


def test_optax_states_are_the_installed_package_s_own(tmp_path):
    params = {"w": np.ones((2, 3), np.float32)}
    for tx in (
        optax.adamw(1e-3),
        optax.sgd(0.1, momentum=0.9),
        optax.MultiSteps(optax.adam(1e-3), 2),
        optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
        optax.multi_transform({"a": optax.adam(1e-3), "b": optax.set_to_zero()}, {"w": "a"}),
        optax.masked(optax.adam(1e-3), {"w": True}),
        optax.adafactor(1e-3),
        optax.lbfgs(),
        optax.contrib.schedule_free_sgd(1e-3),
    ):
        state = tx.init(params)
        assert_same(loaded(tmp_path / "a", pickle.dumps(state)), state)


# Classes of the user -------------------------------------------------------------------------------------------------


def test_own_namedtuple_is_refused_until_its_fields_are_said(tmp_path):
    state = TrainingState({"w": np.ones(2)}, (), 3)
    name = f"{__name__}.TrainingState"
    (tmp_path / "a").write_bytes(pickle.dumps(state))
    with pytest.raises(CheckpointError, match=rf"{name} at the top .*a tuple of 3.*namedtuples=\{{'{name}'") as caught:
        format.read(tmp_path / "a")
    assert f"--namedtuple {name}=FIELD,FIELD,FIELD" in str(caught.value)
    found = format.read(tmp_path / "a", namedtuples={name: ("params", "opt_state", "step")}).tree
    assert type(found).__name__ == "TrainingState" and found._fields == TrainingState._fields
    assert type(found) is not TrainingState  # Nothing was imported.
    assert [jax.tree_util.keystr(k) for k, _ in jax.tree.leaves_with_path(found)] == [".params['w']", ".step"]
    again = format.read(tmp_path / "a", namedtuples={name: "params,opt_state,step"}).tree
    assert jax.tree.structure(found) == jax.tree.structure(again)
    assert type(format.read(tmp_path / "a", namedtuples={name: TrainingState}).tree) is TrainingState
    with pytest.raises(
        UnsupportedError, match=r"the top: .*3 values and is listed with the 2 fields params, opt_state"
    ):
        format.read(tmp_path / "a", namedtuples={name: ("params", "opt_state")})
    with pytest.raises(UnsupportedError, match="no fields"):
        format.read(tmp_path / "a", namedtuples={name: ("class", "1")})
    assert converters.load(tmp_path / "a", "pickle", namedtuples={name: TrainingState}).step == 3
    with pytest.raises(UnsupportedError, match="no option named_tuples; it has namedtuples, max_bytes"):
        converters.load(tmp_path / "a", "pickle", named_tuples={})


def test_carries_of_haiku_are_read_and_written_by_name(tmp_path):
    state = {"core": {"carry": hk.LSTMState(np.ones(2), np.zeros(2))}}
    found = loaded(tmp_path / "a", pickle.dumps(state))
    assert found["core"]["carry"]._fields == ("hidden", "cell")
    assert not format.problems(found)
    format.write(tmp_path / "b", found, {})
    assert_same(pickle.loads((tmp_path / "b").read_bytes()), state)


def test_own_data_class_is_read_by_the_fields_that_are_said(tmp_path):
    name = f"{__name__}.Holder"
    (tmp_path / "a").write_bytes(pickle.dumps({"state": Holder(step=2, params={"w": np.ones(2)}, apply=os.getcwd)}))
    with pytest.raises(
        CheckpointError, match=rf"{name} at 'state'.*namedtuples=\{{'{name}': \('step', 'params', 'apply'\)"
    ):
        format.read(tmp_path / "a")
    found = format.read(tmp_path / "a", namedtuples={name: ("step", "params")}).tree["state"]
    assert_same(found, {"step": 2, "params": {"w": np.ones(2)}})
    assert type(format.read(tmp_path / "a", namedtuples={name: Step}).tree["state"]) is Step
    with pytest.raises(UnsupportedError, match=r"'state': .*listed with the fields opt, .* It has step, params, apply"):
        format.read(tmp_path / "a", namedtuples={name: ("step", "opt")})
    with pytest.raises(CheckpointError, match=r"getcwd at 'state/apply'"):
        format.read(tmp_path / "a", namedtuples={name: ("step", "apply")})


# Writing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [ARRAYS, EXTENDED, STRIDED], ids=["arrays", "extended", "strided"])
def test_every_array_is_written_for_pickle_load(table, tmp_path):
    assert not format.problems(table)
    format.write(tmp_path / "a", table, {})
    assert_same(pickle.loads((tmp_path / "a").read_bytes()), table)
    assert_same(format.read(tmp_path / "a").load(), table)


def test_every_container_is_written_for_pickle_load(tmp_path):
    tree = {
        "ordered": collections.OrderedDict([("z", np.ones(2)), ("a", None)]),
        "numbers": [True, False, -1, 255, 256, 2**31, -(2**31), -(2**31) - 1, 2**70, -(2**3000), 1.5, 1 + 2j],
        "numpy": [np.int64(3), np.float32(2.5), ml_dtypes.bfloat16(3), np.bool_(True)],
        "keys": {i: str(i) for i in range(2500)},
        "list": list(range(2500)),
        "long": ("é" * LARGE, b"\xff" * LARGE, "\ud800"),
        "empty": ({}, [], (), "", b"", None),
    }
    assert not format.problems(tree)
    format.write(tmp_path / "a", tree, {})
    for found in (pickle.loads((tmp_path / "a").read_bytes()), format.read(tmp_path / "a").tree):
        assert repr(found) == repr(tree)  # Types and orders, too.
        assert found == {**tree, "ordered": found["ordered"]}


def test_mappings_of_haiku_and_flax_and_states_become_dictionaries(tmp_path):
    params = {"mlp/~/linear": {"w": np.ones(2)}}
    state = br.State({"params/mlp/~/linear/w": np.ones(2), "params/a%2Fb": np.zeros(1)})
    tree = {"haiku": hk.data_structures.to_immutable_dict(params), "flax": flax.core.freeze(params), "state": state}
    assert not format.problems(tree)
    format.write(tmp_path / "a", tree, {})
    found = pickle.loads((tmp_path / "a").read_bytes())
    nested = {"params": {"mlp": {"~": {"linear": {"w": np.ones(2)}}}, "a/b": np.zeros(1)}}
    assert type(found["haiku"]) is type(found["flax"]) is type(found["state"]["params"]) is dict
    assert_same(found, {"haiku": params, "flax": params, "state": nested})


def test_optax_and_own_namedtuples_are_written_by_name(tmp_path):
    params = {"w": np.ones((2, 3), np.float32)}
    tree = TrainingState(params, optax.MultiSteps(optax.adam(1e-3), 2).init(params), 2)
    assert not format.problems(tree)
    format.write(tmp_path / "a", tree, {})
    assert b"optax._src" not in (tmp_path / "a").read_bytes()  # The public name is the one that stays.
    assert_same(pickle.loads((tmp_path / "a").read_bytes()), tree)


def test_namedtuples_of_absent_classes_are_written_by_the_name_they_had(tmp_path):
    name = f"{__name__}.TrainingState"
    state = TrainingState({"w": np.ones(2)}, (), 3)
    (tmp_path / "a").write_bytes(pickle.dumps(state))
    found = format.read(tmp_path / "a", namedtuples={name: TrainingState._fields}).tree
    assert type(found) is not TrainingState and not format.problems(found)
    format.write(tmp_path / "b", found, {})
    assert_same(pickle.loads((tmp_path / "b").read_bytes()), state)
    other = format.read(tmp_path / "a", namedtuples={name: ("a", "b", "c")}).tree
    assert "a reader would get another" in format.problems(other)[0]
    (tmp_path / "a").write_bytes(pickle.dumps(state).replace(__name__.encode(), b"x" * len(__name__)))
    absent = "x" * len(__name__) + ".TrainingState"
    found = format.read(tmp_path / "a", namedtuples={absent: TrainingState._fields}).tree
    assert not format.problems({"state": found})


def test_train_state_of_flax_is_read_without_its_code(tmp_path):
    params = {"w": jnp.ones(3)}
    state = train_state.TrainState.create(apply_fn=lambda x: x, params=params, tx=optax.adam(1e-3))
    found = loaded(tmp_path / "a", cloudpickle.dumps(state))
    assert_same(found, {"step": 0, "params": params, "opt_state": state.opt_state})
    assert format.read(tmp_path / "a").metadata == {"left_out": "apply_fn, tx"}


def test_what_pickle_cannot_hold_is_said_with_its_path(tmp_path):
    class Local(NamedTuple):
        x: int

    class Rows(list):
        pass

    loop: dict = {}
    loop["again"] = loop
    tree = {
        "key": jax.random.key(0),
        "object": np.array([None]),
        "text": np.array(["a"]),
        "function": os.getcwd,
        "local": Local(1),
        "rows": Rows(),
        "abstract": jax.ShapeDtypeStruct((2,), jnp.float32),
        "keys": {(1, 2): 3},
        "loop": loop,
        "fine": jnp.ones(2),
    }
    found = {text.split("'")[1].split("/")[0]: text for text in format.problems(tree)}
    assert set(found) == set(tree) - {"fine"}
    assert "jax.random.key_data" in found["key"]
    with pytest.raises(UnsupportedError, match=r"(?s)'key' is key<fry>.*'function'.*'local'"):
        converters.save(tmp_path / "a.pkl", tree)
    assert not list(tmp_path.iterdir())


def test_lazy_leaves_are_read_one_at_a_time_and_let_go(tmp_path):
    alive: list[int] = []
    most = 0

    class Counted(np.ndarray):
        def __array_finalize__(self, other):
            nonlocal most
            if other is None or not isinstance(other, Counted):
                alive.append(1)
                most = max(most, len(alive))

        def __del__(self):
            if self.base is None or not isinstance(self.base, Counted):
                alive.pop()

    def leaf(i):
        def read():
            value = np.ndarray.__new__(Counted, (1000,), np.float32)
            value[:] = i
            return value

        return LazyLeaf((1000,), np.float32, read)

    format.write(tmp_path / "a", {str(i): leaf(i) for i in range(20)}, {})
    assert most == 1
    found = pickle.loads((tmp_path / "a").read_bytes())
    assert all((found[str(i)] == i).all() for i in range(20))


def test_the_bytes_depend_on_the_tree_alone(tmp_path):
    _, _, tree = haiku_checkpoint()
    for name in ("a.pkl", "b.pkl", "a.pkl.gz", "b.pkl.gz"):
        converters.save(tmp_path / name, tree)
    assert (tmp_path / "a.pkl").read_bytes() == (tmp_path / "b.pkl").read_bytes()
    assert (tmp_path / "a.pkl.gz").read_bytes() == (tmp_path / "b.pkl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.pkl.gz").read_bytes()) == (tmp_path / "a.pkl").read_bytes()
    assert_same(converters.load(tmp_path / "a.pkl.gz", "pickle"), tree)


ALONE = """
import builtins, pickle, sys
real = builtins.__import__
def importing(name, *args, **kwargs):
    if name.partition('.')[0] in ('bridges', 'converters'):
        raise ImportError(name)
    return real(name, *args, **kwargs)
builtins.__import__ = importing
import haiku as hk, jax, numpy as np
def net(x, train):
    x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(3, 3)(x), train)
    return hk.nets.MLP([70, 40])(x.reshape(x.shape[0], -1))
with open(sys.argv[1], 'rb') as file:
    params, state, opt_state = pickle.load(file)
assert type(params) is dict and type(opt_state[1][0]).__name__ == 'ScaleByAdamState', opt_state
apply = jax.jit(hk.transform_with_state(net).apply, static_argnums=4)
out, _ = apply(params, state, None, np.load(sys.argv[2]), False)
np.save(sys.argv[3], out)
assert not {'bridges', 'converters'} & set(sys.modules)
"""


def test_pickle_load_feeds_haiku_where_this_package_is_not_installed(tmp_path):
    apply, x, tree = haiku_checkpoint()
    converters.save(tmp_path / "a.pkl", tree)
    np.save(tmp_path / "x.npy", x)
    arguments = [str(tmp_path / name) for name in ("a.pkl", "x.npy", "y.npy")]
    subprocess.run([sys.executable, "-W", "error", "-c", ALONE, *arguments], check=True, cwd=tmp_path)
    want, _ = apply(*tree[:2], None, x, False)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), want)


_LEAVES = st.one_of(
    hnp.arrays(st.sampled_from(["f4", ">f8", "i1", "?", "c8"]), hnp.array_shapes(min_dims=0, min_side=0)),
    st.sampled_from(range(len(STRIDED))).map(lambda i: [*STRIDED.values()][i]),
    st.integers(-(2**80), 2**80),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none(),
    st.text(),
    st.binary(),
)
_TREES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(st.text(), inner, max_size=4),
        st.dictionaries(st.integers(), inner, max_size=4),
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.builds(optax.TraceState, inner),
    ),
)


def listed(tree):
    """Returns a tree as nested tuples that compare: types, orders, dtypes, bits."""
    if isinstance(tree, dict):
        return "dict", [(key, listed(value)) for key, value in tree.items()]
    if isinstance(tree, (list, tuple)):
        return type(tree), [listed(value) for value in tree]
    if isinstance(tree, (np.ndarray, LazyLeaf)):
        array = np.asarray(tree)
        array = array.astype(array.dtype.newbyteorder("="))  # NumPy turns bytes into the machine's order when it loads.
        return array.dtype, array.shape, array.tobytes()
    return type(tree), tree


@hypothesis.settings(max_examples=60)
@hypothesis.given(_TREES, st.sampled_from(PROTOCOLS))
def test_any_tree_comes_back(tmp_path_factory, tree, protocol):
    directory = tmp_path_factory.mktemp("tree")
    (directory / "a").write_bytes(pickle.dumps(tree, protocol))
    found = format.read(directory / "a").tree
    assert listed(found) == listed(tree)
    assert not format.problems(found)
    format.write(directory / "b", found, {})
    assert listed(pickle.loads((directory / "b").read_bytes())) == listed(tree)


def test_the_deepest_tree_that_is_written_is_read(tmp_path):
    tree: object = np.ones(2)
    for _ in range(100):
        tree = [tree]
    assert not format.problems(tree) and format.problems([tree])
    format.write(tmp_path / "a", tree, {})
    assert_same(format.read(tmp_path / "a").load(), tree)


# Files ---------------------------------------------------------------------------------------------------------------


def test_what_begins_otherwise_is_not_recognised(tmp_path):
    archive = io.BytesIO()
    np.savez(archive, a=np.ones(2))
    safetensors = (640).to_bytes(8, "little") + b"{}".ljust(640)  # Its length begins as a pickle does.
    for content in (
        b"",
        b"\x80",
        b"\x80\x04",
        b"\x80\x01.",
        b"\x80\x06N.",
        archive.getvalue(),
        safetensors,
        gzip.compress(b"no"),
        b"\x1f\x8b\x08",
    ):
        (tmp_path / "a").write_bytes(content)
        assert not format.recognises(tmp_path / "a"), content
    assert not format.recognises(tmp_path) and not format.recognises(tmp_path / "absent")


def test_a_file_that_changes_after_it_was_opened_is_an_error(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(pickle.dumps({"w": np.ones(LARGE)}))
    leaf = format.read(file).tree["w"]
    assert leaf.read().sum() == LARGE
    os.replace(shutil.copy(file, tmp_path / "b"), file)  # Another file in its place is no change of this one.
    assert leaf.read().sum() == LARGE
    leaf = format.read(file).tree["w"]
    file.write_bytes(pickle.dumps({"w": np.zeros(2 * LARGE)}))
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        leaf.read()
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        np.asarray(leaf)


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_threads_may_read_leaves_of_one_file(compress, tmp_path):
    arrays = {str(i): np.full(300_000, i) for i in range(8)}
    (tmp_path / "a").write_bytes(compress(pickle.dumps(arrays)))
    tree, wrong = format.read(tmp_path / "a").tree, []

    def check(i):
        for _ in range(20):
            if not (tree[str(i)].read() == i).all():
                wrong.append(i)

    threads = [threading.Thread(target=check, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
