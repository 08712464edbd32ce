"""Orbax directories: what each of Orbax's writers leaves is read, and what is written Orbax reads without this package."""

import collections
import json
import os
import pathlib
import shutil
import subprocess
import sys

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import converters
from bridges.core._errors import UnsupportedError
from converters import CheckpointError, formats
from converters.formats import LazyLeaf
from converters.formats import _orbax_layout as layout
from converters.formats._orbax_arrays import DTYPES

Pair = collections.namedtuple("Pair", "mu nu")


def tree():
    return {
        "params": {"Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": np.arange(3.0)}},
        "integers": {0: jnp.ones(1), 10: jnp.full(2, 10.0)},
        "list": [jnp.ones(2), {"x": np.zeros(3, np.int8)}],
        "tuple": (jnp.ones(1),),
        "named": Pair(jnp.ones(1), np.ones(2)),
        "empty": {"dict": {}, "list": [], "none": None},
        "step": 3,
        "rate": 0.5,
        "flag": True,
        "bfloat16": jnp.arange(3, dtype=jnp.bfloat16),
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
    }


def said(item):
    """The tree as Orbax says it: keys are texts, tuples are lists, NamedTuples dictionaries."""
    return {
        **item,
        "integers": {str(k): v for k, v in item["integers"].items()},
        "tuple": list(item["tuple"]),
        "named": item["named"]._asdict(),
    }


def raw(x):
    x = jax.random.key_data(x) if jax.dtypes.issubdtype(getattr(x, "dtype", np.dtype(int)), jax.dtypes.prng_key) else x
    x = np.asarray(x)
    return x.dtype.name, x.shape, x.tobytes()


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert getattr(x, "dtype", type(x)) == getattr(y, "dtype", type(y))
        assert raw(x) == raw(y)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One directory of each of Orbax's writers."""
    root = tmp_path_factory.mktemp("orbax")
    with ocp.StandardCheckpointer() as c:
        c.save(root / "standard", tree())
    for name, ocdbt in (("pytree", True), ("files", False)):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)) as c:
            c.save(root / name, args=ocp.args.PyTreeSave({**tree(), "text": "hello"}))
    with ocp.CheckpointManager(root / "manager") as m:
        for step in (7, 12):
            m.save(step, args=ocp.args.StandardSave({"a": jnp.full(3, step)}))
    with ocp.CheckpointManager(root / "composite", item_names=("params", "opt", "meta")) as m:
        m.save(
            3,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave({"w": jnp.ones(2)}),
                opt=ocp.args.PyTreeSave({"m": jnp.zeros(2)}, custom_metadata={"optimizer": "adam", "steps": 3}),
                meta=ocp.args.JsonSave({"x": 1}),
            ),
        )
    return root


@pytest.mark.parametrize("name", ["standard", "pytree", "files"])
def test_every_leaf_of_a_tree_comes_back(saved, name):
    found = formats.read(saved / name)
    lazy = [leaf for leaf in jax.tree.leaves(found.tree) if isinstance(leaf, LazyLeaf)]
    assert len(lazy) == sum(hasattr(leaf, "shape") for leaf in jax.tree.leaves(tree()))
    got = found.load()
    assert got.pop("text", "hello") == "hello"
    same(got, said(tree()))
    assert got["step"] == 3 and type(got["step"]) is int and got["flag"] is True


def test_a_manager_gives_its_latest_step_and_any_other(saved):
    assert converters.load(saved / "manager")["a"].tolist() == [12] * 3
    for path in ("manager/7", "manager/7/default"):
        assert converters.load(saved / path)["a"].tolist() == [7] * 3


def test_a_composite_is_a_dictionary_of_items_and_json_is_text(saved):
    found = formats.read(saved / "composite")
    same(found.load(), {"params": {"w": np.ones(2, np.float32)}, "opt": {"m": np.zeros(2, np.float32)}})
    assert found.metadata == {"meta": '{"x": 1}', "optimizer": "adam", "steps": "3"}
    same(converters.load(saved / "composite/3/params"), {"w": np.ones(2, np.float32)})


