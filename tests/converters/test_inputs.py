"""What `--input` understands."""

import jax
import numpy as np
import pytest

from converters._inputs import InputError, parse


def test_every_form(tmp_path):
    x, y = np.arange(6.0).reshape(2, 3), np.arange(3)
    np.savez(tmp_path / "b.npz", x, y, mask=y > 0)
    np.save(tmp_path / "x.npy", x)
    args, kwargs = parse(
        ["float32[4,8]", "int32[]", f"{tmp_path}/b.npz", f"{tmp_path}/x.npy", "3", "train=true", "rate=1e-5", "name='a'",
         f"other={tmp_path}/x.npy", "none"]
    )  # fmt: skip
    assert args[0] == jax.ShapeDtypeStruct((4, 8), np.float32) and args[1].shape == ()
    assert np.array_equal(args[2], x) and np.array_equal(args[3], y) and np.array_equal(args[4], x)
    assert args[5:] == (3, None)
    assert (kwargs["train"], kwargs["rate"], kwargs["name"]) == (True, 1e-5, "a")
    assert np.array_equal(kwargs["mask"], y > 0) and np.array_equal(kwargs["other"], x)


def test_random_values_are_of_the_dtype_and_the_same_for_the_same_seed():
    (a, b), _ = parse(["bfloat16[2,50]", "int32[2,50]<7"], seed=1)
    (c, d), _ = parse(["bfloat16[2,50]", "int32[2,50]<7"], seed=1)
    assert a.dtype.name == "bfloat16" and np.array_equal(a, c) and np.array_equal(b, d)
    assert b.dtype == np.int32 and b.max() == 6 and b.min() == 0
    assert parse(["bool[9]"], seed=0)[0][0].dtype == bool


@pytest.mark.parametrize("text", ["flat32[2]", "float32[2", "x.npz", "__import__('os')", "(" * 5000, "a="])
def test_what_is_none_of_these_is_said(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--input"):
        parse([text])
