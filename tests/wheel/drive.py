"""Drives every command of an installed wheel, in a folder of files by `make_files.py`; the standard library only.

drive.py bare     no extra is installed: what needs one says which
drive.py all      every extra is
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

BRIDGES = pathlib.Path(sys.executable).with_name("bridges")
MODELS = ["--from-model", "old.py:forward", "--into", "new.py:model", "--input", "batch.npz"]
GRAPH = ["--from-model", "old.py:forward", "--into", "new.py:Graph", "--input", "batch.npz"]
done = 0


def bridges(*args: str, status: int = 0, says: str = "", quiet: bool = True) -> str:
    """Runs a command, checks its exit status and that its output holds a text, and returns its standard output."""
    global done
    result = subprocess.run([BRIDGES, *args], capture_output=True, text=True)
    whole = result.stdout + result.stderr
    problem = ""
    if result.returncode != status:
        problem = f"exit status {result.returncode}, wanted {status}"
    elif says not in whole:
        problem = f"it does not say {says!r}"
    elif "Traceback" in whole:
        problem = "a traceback"
    elif quiet and status == 0 and result.stderr:
        problem = "something on the standard error"
    if problem:
        raise SystemExit(f"bridges {' '.join(args)}: {problem}\n{whole}")
    done += 1
    return result.stdout


def bare() -> None:
    bridges("--help", says="inspect")
    bridges("--version", says="jax-bridges")
    bridges("inspect", "params.pkl", says="float32[16,4]")
    bridges("inspect", "weights.npz", says="Haiku")
    bridges("inspect", "cut.pkl", status=2, says="cut")
    bridges("inspect", "hostile.pkl", status=2)
    assert not pathlib.Path("pwned").exists(), "a hostile pickle was executed"
    bridges("inspect", "linen.msgpack", status=2, says="jax-bridges[flax]")
    bridges("inspect", "flat.safetensors", status=2, says="jax-bridges[safetensors]")
    bridges("convert", "params.pkl", "flat.npz", "--to", "flat", says="exact")
    bridges("convert", "params.pkl", "flat.npz", "--to", "flat", status=2, says="--overwrite")
    bridges("convert", "params.pkl", "no.safetensors", "--to", "flat", status=2, says="jax-bridges[safetensors]")
    bridges("convert", "--back", "flat.npz", "again.pkl")
    bridges("diff", "params.pkl", "again.pkl", says="8 entries are the same")
    bridges("verify", "params.pkl", *MODELS, status=2, says="'haiku'")


def everything() -> None:
    for file in ("params.pkl", "train.pkl", "weights.npz", "linen.msgpack", "flat.safetensors", "graph"):
        assert json.loads(bridges("inspect", file, "--json"))["lines"]
    bridges("plan", "train.pkl", "model.msgpack", *MODELS, says="8 entries -> 8 entries: exact")
    bridges("convert", "train.pkl", "model.msgpack", *MODELS, says="exact")
    bridges("convert", "params.pkl", "orbax", *GRAPH, says="exact")
    bridges("diff", "orbax", "graph", status=1, says="differences")
    bridges("verify", "params.pkl", *MODELS, "--optimizer", "adam", says="equal")
    bridges("verify", "params.pkl", "orbax", *GRAPH, says="equal")
    bridges("report", "params.pkl", *MODELS, "-o", "report.html", says="equal")
    assert "<html" in pathlib.Path("report.html").read_text("utf-8")
    careless = [*MODELS[:3], "new.py:careless", *MODELS[4:]]
    bridges("convert", "params.pkl", "no.msgpack", *careless, status=2, says="pass epsilon=1e-05")
    assert not pathlib.Path("no.msgpack").exists()
    bridges("verify", "params.pkl", *careless, "--mapping", "accept.toml", status=1, says="LayerNorm_0")
    bridges("infer", "old.py:forward", "new.py:Graph", "--input", "float32[1,8]", "-o", "mapping.toml", says="exact")
    bridges("convert", "weights.npz", "mapped", *GRAPH, "--mapping", "mapping.toml")
    bridges("diff", "orbax", "mapped", says="the same")
    bridges("convert", "--back", "mapped", "back.npz")
    bridges("diff", "weights.npz", "back.npz", says="the same")
    for target in ("f.safetensors", "f.npz", "f.msgpack", "f.pkl", "f.orbax"):
        bridges("convert", "params.pkl", target, "--to", "flat")
        bridges("convert", "--back", target, f"back-{target}.pkl")
        bridges("diff", "params.pkl", f"back-{target}.pkl")
    for shell in ("bash", "zsh", "fish"):
        bridges("completion", shell, says="_BRIDGES_COMPLETE")
    bridges("convert", "params.pkl", "x.msgpack", "--into", "new.py:modle", status=2, says="Did you mean 'model'")
    # What was written is what the frameworks' own calls read, with this project out of the way.
    reads = """
import pickle, numpy as np, flax.serialization, jax
from flax import nnx
import orbax.checkpoint as ocp
import new
x, wanted = np.load("batch.npz")["arr_0"], np.load("wanted.npy")
template = new.model.init(jax.random.key(0), x)
found = flax.serialization.msgpack_restore(open("model.msgpack", "rb").read())
variables = flax.serialization.from_state_dict(template, {"params": found["params"]})
np.testing.assert_allclose(new.model.apply(variables, x), wanted, rtol=1e-5, atol=1e-5)  # float32, sums in another order
import os
graph = new.Graph(nnx.Rngs(0))
with ocp.StandardCheckpointer() as checkpointer:
    nnx.update(graph, checkpointer.restore(os.path.abspath("orbax"), nnx.state(graph)))
np.testing.assert_allclose(graph(x), wanted, rtol=1e-5, atol=1e-5)
"""
    blocked = "import sys; sys.modules['bridges'] = sys.modules['converters'] = None\n"
    subprocess.run([sys.executable, "-W", "ignore", "-c", blocked + reads], check=True)


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    {"bare": bare, "all": everything}[sys.argv[1]]()
    print(f"{sys.argv[1]}: {done} commands of the installed wheel behaved")