@pytest.mark.filterwarnings("ignore:Use `save` instead:DeprecationWarning")
def test_the_layout_of_orbax_v1(tmp_path):
    v1 = pytest.importorskip("orbax.checkpoint.experimental.v1")
    given = {"w": jnp.arange(4.0), "n": 3, "text": "hello", "key": jax.random.key(0)}
    v1.save_pytree(tmp_path / "v1", given)
    same(
        {k: v for k, v in converters.load(tmp_path / "v1").items() if k != "text"},
        {**given, "text": 0} and {k: v for k, v in given.items() if k != "text"},
    )
    assert converters.load(tmp_path / "v1")["text"] == "hello"


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(nn.Dense(3)(x))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)])
        self.norm, self.dropout = nnx.BatchNorm(2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)


def linen_variables():
    return jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(x.size), x.shape), Linen().init(jax.random.key(0), jnp.ones((1, 2)))
    )


def nnx_state():
    return jax.tree.map(
        lambda x: x if x.dtype not in (jnp.float32,) else jax.random.normal(jax.random.key(x.size), x.shape),
        nnx.state(Net(nnx.Rngs(0))),
    )


READER = """
import sys, pathlib
class Absent:
    def find_spec(self, name, *_):
        if name.partition('.')[0] in ('bridges', 'converters'):
            raise ImportError(f'{name} is not installed here')
sys.meta_path.insert(0, Absent())
import jax, jax.numpy as jnp, numpy as np, orbax.checkpoint as ocp
import flax.linen as nn
from flax import nnx
class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)])
        self.norm, self.dropout = nnx.BatchNorm(2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(nn.Dense(3)(x))
root = pathlib.Path(sys.argv[1])
reader = ocp.StandardCheckpointer()
abstract = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
state = reader.restore(root / 'nnx', nnx.state(abstract))
model = nnx.merge(nnx.graphdef(abstract), state)
assert model.layers[1].kernel.shape == (3, 2)
assert (reader.restore(root / 'nnx')['layers']['1']['bias']['value'] == model.layers[1].bias[...]).all()
like = jax.eval_shape(Linen().init, jax.random.key(0), jnp.ones((1, 2)))
variables = reader.restore(root / 'linen', like)
plain = reader.restore(root / 'linen')
out = {'nnx': [np.asarray(x) for x in jax.tree.leaves(nnx.filter_state(state, nnx.Param))]}
out['linen'] = [np.asarray(x) for x in jax.tree.leaves(variables)]
assert all((a == b).all() for a, b in zip(out['linen'], jax.tree.leaves(plain), strict=True))
np.savez(sys.argv[2], **{f'{k}{i}': x for k in out for i, x in enumerate(out[k])})
"""


def test_orbax_reads_what_was_written_without_this_package(tmp_path):
    state, variables = nnx_state(), linen_variables()
    converters.save(tmp_path / "nnx", state, "orbax")
    converters.save(tmp_path / "linen", variables, "orbax")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", READER, tmp_path, tmp_path / "out.npz"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as out:
        for name, leaves in (("nnx", nnx.filter_state(state, nnx.Param)), ("linen", variables)):
            for i, leaf in enumerate(jax.tree.leaves(leaves)):
                assert raw(out[f"{name}{i}"]) == raw(leaf)


def test_nnx_states_and_train_states_come_back_by_path(tmp_path):
    state = nnx_state()
    converters.save(tmp_path / "nnx", state, "orbax")
    got = converters.load(tmp_path / "nnx")
    assert raw(got["layers"]["1"]["kernel"]["value"]) == raw(state["layers"][1]["kernel"][...])
    assert raw(got["dropout"]["rngs"]["key"]["value"]) == raw(state["dropout"]["rngs"]["key"][...])

    import optax

    params = linen_variables()["params"]
    train = TrainState.create(apply_fn=Linen().apply, params=params, tx=optax.adam(1e-3))
    converters.save(tmp_path / "train", train, "orbax")
    with ocp.StandardCheckpointer() as reader:
        same(reader.restore(tmp_path / "train", train), train)
    got = converters.load(tmp_path / "train")
    assert got["step"] == 0
    same(got["opt_state"][0]["mu"], jax.tree.map(np.asarray, train.opt_state[0].mu))


