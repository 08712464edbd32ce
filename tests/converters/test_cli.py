"""The command line, in this process: what each command prints, its exit status, and errors of one screen."""

import json
import os
import pickle
import subprocess
import sys

import haiku as hk
import numpy as np
import pytest

import converters
from converters import cli
from converters._failure import SCREEN
from tests.wheel import make_files


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    make_files.main(folder)
    return folder


@pytest.fixture
def bridges(made, tmp_path, monkeypatch, capsys):
    """Runs a command beside the files, in a folder of its own; returns exit status, output and error output."""
    for file in made.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)

    def run(*args):
        status = cli.main(args)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return status, out, err

    return run


MODELS = ("--from-model", "old.py:forward", "--into", "new.py:model", "--input", "batch.npz")


def test_help_teaches_with_an_example_each(bridges):
    status, out, _ = bridges("--help")
    commands = [line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line.strip()]
    assert status == 0
    assert commands == ["inspect", "diff", "plan", "convert", "infer", "verify", "report", "completion"]
    for command in commands:
        status, out, _ = bridges(command, "--help")
        assert status == 0 and f"  bridges {command}" in out


def test_help_needs_no_jax():
    run = "cli.main(['--help']); cli.main(['plan', '--help'])"
    code = f"import sys; from converters import cli; {run}; print('jax' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "False"


def test_inspect(bridges):
    status, out, _ = bridges("inspect", "train.pkl", "--depth", "2")
    lines = out.splitlines()
    assert status == 0 and lines[0] == "train.pkl: pickle, 25 entries, 6.20 kB"
    assert lines[1].startswith("Haiku: 8 variables, the state of an optimizer (2)")
    assert "  mlp/~/linear_1  2 arrays, 1.09 kB" in out
    status, out, _ = bridges("inspect", "linen.msgpack")
    assert "    kernel     float32[16,16]  Param" in out and "LayerNorm" in out
    found = json.loads(bridges("inspect", "weights.npz", "--json")[1])
    assert found["layers"]["mlp%2F~%2Flinear_0"] == "Linear" and len(found["lines"]) == 8


def test_inspect_does_not_take_a_scanned_dense_layer_for_a_convolution(bridges, tmp_path):
    dense = {"kernel": np.ones((3, 4, 5), np.float32), "bias": np.ones((3, 5), np.float32)}
    converters.save(
        tmp_path / "scan.msgpack", {"params": {"blocks": {"Dense_0": dense}, "head": {"kernel": dense["bias"]}}}
    )
    found = json.loads(bridges("inspect", "scan.msgpack", "--json")[1])["layers"]
    assert found["params/blocks/Dense_0"] == "Linear, stacked" and found["params/head"] == "Linear"


def test_inspect_folds_and_counts_in_order(bridges, tmp_path):
    params = {f"net/linear_{i}": {"w": np.ones((2, 2), np.float32)} for i in range(12)}
    (tmp_path / "many.pkl").write_bytes(pickle.dumps(params))
    out = bridges("inspect", "many.pkl")[1]
    assert "net/linear_{0..11}  12 x 16 B" in out
    every = bridges("inspect", "many.pkl", "--all")[1]
    assert every.index("net/linear_2 ") < every.index("net/linear_10 ")


def test_names_cannot_steer_the_terminal(bridges, tmp_path):
    (tmp_path / "escape.pkl").write_bytes(pickle.dumps({"a\x1b[2J": {"w": np.ones(1)}}))
    for args in (("inspect", "escape.pkl"), ("diff", "escape.pkl", "params.pkl")):
        _, out, err = bridges(*args)
        assert "\x1b" not in out + err and r"\x1b[2J" in out + err


