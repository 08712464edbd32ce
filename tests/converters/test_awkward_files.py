"""Awkward files: what people and systems put in the way of a conversion, and values that are easily lost on it."""

import os
import pickle

import numpy as np
import pytest

import converters
from converters import CheckpointError

TREE = {"params": {"Dense_0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}}


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# -- what stands in the target's place ---------------------------------------------------------------------------------


def test_a_pipe_is_never_replaced(tmp_path):
    """Nor a device: a rename would put a file in the place of `/dev/null`."""
    converters.save(tmp_path / "a.npz", TREE)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(CheckpointError, match="never replaced"):
            converters.convert(tmp_path / "a.npz", tmp_path / name, format="npz", overwrite=True)
        with pytest.raises(CheckpointError, match="never replaced"):
            converters.save(tmp_path / name, TREE, "npz", overwrite=True)
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_of_other_things_is_not_overwritten(tmp_path):
    converters.save(tmp_path / "a.npz", TREE)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="other things than a checkpoint"):
        converters.convert(tmp_path / "a.npz", tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    converters.convert(tmp_path / "a.npz", tmp_path / "empty", overwrite=True)  # to Orbax
    converters.convert(tmp_path / "a.npz", tmp_path / "empty", format="npz", overwrite=True)  # over Orbax
    assert (tmp_path / "empty").is_file()


# -- values ------------------------------------------------------------------------------------------------------------


def test_big_endian_pickles_are_arrays_like_others(tmp_path):
    """A file's order of bytes is not an array's: NumPy unpickles them in the machine's, too."""
    values = np.random.default_rng(0).normal(size=(40, 50))
    for name, array in (("small", values[:2]), ("large", values)):
        source = tmp_path / f"{name}.pkl"
        source.write_bytes(pickle.dumps({"a": array.astype(">f8"), "b": np.asfortranarray(array.astype(">f8"))}))
        converters.convert(source, tmp_path / f"{name}.msgpack")
        converters.convert_back(tmp_path / f"{name}.msgpack", tmp_path / "back.pkl", overwrite=True)
        for path in (source, tmp_path / "back.pkl"):
            found = converters.load(path)
            assert same(found["a"], array) and same(np.ascontiguousarray(found["b"]), array)


def test_integers_beyond_64_bits(tmp_path):
    """The state of NumPy's generators, which training code pickles beside the parameters."""
    state = np.random.default_rng(3).bit_generator.state
    w = np.ones((2, 3), np.float32)
    whole = {"params": {"linear": {"w": w}}, "step": 3, "np_rng": state}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(whole))
    converters.convert(tmp_path / "a.pkl", tmp_path / "b.pkl", to="haiku")  # a field of its own, no variables
    done = converters.convert_back(tmp_path / "b.pkl", tmp_path / "c.pkl")
    assert "bit for bit" in done.notes[0]
    found = pickle.loads((tmp_path / "c.pkl").read_bytes())
    assert found["np_rng"] == state and found["step"] == 3 and same(found["params"]["linear"]["w"], w)