def test_every_dtype_comes_back_bit_for_bit_or_is_refused_before(tmp_path):
    names = ["longdouble", "datetime64[s]", "S3", "uint2", "uint4", *sorted(DTYPES)]
    names += [name for name in dir(ml_dtypes) if name.startswith("float") and name not in DTYPES]
    dtypes = {n: np.dtype(getattr(ml_dtypes, n, n)) for n in names}
    given = {
        n: np.ones((2, 3), np.uint8).astype(d) if d.kind not in "MS" else np.zeros(2, d) for n, d in dtypes.items()
    }
    held = {name: x for name, x in given.items() if name in DTYPES}
    assert {*given} - {*held} == {line.split("'")[1] for line in formats.format_of("orbax").module().problems(given)}
    held |= {
        "scalar": np.float32(2),
        "view": np.arange(12.0).reshape(3, 4)[::2, ::-1].T,
        "swapped": np.arange(3, dtype=">f4"),
    }
    converters.save(tmp_path / "x", held, "orbax")
    got = converters.load(tmp_path / "x")
    assert got.keys() == held.keys()
    for name, x in held.items():
        assert raw(got[name]) == raw(x.astype(x.dtype.newbyteorder("="))), name


def test_names_that_lead_elsewhere_are_only_names(tmp_path):
    given = {
        "..": {"..": {"x": np.ones(1)}},
        "/etc": np.ones(2),
        "a/b": np.ones(3),
        "": np.ones(4),
        "../../y": np.ones(5),
    }
    converters.save(tmp_path / "x", given, "orbax")
    same(converters.load(tmp_path / "x"), given)
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "no entry"),
        (np.ones(2), "single value"),
        ({"a": {"b": np.ones(1)}, "a.b": np.ones(1)}, "would both be stored as 'a.b'"),
        ({1: np.ones(1), "1": np.ones(1)}, "cannot flatten"),
        ({"a": np.zeros((0, 3))}, "no elements"),
        ({"a": 1j}, "type complex"),
        ({"a": b"x"}, "type bytes"),
        ({"a": 1 << 70}, "too large"),
        ({"a/b": "text"}, "string under a key"),
        ({"a": np.array(["x"])}, "no dtype str32"),
        ({"a": LazyLeaf((0,), np.float32, lambda: None)}, "no elements"),
    ],
)
def test_what_orbax_cannot_hold_is_said_before_writing(tmp_path, given, words):
    with pytest.raises(UnsupportedError, match=words):
        converters.save(tmp_path / "x", given, "orbax")
    assert not os.listdir(tmp_path)


def test_texts_are_kept_beside_the_tree(tmp_path):
    converters.save(tmp_path / "x", {"a": np.ones(1)}, "orbax", metadata={"mapping": "[rules]"})
    assert formats.read(tmp_path / "x").metadata == {"mapping": "[rules]"}