def test_diff(bridges):
    assert bridges("diff", "params.pkl", "weights.npz")[:2] == (0, "8 entries are the same.\n")
    status, out, _ = bridges("diff", "params.pkl", "linen.msgpack")
    assert status == 1 and "head/w: only in a: float32[16,4]" in out
    bridges("convert", "params.pkl", "other.npz")
    with np.load("other.npz") as archive:
        entries = dict(archive)
    entries["head//b"] = entries["head//b"] + np.float32(2**-20)
    np.savez("other.npz", **entries)
    status, out, _ = bridges("diff", "params.pkl", "other.npz", "--json")
    found = json.loads(out)["differences"]
    assert status == 1 and [(d["path"], d["what"]) for d in found] == [("head/b", "value")]
    assert bridges("diff", "params.pkl", "other.npz", "--tolerance", "1e-4")[0] == 0
    assert bridges("diff", "params.pkl", "other.npz", "--specs-only")[0] == 0


def test_plan_writes_nothing_and_convert_does_what_it_says(bridges, tmp_path):
    before = sorted(tmp_path.iterdir())
    status, out, _ = bridges("plan", "train.pkl", "model.msgpack", *MODELS)
    assert status == 0 and "mlp/~/linear_0 -> Dense_1, by shape" in out and "8 entries -> 8 entries: exact" in out
    planned = json.loads(bridges("plan", "train.pkl", "model.msgpack", *MODELS, "--json")[1])
    assert planned["verdict"] == "exact" and len(planned["plan"]["items"]) == 8
    assert sorted(tmp_path.iterdir()) == before
    status, out, err = bridges("convert", "train.pkl", "model.msgpack", *MODELS)
    assert status == 0 and "exact" in out and err == ""
    assert bridges("convert", "--back", "model.msgpack", "back.pkl")[0] == 0
    assert bridges("diff", "train.pkl", "back.pkl")[0] == 0
    status, out, err = bridges("convert", "train.pkl", "model.msgpack", *MODELS)
    assert (status, out) == (2, "") and "--overwrite" in err
    assert bridges("convert", "train.pkl", "model.msgpack", *MODELS, "--overwrite", "--no-manifest")[0] == 0


def test_a_difference_of_hyperparameters_stops_a_conversion(bridges, tmp_path):
    args = ("--from-model", "old.py:forward", "--into", "new.py:careless", "--input", "batch.npz")
    status, _, err = bridges("convert", "params.pkl", "model.msgpack", *args)
    assert status == 2 and "pass epsilon=1e-05" in err and not (tmp_path / "model.msgpack").exists()


def test_infer(bridges, tmp_path):
    status, out, err = bridges("infer", "old.py:forward", "new.py:Graph", "--input", "float32[1,8]", "-o", "m.toml")
    assert status == 0 and out.startswith("m.toml: 8 of 8 leaves placed") and "outputs agree" in out and err == ""
    assert '"mlp/~/linear_{i:int}" = "layers/{i:int}"' in (tmp_path / "m.toml").read_text()
    assert bridges("infer", "old.py:forward", "new.py:Graph", "--input", "float32[1,8]", "-o", "m.toml")[0] == 2
    args = ("--into", "new.py:Graph", "--input", "batch.npz", "--mapping", "m.toml")
    assert bridges("convert", "params.pkl", "there.msgpack", *args)[0] == 0


def test_infer_says_what_is_open_or_different(bridges):
    args = ("infer", "old.py:forward", "new.py:far", "--input", "float32[2,8]")
    status, out, err = bridges(*args)
    assert status == 1 and "leaves placed" in err and "Traceback" not in err
    status, out, _ = bridges(*args, "--json")
    found = json.loads(out)
    assert status == 1 and not found["complete"] and (found["parting"] or found["unplaced"])
    status, out, err = bridges("infer", "old.py:forward", "new.py:Graph", "--input", "'text'")
    assert (status, out) == (2, "") and "raises, with the inputs" in err


