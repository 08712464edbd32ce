from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import textwrap
import warnings
import zipfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters import CheckpointError
from converters.formats import LazyLeaf, npz
from tests.converters.formats.arrays import ARRAYS, EXTENDED, STRIDED, assert_same, same
from tests.converters.formats.faults import damaged, outcome
from tests.converters.formats.trees import trees

TREE = {"mlp/~/linear_0": {"w": np.arange(6.0).reshape(2, 3), "b": np.ones(3, ml_dtypes.bfloat16)}}


def write(path, tree, **metadata):
    assert npz.problems(tree) == []
    npz.write(path, tree, metadata)
    return path


@pytest.mark.parametrize("table", [ARRAYS, EXTENDED, STRIDED], ids=["arrays", "extended", "strided"])
def test_every_array_comes_back(table, tmp_path):
    tree = {"group": dict(table)}
    path = write(tmp_path / "file", tree)
    assert npz.recognises(path)
    assert_same(npz.read(path).load(), tree)
    # NumPy reads the same values, alone; of a dtype that it has no letters for the bits.
    with np.load(path, allow_pickle=False) as archive:
        for name, array in table.items():
            key = "group/" + name.replace("/", "%2F")
            assert same(archive[key].view(array.dtype.newbyteorder("=")), array), name


@settings(max_examples=60)
@given(tree=trees())
def test_every_tree_comes_back(tree, tmp_path_factory):
    path = tmp_path_factory.mktemp("npz") / "file"
    checkpoint = npz.read(write(path, tree))
    assert_same(checkpoint.load(), tree)


def test_each_convention_of_names_is_recognised(tmp_path):
    one = np.ones(2, np.float32)
    for keys, layout, tree in [
        (["a/~/b//w", "c//b"], "haiku", {"a/~/b": {"w": one}, "c": {"b": one}}),
        (["a/~/b:w", "c:b"], "colon", {"a/~/b": {"w": one}, "c": {"b": one}}),
        (["params/a/w", "params/b", "c"], "nested", {"params": {"a": {"w": one}, "b": one}, "c": one}),
        (["w", "b"], "flat", {"w": one, "b": one}),
        (["layers.0.w", "layers.0.b"], "flat: '.' may", {"layers.0.w": one, "layers.0.b": one}),
        (["a//w", "b"], "flat: not every name is module//name", {"a//w": one, "b": one}),
        (["dense/kernel:0", "dense/bias:0"], "flat: not every name is module:name", None),  # TensorFlow's
        (["a/b", "a"], "flat: the names hold '/'", {"a/b": one, "a": one}),
        (["a/", "b"], "flat: the names hold '/'", {"a/": one, "b": one}),
        (["../../etc/passwd", "/root"], "flat", None),
    ]:
        path = tmp_path / "file.npz"
        np.savez(path, **dict.fromkeys(keys, one))
        checkpoint = npz.read(path)
        assert checkpoint.metadata["layout"].startswith(layout), keys
        assert_same(checkpoint.load(), tree or dict.fromkeys(keys, one))


def test_haiku_parameters_are_written_as_module_and_name(tmp_path):
    path = write(tmp_path / "file", TREE, source="step 3")
    with np.load(path) as archive:  # as AlphaFold's loader does
        params: dict = {}
        for key, value in archive.items():
            module, name = key.split("//")
            params.setdefault(module, {})[name] = value
    assert set(params["mlp/~/linear_0"]) == {"w", "b"}
    assert npz.read(path).metadata == {"source": "step 3", "layout": "haiku"}


