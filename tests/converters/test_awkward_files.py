"""Awkward files: what people and systems put in the way of a conversion, and values that are easily lost on it."""

import json
import os
import pickle
import subprocess
import sys

import flax.linen as nn
import haiku as hk
import jax
import ml_dtypes
import numpy as np
import optax
import pytest

import converters
from bridges.core._errors import BridgeError
from converters import CheckpointError, cli
from converters._atomic import replacing
from converters._models import Model
from converters._proof import _function

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


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, CheckpointError, OSError])
def test_nothing_is_left_of_what_a_writer_keeps_beside_its_file(error, tmp_path):
    """Orbax writes to a directory of a longer name; an interrupt during it left that."""
    with pytest.raises((error, CheckpointError)) as raised, replacing(tmp_path / "x[1]") as temporary:
        beside = temporary.with_name(temporary.name + ".orbax-checkpoint-tmp")
        beside.mkdir()
        (beside / "d").write_text("part")
        raise error(f"{temporary} was not written")
    assert not list(tmp_path.iterdir())
    assert error is not CheckpointError or str(raised.value) == f"{tmp_path / 'x[1]'} was not written"


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


def test_numbers_that_a_target_does_not_hold_come_back(tmp_path):
    """NumPy's scalars and what JSON has not are in the manifest by their bytes; only arrays need a residue."""
    rest = {
        "int": np.int64(2**40 + 1),
        "half": ml_dtypes.bfloat16(1.5),
        "flag": np.bool_(True),
        "raw": b"a\0b\0",
        "z": complex(float("nan"), -0.0),
        "nan": float("nan"),
        "text": "run",
        "n": 3,
        "none": None,
    }
    whole = {"params": {"linear": {"w": np.ones((2, 3), np.float32)}}, "rest": rest}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(whole))
    converters.convert(tmp_path / "a.pkl", tmp_path / "b.npz", part="params", framework="haiku")
    done = converters.convert_back(tmp_path / "b.npz", tmp_path / "c.pkl")
    assert "bit for bit" in done.notes[0] and not (tmp_path / "b.npz.residue.npz").exists()
    found = pickle.loads((tmp_path / "c.pkl").read_bytes())["rest"]
    assert found.keys() == rest.keys()
    for name, value in rest.items():
        assert type(found[name]) is type(value)
        assert repr(found[name]) == repr(value) and pickle.dumps(found[name]) == pickle.dumps(value), name


@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.bfloat16])
def test_moments_of_another_dtype_than_the_parameters(dtype, tmp_path):
    """As `mu_dtype` gives them, and NumPy's doubles: JAX's mode of 32 bits is no reason to cut them."""
    rng = np.random.default_rng(0)

    def old(x):
        return hk.LayerNorm(-1, True, True)(hk.Conv1D(4, 3, name="c")(x))

    class New(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)(nn.Conv(4, (3,))(x))

    x = np.ones((1, 5, 2), np.float32)
    params = jax.tree.map(np.asarray, hk.transform(old).init(jax.random.key(0), x))
    state = optax.adam(1e-3).init(params)
    mu = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), state[0].mu)
    whole = (params, {}, (state[0]._replace(mu=mu, count=np.asarray(2**40, np.int64)), *state[1:]))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(jax.tree.map(np.asarray, whole)))
    converters.convert(tmp_path / "a.pkl", tmp_path / "b.msgpack", src_model=old, dst_model=New(), inputs=(x,))
    made = converters.load(tmp_path / "b.msgpack")["opt_state"]["0"]
    assert same(np.asarray(made["mu"]["Conv_0"]["kernel"]), mu["c"]["w"]) and made["count"] == 2**40
    done = converters.convert_back(tmp_path / "b.msgpack", tmp_path / "c.pkl")
    found = pickle.loads((tmp_path / "c.pkl").read_bytes())
    assert "bit for bit" in done.notes[0] and all(jax.tree.leaves(jax.tree.map(same, found[2][0].mu, mu)))


# -- models ------------------------------------------------------------------------------------------------------------

MODELS = """
print("noise")
import flax.linen as nn
from flax import nnx

class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3)(x)

net = Net()

class Graph(nnx.Module):
    def __init__(self, size, rngs):
        self.a = nnx.Linear(2, size, rngs=rngs)

class Stops(nnx.Module):
    def __init__(self, rngs):
        raise SystemExit("no GPU here")
"""