def test_infer_without_inputs_goes_by_names(bridges, tmp_path):
    status, out, _ = bridges("infer", "new.py:Graph", "new.py:Graph", "-o", "m.toml")
    assert status == 0 and "placed by names and shapes" in out
    assert "the models were not run" in (tmp_path / "m.toml").read_text()


def test_verify_and_report(bridges, tmp_path):
    bridges("convert", "params.pkl", "model.msgpack", *MODELS)
    status, out, _ = bridges("verify", "params.pkl", "model.msgpack", *MODELS, "--optimizer", "adam", "--json")
    assert status == 0 and json.loads(out)["verdict"] == "equal"
    careless = (*MODELS[:3], "new.py:careless", *MODELS[4:], "--mapping", "accept.toml")
    status, out, _ = bridges("report", "params.pkl", *careless, "-o", "page.html")
    assert status == 1 and out == "page.html: different\n"
    page = (tmp_path / "page.html").read_text()
    assert "LayerNorm_0" in page and "epsilon is 1e-06 in the target" in page


WRONG = {
    "no such file": (("inspect", "parms.pkl"), "parms.pkl does not exist. Did you mean 'params.pkl'"),
    "a cut file": (("inspect", "cut.pkl"), "cut.pkl"),
    "an input too many": (("plan", "params.pkl", "m.msgpack", *MODELS, "--input", "3"), "is_training=false"),
    "no such optimizer": (("plan", "train.pkl", "m.msgpack", *MODELS, "--optimizer", "adamm"), "Did you mean 'adam"),
    "no transformation": (("plan", "train.pkl", "m.msgpack", *MODELS, "--optimizer", "new.py:model"), "no optax"),
    "no such command": (("inspekt", "params.pkl"), "Did you mean 'inspect'"),
    "no such option": (("inspect", "params.pkl", "--dept", "1"), "--depth"),
    "no such model": (("convert", "params.pkl", "x.npz", "--into", "new.py:modle"), "Did you mean 'model'"),
    "inputs are missing": (("convert", "params.pkl", "x.npz", "--into", "new.py:model"), "made by its inputs"),
    "no ending": (("convert", "params.pkl", "x.what"), "names no format"),
    "no such format": (("convert", "params.pkl", "x", "--to-format", "npzz"), "Did you mean 'npz'"),
    "a model is missing": (("verify", "params.pkl", "--into", "new.py:model"), "--from-model and --into"),
    "a mapping that is none": (("plan", "params.pkl", "x.npz", "--to", "linen", "--mapping", "new.py"), "not TOML"),
    "an option too many": (("convert", "--back", "a", "b", "--to", "flat"), "leave out --to"),
    "no fields": (("inspect", "params.pkl", "--namedtuple", "a.B"), "params,state,opt_state"),
    "no target": (("convert", "params.pkl", "x.msgpack", "--to", "linen"), "--into"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_done_is_one_error(bridges, tmp_path, name):
    args, text = WRONG[name]
    before = sorted(tmp_path.iterdir())
    status, out, err = bridges(*args)
    assert (status, out) == (2, "") and text in err and len(err.splitlines()) <= SCREEN + 3
    status, out, err = bridges(*args, "--json")
    assert (status, err) == (2, "") and text in json.loads(out)["error"]
    assert sorted(tmp_path.iterdir()) == before


def test_an_unforeseen_error_is_no_traceback(bridges, monkeypatch):
    monkeypatch.setattr("converters._inspect.Inspection.of", lambda *a, **k: 1 / 0)
    status, _, err = bridges("inspect", "params.pkl")
    assert status == 2 and err.startswith("bridges: ZeroDivisionError") and "please report it" in err


def test_a_namedtuple_of_ones_own(bridges, tmp_path):
    program = (
        "import collections, pickle, sys\n"
        "T = collections.namedtuple('Training', 'params step'); T.__module__ = 'mine'\n"
        "sys.modules['mine'] = type(sys)('mine'); sys.modules['mine'].Training = T\n"
        "import numpy as np\n"
        f"open({str(tmp_path / 'mine.pkl')!r}, 'wb').write(pickle.dumps(T({{'a': {{'w': np.ones(3)}}}}, 7)))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    status, _, err = bridges("inspect", "mine.pkl")
    assert status == 2 and "mine.Training" in err and "--namedtuple" in err
    status, out, _ = bridges("inspect", "mine.pkl", "--namedtuple", "mine.Training=params,step")
    assert status == 0 and "params" in out and "step" in out


def test_what_is_converted_computes_the_same(bridges, tmp_path):
    """A pickle to safetensors and back to a pickle, read by pickle alone."""
    bridges("convert", "params.pkl", "p.safetensors")
    bridges("convert", "p.safetensors", "q.pkl", "--to", "haiku")
    with open("q.pkl", "rb") as file:
        params = pickle.load(file)
    spaces = {}
    exec(make_files.OLD, spaces)
    net = hk.without_apply_rng(hk.transform(spaces["forward"]))
    with np.load("batch.npz") as batch:
        np.testing.assert_allclose(net.apply(params, batch["arr_0"]), np.load("wanted.npy"), rtol=1e-6)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(bridges, shell):
    assert "_BRIDGES_COMPLETE" in bridges("completion", shell)[1]


def test_files_are_completed():
    """What bash asks for, as the script that `completion` prints does."""
    for words in (
        "bridges convert par",
        "bridges inspect par",
        "bridges convert a b --into par",
        "bridges verify a b --input par",
    ):
        asked = {"_BRIDGES_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        ran = subprocess.run(
            [sys.executable, "-c", "import sys; from converters.cli import main; sys.exit(main([]))"],
            env={**os.environ, **asked},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.stdout == "file,par\n", ran


def test_an_empty_name_is_no_file(bridges):
    """As a variable of the shell that is not set gives; '' would be the folder that one is in."""
    for args in (("inspect", ""), ("convert", "params.pkl", "", "--overwrite"), ("diff", "", "params.pkl")):
        status, _, err = bridges(*args)
        assert status == 2 and "it is empty" in err


PLAIN = """
import jax, jax.numpy as jnp, numpy as np
import bridges as br

def apply(p, x):
    x = jax.nn.relu(x @ p["layers"][0]["w"].T + p["layers"][0]["b"]) @ p["layers"][1]["w"].T + p["layers"][1]["b"]
    x = x - x.mean(-1, keepdims=True)
    x = jax.nn.relu(x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["norm"]["g"] + p["norm"]["b"])
    return x @ p["out"]["w"].T + p["out"]["b"]

def linear(n, m):
    return {"w": np.ones((n, m), np.float32), "b": np.ones(n, np.float32)}

norm = {"g": np.ones(16, np.float32), "b": np.ones(16, np.float32)}
params = {"layers": [linear(16, 8), linear(16, 16)], "norm": norm, "out": linear(4, 16)}
model = br.Function(apply, params)
pair = (apply, params)
"""


def test_a_checkpoint_goes_to_a_plain_function_and_back(bridges, tmp_path):
    (tmp_path / "plain.py").write_text(PLAIN)
    status, out, _ = bridges("infer", "old.py:forward", "plain.py:model", "--input", "float32[3,8]", "-o", "m.toml")
    assert status == 0 and "8 of 8 leaves placed" in out
    ends = ("--from-model", "old.py:forward", "--into", "plain.py:pair", "--input", "batch.npz", "--mapping", "m.toml")
    assert bridges("convert", "params.pkl", "out.npz", *ends)[0] == 0
    status, out, _ = bridges("verify", "params.pkl", "out.npz", *ends, "--json")
    assert status == 0 and json.loads(out)["verdict"] == "equal"
    assert bridges("convert", "--back", "out.npz", "back.pkl")[0] == 0
    assert bridges("diff", "params.pkl", "back.pkl")[0] == 0