def test_numpy_reads_it_where_bridges_is_not_installed(tmp_path):
    write(tmp_path / "file.npz", TREE)
    program = """
        import sys
        sys.modules["bridges"] = sys.modules["converters"] = None
        import ml_dtypes, numpy as np
        archive = np.load("file.npz", allow_pickle=False)
        assert (archive["mlp/~/linear_0//w"] == np.arange(6.0).reshape(2, 3)).all()
        assert (archive["mlp/~/linear_0//b"].view(ml_dtypes.bfloat16) == np.ones(3)).all()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, check=True)


def test_plain_values_and_structure(tmp_path):
    tree = {"a": 5, "b": True, "c": 1.5, "d": 1 + 2j, "e": "text é", "f": None, "g": {}}
    tree |= {"h": [1.0, {"x": 2}], "i": np.float32(3)}
    found = npz.read(write(tmp_path / "file", tree)).load()
    assert found["e"] == "text é" and found["f"] is None and found["g"] == {}
    assert (found["a"].dtype, found["b"].dtype, found["c"].dtype, found["d"].dtype) == (
        np.int64,
        np.bool_,
        np.float64,
        np.complex128,
    )
    assert same(found["h"]["1"]["x"], np.int64(2)) and same(found["i"], np.float32(3))


def test_optimizer_state_keeps_its_empty_parts(tmp_path):
    state = optax.chain(optax.clip(1.0), optax.adam(1e-3)).init({"w": jnp.ones(3)})
    found = npz.read(write(tmp_path / "file", state)).load()
    assert found["0"] == {} and set(found["1"]["0"]) == {"count", "mu", "nu"} and found["1"]["1"] == {}


def test_what_cannot_be_held_is_named_with_its_path():
    class Masked(NamedTuple):
        inside: np.ma.MaskedArray

    tree = {
        "object": np.array([{}], object),
        "key": jax.random.key(0),
        "shape": jax.ShapeDtypeStruct((2,), jnp.float32),
        "set": {1, 2},
        "nul\0": np.ones(1),
        "half\ud800": np.ones(1),
        "bytes": b"a\0",
        "text": "a\0",
        "big": 2**70,
        "masked": Masked(np.ma.masked_array([1.0], [True])),
        "stands for": np.zeros(1, [("bfloat16", "V2")]),
        "bits": np.zeros(1, ml_dtypes.int1),
        "good": np.ones(2),
    }
    found = npz.problems(tree)
    assert len(found) == len(tree) - 1 and not any("'good'" in line for line in found)
    for line, reason in {
        "object": "only pickle holds",
        "key": "jax.random.key_data",
        "shape": "without values",
        "set": "is a set",
        "masked/inside": "mask would be lost",
        "big": "Python objects",
    }.items():
        assert any(text.startswith(repr(line)) and reason in text for text in found), line
    assert npz.problems(np.ones(2))[0].startswith("'' is no dictionary")
    assert "make them all strings" in npz.problems({1: np.ones(1), "1": np.ones(1)})[0]


def test_what_only_numpy_has(tmp_path):
    tree = {
        "days": np.array(["2026-11-28", "NaT"], "M8[D]"),
        "spans": np.array([3], "m8[ns]"),
        "texts": np.array(["a", "longer é"]),
        "bytes": np.array([b"a", b"bc"]),
        "fields": np.array([(1, 2.5)], [("a", "<i4"), ("b", "<f8", (1,))]),
        "long": np.ones(2, np.longdouble),
        "big": np.arange(6, dtype=">i2").reshape(2, 3).T,
    }
    path = write(tmp_path / "file", tree)
    assert_same(npz.read(path).load(), tree)
    with np.load(path) as archive:
        assert all(same(archive[name], array) for name, array in tree.items())
    np.savez(tmp_path / "theirs.npz", fields=np.array([(1, 2.5)], [("a", ">i4"), ("b", ">f8")]))
    assert npz.read(tmp_path / "theirs.npz").load()["fields"].tolist() == [(1, 2.5)]


def test_raw_bytes_of_a_lost_dtype_are_given_as_they_are_and_said(tmp_path):
    array = np.arange(4).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "file.npz", x=array)
    checkpoint = npz.read(tmp_path / "file.npz")
    assert checkpoint.tree["x"].dtype == np.dtype("V2")
    assert "view(ml_dtypes.bfloat16)" in checkpoint.metadata["dtypes"]
    assert same(checkpoint.load()["x"].view(ml_dtypes.bfloat16), array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read_lazily(save, tmp_path):
    arrays = {
        **ARRAYS,
        "big endian": np.arange(100_000, dtype=">i4"),
        "fortran": np.asfortranarray(np.ones((300, 400))),
    }
    arrays = {name.replace(" ", "_"): array for name, array in arrays.items()}
    save(tmp_path / "file.npz", **arrays)
    tree = npz.read(tmp_path / "file.npz").tree
    assert all(isinstance(leaf, LazyLeaf) for leaf in tree.values())
    for name, array in arrays.items():
        assert same(tree[name], array) and same(tree[name].read(), array)  # twice
    assert jnp.asarray(tree["fortran"]).sum() == 120_000  # a view of any alignment is an array to JAX


def test_flipped_bits_are_found_by_the_checksum_when_the_array_is_read(tmp_path):
    path = write(tmp_path / "file", {"a": np.arange(64.0), "b": np.ones(3)})
    content = bytearray(path.read_bytes())
    content[content.index(np.arange(64.0).tobytes()) + 100] ^= 1
    path.write_bytes(content)
    tree = npz.read(path).tree
    assert same(tree["b"], np.ones(3))
    with pytest.raises(CheckpointError, match=r"member 'a.npy' is damaged: its bytes do not have the checksum"):
        tree["a"].read()


def archive(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as zipped:
        for name, content in members:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zipfile warns of a name that occurs twice
                zipped.writestr(name, content)
    return file.getvalue()


def npy(header: str, content: bytes = b"", version: bytes = b"\1\0") -> bytes:
    text = header.encode("latin-1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + content


def said(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize(
    "content, text",
    [
        (archive(("a.npy", npy(said("(4,)"), bytes(8)))), "its header promises float32\\[4\\]"),
        (archive(("a.npy", npy(said("(9999999999999,)"))), method=8), "its header promises float32"),
        (archive(("a.npy", npy(said("(-1,)")))), "its header promises"),
        (archive(("a.npy", npy(said("(2**63, 0)")))), "damaged"),
        (archive(("a.npy", npy(said("(9223372036854775808, 0)")))), "its header promises"),
        (archive(("a.npy", npy(said("(nan,)")))), "damaged"),
        (archive(("a.npy", npy(said("(1,)", "'|O'"), b"cos\nsystem\n"))), "reading it runs code"),
        (archive(("a.npy", npy(said("(1,)", "'<U99999999999999'")))), "damaged"),
        (archive(("a.npy", npy("(" * 9000))), "damaged"),
        (archive(("a.npy", npy(said("(1,)"), bytes(4), b"\3\0"))), "version"),
        (archive(("a.npy", b"")), "damaged"),
        (archive(("a.npy", b"not an array at all")), "damaged"),
        (archive(("a.npy", npy(said("()"), bytes(4))), ("a.npy", npy(said("()"), bytes(4)))), "two members 'a'"),
        (archive(("a.npy", npy(said("()"), bytes(4))), ("a", npy(said("()"), bytes(4)))), "two members 'a'"),
        (archive(("a.npy", npy(said("()"), bytes(4))), method=zipfile.ZIP_LZMA), "compressed by method 14"),
        (archive(("a.npy", npy(said("()"), bytes(4))))[:-30], "damaged"),
        (b"PK\3\4", "damaged"),
        (b"", "damaged"),
    ],
)
def test_a_hostile_or_damaged_file_gives_one_clear_error(content, text):
    found = outcome(npz, content)
    assert isinstance(found, str) and re.search(text, found), found


def test_a_bomb_is_refused_by_what_deflate_can_do():
    content = bytearray(archive(("a.npy", npy(said("(250,)"), bytes(1000))), method=8))
    directory = content.index(b"PK\1\2")
    content[directory + 24 : directory + 28] = struct.pack("<I", 3_000_000_000)  # the size that it claims to have
    assert "cannot come out of" in outcome(npz, bytes(content))


def test_no_tree_is_so_deep_that_walking_it_fails():
    name = "/".join("a" * 100)
    found = outcome(npz, archive((f"{name}.npy", npy(said("()"), bytes(4)))))
    assert list(found) == ["a"]
    name = "/".join("a" * 20_000)
    found = outcome(npz, archive((f"{name}.npy", npy(said("()"), bytes(4)))))
    assert list(found) == [name]


def test_other_archives_are_not_taken_for_arrays(tmp_path):
    (tmp_path / "model.pt").write_bytes(archive(("archive/data.pkl", b"")))
    assert not npz.recognises(tmp_path / "model.pt")
    (tmp_path / "empty.npz").write_bytes(archive())
    assert npz.recognises(tmp_path / "empty.npz") and npz.read(tmp_path / "empty.npz").tree == {}
    assert not npz.recognises(tmp_path)


def test_metadata_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="keeps 65,535: shorten it"):
        npz.write(tmp_path / "file", {"a": np.ones(1)}, {"long": "x" * 70_000})


def test_an_encrypted_member_is_refused():
    content = bytearray(archive(("a.npy", npy(said("()"), bytes(4)))))
    content[content.index(b"PK\1\2") + 8] |= 1
    assert "is encrypted" in outcome(npz, bytes(content))


def valid(compressed: bool) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(
        file, **{"a/b": np.arange(6.0), "a/c": np.zeros(2, "V2"), "t": "text"}
    )
    return file.getvalue()


VALID = [valid(False), valid(True)]


@settings(max_examples=200)
@given(content=st.sampled_from(VALID).flatmap(damaged))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(content):
    outcome(npz, content)
