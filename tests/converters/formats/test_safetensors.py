from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors import numpy as library

from converters import CheckpointError
from converters.formats import LazyLeaf, safetensors
from tests.converters.formats.arrays import ARRAYS, EXTENDED, STRIDED, assert_same, same
from tests.converters.formats.faults import damaged, outcome
from tests.converters.formats.trees import trees


def write(path, tree, **metadata):
    assert safetensors.problems(tree) == []
    safetensors.write(path, tree, metadata)
    return path


def held(*tables):
    """Returns the arrays of the tables whose dtype the format has."""
    found = {name: array for table in tables for name, array in table.items()}
    return {name: a for name, a in found.items() if a.dtype.newbyteorder("=") in safetensors.DTYPES.values()}


@pytest.mark.parametrize("table", [ARRAYS, EXTENDED, STRIDED], ids=["arrays", "extended", "strided"])
def test_every_array_that_it_holds_comes_back_and_the_library_reads_it(table, tmp_path):
    tree = {"group": held(table)}
    path = write(tmp_path / "file", tree)
    assert safetensors.recognises(path)
    assert_same(safetensors.read(path).load(), tree)
    # Release 0.8.0 checks and gives out the bytes of every dtype; its NumPy and Flax readers know no float8.
    raw = {name: part["data"] for name, part in deserialize(path.read_bytes())}
    assert raw.keys() == {f"group/{name}" for name in tree["group"]}
    for name, array in tree["group"].items():
        assert raw[f"group/{name}"] == array.astype(array.dtype.newbyteorder("<")).tobytes(), name
    known = {name: array for name, array in tree["group"].items() if "float8" not in name}
    write(tmp_path / "known", known)
    theirs = library.load_file(tmp_path / "known")
    assert theirs.keys() == known.keys() and all(same(theirs[name], known[name]) for name in known)
    refused = [line.partition("'")[2].partition("'")[0] for line in safetensors.problems({"x": table})]
    assert set(refused) == {f"x/{name}" for name in table if name not in tree["group"]}


@settings(max_examples=60)
@given(tree=trees(held(ARRAYS, EXTENDED, STRIDED)))
def test_every_tree_comes_back(tree, tmp_path_factory):
    path = tmp_path_factory.mktemp("safetensors") / "file"
    if "__metadata__" not in tree:
        assert_same(safetensors.read(write(path, tree)).load(), tree)


def test_the_bytes_are_the_library_s_own(tmp_path):
    arrays = {f"{code}": np.ones((2, 3), dtype) for code, dtype in safetensors.DTYPES.items()}
    arrays |= {name: np.ones(3, np.float32) for name in ("z", "a", "é", '"', "\n", "\x01", "漢", "10", "9")}
    for metadata in ({}, {"format": "pt"}, {"é": '"\\\n'}):
        library.save_file(arrays, tmp_path / "theirs", metadata=metadata or None)
        theirs = (tmp_path / "theirs").read_bytes()
        (tmp_path / "ours").unlink(missing_ok=True)
        write(tmp_path / "ours", arrays, **metadata)
        assert (tmp_path / "ours").read_bytes() == theirs
        assert_same(safetensors.read(tmp_path / "theirs").load(), arrays)