def test_leaves_are_pulled_one_after_another_and_large_ones_come_back(tmp_path):
    alive, most = 0, 0

    class Counted(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= self.base is None or self.nbytes > 4e6

    def pull(i, shape):
        nonlocal alive, most
        alive, most = alive + 1, max(most, alive + 1)
        return np.random.default_rng(i).standard_normal(shape).view(Counted)

    shapes = [(3, 700_001), (1, 1_500_000), (1201, 1009), (1 << 21,)]  # chunks that do not divide them
    given = {str(i): LazyLeaf(s, np.float64, lambda i=i, s=s: pull(i, s)) for i, s in enumerate(shapes)}
    converters.save(tmp_path / "x", given, "orbax")
    assert most <= 2  # one that is written, one that is just being let go
    for i, leaf in formats.read(tmp_path / "x").tree.items():
        assert raw(leaf) == raw(np.random.default_rng(int(i)).standard_normal(leaf.shape))


def test_a_running_event_loop_does_not_matter(saved):
    import asyncio

    async def notebook():
        return converters.load(saved / "standard")["step"]

    assert asyncio.run(notebook()) == 3


def damage(folder, what):
    if what == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
        return folder
    if what == "unfinished":
        return folder.rename(folder.with_name("x.orbax-checkpoint-tmp"))
    structure = folder / "_METADATA"
    if what == "no structure":
        structure.unlink()
    elif what == "old":
        structure.unlink()
        (folder / "checkpoint").write_bytes(b"\x80")
    elif what == "truncated structure":
        structure.write_bytes(structure.read_bytes()[:-40])
    elif what == "deep":
        structure.write_text("[" * 100_000)
    elif what == "other":
        structure.write_text('{"tree_metadata": {"a": {"key_metadata": 3}}}')
    elif what == "twice":
        structure.write_text('{"tree_metadata": {}, "tree_metadata": {}}')
    elif what == "index":
        text = structure.read_text()
        structure.write_text(text.replace('"key": "0", "key_type": 1', '"key": "1000000000", "key_type": 1'))
        assert structure.read_text() != text
    elif what == "manifest":
        for file in folder.glob("**/manifest.ocdbt"):
            file.write_bytes(file.read_bytes()[:20])
    elif what == "arrays":
        shutil.rmtree(folder / "ocdbt.process_0")
        shutil.rmtree(folder / "d")
    elif what == "keys":
        (folder / "array_metadatas" / "process_0").write_text("{")
    return folder


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("empty", "it is empty"),
        ("unfinished", "unfinished"),
        ("no structure", "no finished Orbax checkpoint|no _METADATA"),
        ("old", "PyTreeCheckpointer"),
        ("truncated structure", "is damaged"),
        ("deep", "is damaged"),
        ("other", "malformed"),
        ("twice", "there twice"),
        ("index", "cannot be read"),
        ("manifest", "cannot be read"),
        ("arrays", "cannot be read"),
        ("keys", "is damaged"),
    ],
)
def test_a_damaged_directory_is_one_error(saved, tmp_path, what, words, capfd):
    folder = damage(pathlib.Path(shutil.copytree(saved / "standard", tmp_path / "x")), what)
    with pytest.raises(CheckpointError, match=words):
        formats.read(folder).load()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("l", 0), ("l", 2)], "a list has the indices"),
        ([("l", 0), ("l", "a")], "a list has the indices"),
        ([("a",), ("a", "b")], "lies below a value"),
        ([("a", "b"), ("a",)], "is a value and holds others"),
    ],
)
def test_a_tree_that_cannot_be_is_an_error(tmp_path, rows, words):
    rows = [layout.Row(keys, "np.ndarray") for keys in rows]
    with pytest.raises(CheckpointError, match=words):
        layout.nested(tmp_path, rows, {row.name: row for row in rows})


def test_what_a_partial_save_filled_is_no_longer_empty(tmp_path):
    for order in (1, -1):
        rows = [layout.Row(("a",), "Dict"), layout.Row(("a", "b"), "np.ndarray")][::order]
        assert layout.nested(tmp_path, rows, {"a": {}, "a.b": 1}) == {"a": {"b": 1}}


@hypothesis.settings(max_examples=200)
@hypothesis.given(st.integers(0, 10_000), st.binary(min_size=0, max_size=6), st.integers(0, 40))
def test_any_damage_to_the_structure_is_said_or_harmless(saved, at, put, cut):
    folder = saved / "fuzzed"
    if not folder.exists():
        shutil.copytree(saved / "manager/7/default", folder)
    good = (saved / "manager/7/default/_METADATA").read_bytes()
    at %= len(good)
    (folder / "_METADATA").write_bytes(good[:at] + put + good[at + cut :])
    try:
        got = converters.load(folder)
    except CheckpointError:
        return
    assert all(np.asarray(leaf).tolist() == [7] * 3 for leaf in jax.tree.leaves(got))