@pytest.fixture
def bridges(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "awkward_models.py").write_text(MODELS)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"linear": {"w": np.ones((2, 3), np.float32), "b": np.ones(3)}}))

    def run(*args):
        status = cli.main(args)
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("net", "missing 1 required positional argument: 'train'"),
        ("Graph", "missing 1 required positional argument: 'size'"),
        ("Stops", "SystemExit: no GPU here"),
    ],
)
def test_what_a_model_raises_names_the_model(bridges, model, why, tmp_path):
    args = ("convert", "a.pkl", "b.npz", "--into", f"awkward_models.py:{model}", "--input", "float32[4,2]")
    status, out, err = bridges(*args)
    assert status == 2 and err.startswith("noise\nbridges: awkward_models.py:" + model) and why in err and not out
    assert "float32[4,2]" in err and "not foreseen" not in err
    status, out, err = bridges(*args, "--json")
    assert status == 2 and why in json.loads(out)["error"]
    assert not (tmp_path / "b.npz").exists()


def test_models_print_beside_the_result(bridges):
    status, out, err = bridges(
        "plan", "a.pkl", "b.npz", "--from-model", "awkward_models.py:net", "--input", "3", "--json"
    )
    assert status == 2 and "noise" in err and "Error" in json.loads(out)["error"]


def test_a_model_file_that_exits(bridges, tmp_path):
    (tmp_path / "awkward_exits.py").write_text("import sys; sys.exit(7)")
    status, _, err = bridges("convert", "a.pkl", "b.npz", "--into", "awkward_exits.py:x", "--input", "float32[4,2]")
    assert status == 2 and "awkward_exits.py cannot be imported: SystemExit: 7" in err


def test_training_mode_may_draw_random_numbers():
    def forward(x):
        return hk.dropout(hk.next_rng_key(), 0.0, hk.Linear(2)(x))

    x = np.ones((3, 2), np.float32)
    model = Model.of(forward)
    spec = model.spec(x)
    ones = {path: np.ones(entry.shape, entry.dtype) for path, entry in spec.entries.items()}
    out, state = _function(model, spec, {}, train=True)(ones, x)
    assert np.array_equal(out, 3 * np.ones((3, 2))) and state.keys() == ones.keys()
    with pytest.raises(BridgeError, match="draws random numbers"):
        _function(model, spec, {})(ones, x)


# -- terminals and names -----------------------------------------------------------------------------------------------


def test_names_that_are_no_text(tmp_path):
    """A file's name is bytes on Linux; what prints and records it must take any."""
    name = os.fsdecode(b"caf\xe9")
    converters.save(tmp_path / f"{name}.npz", TREE)
    done = converters.convert(tmp_path / f"{name}.npz", tmp_path / f"{name}.safetensors")
    assert json.loads(done.manifest.read_bytes())["source"]["name"] == f"{name}.npz"
    converters.convert_back(tmp_path / f"{name}.safetensors", tmp_path / "back.npz")
    assert same(
        converters.load(tmp_path / "back.npz")["params"]["Dense_0"]["kernel"], TREE["params"]["Dense_0"]["kernel"]
    )


CLOSED = """
import os, sys
os.close(1), os.close(2)
sys.stdout = sys.stderr = None
from converters import cli
assert cli.main(["convert", "caf\\udce9.npz", "b.npz"]) == 0
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_terminals_without_unicode(encoding, tmp_path):
    converters.save(tmp_path / os.fsdecode(b"caf\xe9.npz"), {"漢": np.ones(2)})
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONIOENCODING": encoding}
    args = [sys.executable, "-m", "converters", "inspect", b"caf\xe9.npz"]
    ran = subprocess.run(args, cwd=tmp_path, env=env, capture_output=True, check=False)
    assert ran.returncode == 0 and b"float64[2]" in ran.stdout and not ran.stderr, ran
    if encoding == "ascii":
        ran = subprocess.run([sys.executable, "-c", CLOSED], cwd=tmp_path, env=env, check=False)
        assert ran.returncode == 0 and (tmp_path / "b.npz").exists()