def test_the_library_writes_wrong_bytes_for_a_transpose_and_this_does_not(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    library.save_file({"a": array}, tmp_path / "theirs")
    write(tmp_path / "ours", {"a": array})
    assert not same(library.load_file(tmp_path / "theirs")["a"], array), "mended: drop the note in docs/files.md"
    assert same(library.load_file(tmp_path / "ours")["a"], array)


def test_flax_reads_it_where_bridges_is_not_installed(tmp_path):
    tree = {"params": {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3).T, "b": np.ones(3, ml_dtypes.bfloat16)}}
    write(tmp_path / "file", tree)
    program = """
        import sys
        sys.modules["bridges"] = sys.modules["converters"] = None
        import numpy as np, jax.numpy as jnp, safetensors.flax, safetensors.numpy
        for load in safetensors.flax.load_file, safetensors.numpy.load_file:
            found = load("file")
            assert (found["params/w"] == np.arange(6.0).reshape(2, 3).T).all()
            assert found["params/b"].dtype == jnp.bfloat16 and (found["params/b"] == 1).all()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, check=True)


def test_names_of_other_programs(tmp_path):
    one = np.ones(2, np.float32)
    for names, layout, tree in [
        (["model.layers.0.w", "model.norm.w"], "flat: '.' may", {"model.layers.0.w": one, "model.norm.w": one}),
        (["a/b", "a/c"], "nested", {"a": {"b": one, "c": one}}),
        (["a//b", "a"], "flat: the names hold '/'", {"a//b": one, "a": one}),
        (["a/b", "a"], "flat: the names hold '/'", {"a/b": one, "a": one}),
        (["100%", "b"], "flat: the names hold '/' or '%'", {"100%": one, "b": one}),
        (["../../x", "w"], "nested", {"..": {"..": {"x": one}}, "w": one}),
        (["a:b", "c:d"], "flat", {"a:b": one, "c:d": one}),
    ]:
        library.save_file(dict.fromkeys(names, one), tmp_path / "file", metadata={"format": "pt"})
        found = safetensors.read(tmp_path / "file")
        assert found.metadata["layout"].startswith(layout) and found.metadata["format"] == "pt"
        assert_same(found.load(), tree)


def test_plain_numbers_structure_and_metadata(tmp_path):
    state = optax.chain(optax.clip(1.0), optax.adam(1e-3)).init({"w": jnp.ones(3)})
    tree = {"step": 5, "on": True, "rate": 0.1, "none": None, "opt": state}
    found = safetensors.read(write(tmp_path / "file", tree, source="here"))
    assert found.metadata == {"source": "here", "layout": "nested"}
    loaded = found.load()
    assert same(loaded["step"], np.int64(5)) and same(loaded["on"], np.True_) and same(loaded["rate"], np.float64(0.1))
    assert loaded["none"] is None and loaded["opt"]["0"] == {} and set(loaded["opt"]["1"]["0"]) == {"count", "mu", "nu"}


def test_arrays_stay_in_the_file_until_they_are_asked_for(tmp_path):
    path = write(tmp_path / "file", {"a": np.arange(100_000.0), "b": np.arange(5, dtype=np.int8)})
    tree = safetensors.read(path).tree
    assert all(isinstance(leaf, LazyLeaf) for leaf in tree.values())
    mapped = tree["a"].read()
    assert not mapped.flags.owndata and not mapped.flags.writeable and mapped.flags.aligned
    assert same(mapped, np.arange(100_000.0)) and same(tree["b"], np.arange(5, dtype=np.int8))
    # A new file in its place is another file.
    write(tmp_path / "new", {"a": np.zeros(100_000)})
    (tmp_path / "new").replace(path)
    assert same(tree["a"].read(), np.arange(100_000.0))


def test_many_arrays_at_once_take_few_handles(tmp_path):
    path = write(tmp_path / "file", {f"{i}": np.full(50_000, i, np.float32) for i in range(40)})
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    loaded = safetensors.read(path).load()
    assert not before or len(os.listdir("/proc/self/fd")) - before < 10
    assert all(same(loaded[f"{i}"], np.full(50_000, i, np.float32)) for i in range(40))


def sharded(directory, metadata=None):
    directory.mkdir()
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    a, b = {"x.w": np.ones((2, 3), np.float32)}, {"x.b": np.zeros(3, ml_dtypes.bfloat16), "y": np.arange(4)}
    library.save_file(a, directory / first, metadata={"format": "pt"})
    library.save_file(b, directory / second)
    index = {"metadata": {"total_size": 62}, "weight_map": {**dict.fromkeys(a, first), **dict.fromkeys(b, second)}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return {**a, **b}


def test_several_files_with_an_index_are_one_checkpoint(tmp_path):
    tree = sharded(tmp_path / "model")
    for name in (
        "",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ):
        path = tmp_path / "model" / name
        assert safetensors.recognises(path)
        found = safetensors.read(path)
        assert found.path == path and found.metadata["format"] == "pt"
        assert_same(found.load(), tree)


def test_a_directory_of_one_file(tmp_path):
    write(tmp_path / "model.safetensors", {"a": np.ones(1)})
    assert safetensors.recognises(tmp_path)
    assert_same(safetensors.read(tmp_path).load(), {"a": np.ones(1)})
    write(tmp_path / "other.safetensors", {"a": np.ones(1)})
    assert not safetensors.recognises(tmp_path)
    with pytest.raises(CheckpointError, match="Name the file"):
        safetensors.read(tmp_path)


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda index: index["weight_map"].update(z="model-00003-of-00002.safetensors"), "not beside it"),
        (lambda index: index["weight_map"].update(z="model-00001-of-00002.safetensors"), "does not hold:\n  - 'z'"),
        (lambda index: index["weight_map"].update(z="../secret"), "files lie beside their index"),
        (lambda index: index["weight_map"].update(z="/etc/passwd"), "files lie beside their index"),
        (lambda index: index["weight_map"].update(z=3), "no mapping from names to files"),
        (lambda index: index.update(weight_map=[]), "no mapping from names to files"),
        (lambda index: index.pop("weight_map"), "damaged"),
    ],
)
def test_an_index_that_does_not_fit_its_files(change, text, tmp_path):
    sharded(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=text):
        safetensors.read(file)


def test_an_array_in_no_line_of_the_index_is_said(tmp_path):
    sharded(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    del index["weight_map"]["y"]
    file.write_text(json.dumps(index))
    found = safetensors.read(file)
    assert "'y' in model-00002-of-00002" in found.metadata["unlisted"] and set(found.tree) == {"x.w", "x.b"}


def test_what_cannot_be_held_is_named_with_its_path():
    tree = {
        "complex": np.ones(2, np.complex128),
        "int4": np.ones(2, ml_dtypes.int4),
        "key": jax.random.key(0),
        "text": "abc",
        "__metadata__": np.ones(1),
        "half\ud800": np.ones(1),
        "void": np.zeros(1, "V2"),
        "good": np.ones(2),
    }
    found = safetensors.problems(tree)
    assert len(found) == len(tree) - 1 and not any("'good'" in line for line in found)
    assert any(line.startswith("'complex' has the dtype complex128, which safetensors lacks") for line in found)
    assert safetensors.problems(np.ones(2))[0].startswith("'' is no dictionary")


def file(header, content=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


ENTRY = json.dumps(entry()).encode()


@pytest.mark.parametrize(
    "content, text",
    [
        (file({}, length=2**63), "9,223,372,036,854,775,808 bytes"),
        (file({"a": entry()}, bytes(4), length=2**40), "header is said to have"),
        (file({"a": entry()}, bytes(3)), "damaged"),
        (file({"a": entry()}, bytes(5)), "damaged"),
        (file({"a": entry(offsets=(0, 8))}, bytes(8)), "damaged"),
        (file({"a": entry(offsets=(4, 0))}, bytes(4)), "damaged"),
        (file({"a": entry(offsets=(-4, 0))}, bytes(4)), "damaged"),
        (file({"a": entry(), "b": entry()}, bytes(4)), "damaged"),  # overlapping
        (file({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)), "damaged"),  # a hole
        (file({"a": entry(shape=(2**62, 2**62))}, bytes(4)), "damaged"),
        (file({"a": entry(shape=(2**62, 2**30, 0), offsets=(0, 0))}), "damaged"),
        (file({"a": entry(shape=(-1,))}, bytes(4)), "damaged"),
        (file(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)), "damaged"),
        (file({"a": entry(dtype="F31")}, bytes(4)), "damaged"),
        (file({"a": entry(dtype="F4", shape=(8,))}, bytes(4)), "'a' is F4"),
        (file(b'{"a":%s,"a":%s}' % (ENTRY, ENTRY), bytes(4)), "two entries 'a'"),
        (file(b'{"a":' * 50_000), "damaged"),
        (file(b'{"__metadata__":{"a":1}}'), "damaged"),
        (file({"__metadata__": {"bridges.empty": "[]"}}), "does not fit"),
        (file({"__metadata__": {"bridges.empty": '{"a": null}'}, "a": entry()}, bytes(4)), "does not fit"),
        (file({"__metadata__": {"bridges.empty": "[" * 50_000}}), "damaged"),
        (file(b"\xff\xfe{}"), "damaged"),
        (b"\0" * 7, "damaged"),
        (b"", "damaged"),
    ],
)  # fmt: skip
def test_a_hostile_or_damaged_file_gives_one_clear_error(content, text):
    found = outcome(safetensors, content)
    assert isinstance(found, str) and re.search(text, found), found


def test_no_tree_is_so_deep_that_walking_it_fails():
    name = "/".join("a" * 20_000)
    assert list(outcome(safetensors, file({name: entry()}, bytes(4)))) == [name]


@pytest.mark.parametrize("content", [b'{"abc":{"d":1}}', b"PK\3\4", b"text that is long enough", b"\x80\x04}."])
def test_other_files_are_not_taken_for_it(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    assert not safetensors.recognises(tmp_path / "file")
    assert not safetensors.recognises(tmp_path)


VALID = [
    library.save({"a/b": np.arange(6, dtype=np.float32), "a/c": np.ones((2, 2), np.int8)}, {"format": "pt"}),
    file(
        {"a": entry(), "b": entry("BF16", (0, 2), (4, 4)), "__metadata__": {"bridges.empty": '{"c": null}'}}, bytes(4)
    ),
    json.dumps({"metadata": {}, "weight_map": {"a": "file"}}).encode(),
]


@settings(max_examples=200)
@given(content=st.sampled_from(VALID).flatmap(damaged))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(content):
    outcome(safetensors, content)