def test_truncated_data_and_an_unfinished_step(saved, tmp_path):
    given = {"a": np.random.default_rng(0).standard_normal((300, 700))}
    converters.save(tmp_path / "x", given, "orbax")
    largest = max((tmp_path / "x").glob("**/d/*"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:5000])
    found = formats.read(tmp_path / "x")
    with pytest.raises(CheckpointError, match="the values of 'a' cannot be read"):
        found.load()
    root = pathlib.Path(shutil.copytree(saved / "manager", tmp_path / "manager"))
    (root / "12").rename(root / "12.orbax-checkpoint-tmp")
    assert converters.load(root)["a"].tolist() == [7] * 3


def test_a_name_may_not_lead_out_of_a_directory_of_files(saved, tmp_path):
    folder = pathlib.Path(shutil.copytree(saved / "files", tmp_path / "x"))
    content = json.loads((folder / "_METADATA").read_text())
    row = content["tree_metadata"].pop("('bfloat16',)")
    row["key_metadata"][0]["key"] = "../files/bfloat16"
    content["tree_metadata"]["('../files/bfloat16',)"] = row
    (folder / "_METADATA").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        formats.read(folder)


def test_nothing_is_left_of_a_write_that_fails(tmp_path, capfd):
    def fails():
        raise CheckpointError("the source is damaged")

    with pytest.raises(CheckpointError, match="the source is damaged"):
        converters.save(tmp_path / "x", {"a": LazyLeaf((2,), np.float32, fails), "b": np.ones(2)}, "orbax")
    assert not os.listdir(tmp_path)
    assert "Traceback" not in capfd.readouterr().err


def test_other_directories_are_not_orbaxs(tmp_path):
    (tmp_path / "model.py").write_text("")
    (tmp_path / "7").mkdir()
    assert not formats.format_of("orbax").module().recognises(tmp_path)


STREAM = """
import pathlib, sys
import numpy as np
import converters
from converters import formats
from converters.formats import LazyLeaf
root, SIZE, LEAVES = pathlib.Path(sys.argv[1]), 32 << 20, 8
def number(i):
    return np.full((1024, SIZE // 4096), i, np.float32)
def size(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key))
def peak(run):
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = size("VmRSS")
    run()
    return (size("VmHWM") - before) / SIZE
small = {"a": np.ones((3, 3), np.float32)}
converters.save(root / "small", small, "orbax")
converters.load(root / "small")  # threads and modules are there
tree = {f"w{i}": LazyLeaf((1024, SIZE // 4096), np.float32, lambda i=i: number(i)) for i in range(LEAVES)}
written = peak(lambda: converters.save(root / "first", tree, "orbax"))
copied = peak(lambda: converters.save(root / "second", formats.read(root / "first").tree, "orbax"))
for i, leaf in enumerate(formats.read(root / "second").tree.values()):
    assert (leaf.read() == i).all()
    leaf = None
print(written, copied)
assert max(written, copied) < 2, (written, copied)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads its own size where Linux says it")
def test_a_checkpoint_of_eight_leaves_passes_through_less_than_two(tmp_path):
    done = subprocess.run([sys.executable, "-c", STREAM, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_relative_paths(saved, monkeypatch):
    monkeypatch.chdir(saved)
    assert converters.load("manager/7")["a"].tolist() == [7] * 3


@pytest.mark.parametrize(
    "shape",
    [
        "[4611686018427387904]",
        "[1000000000000000]",
        "[200000000000]",
        "[1e400]",
        "[NaN]",
        "[-1]",
        "[99999999, 99999999]",
    ],
)
def test_a_shape_that_cannot_be_is_one_error(saved, tmp_path, shape):
    folder = pathlib.Path(shutil.copytree(saved / "files", tmp_path / "x"))
    header = folder / "params.Dense_0.bias" / ".zarray"
    text = header.read_text()
    header.write_text(text.replace('"shape":[3]', f'"shape":{shape}'))
    assert header.read_text() != text
    with pytest.raises(CheckpointError, match=r"Dense_0\.bias|cannot be read"):
        formats.read(folder).load()
