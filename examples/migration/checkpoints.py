"""Checkpoints: pickle, msgpack, Orbax and flat files."""

import contextlib
import io
import os
import pathlib
import pickle
import shlex
import tempfile
from typing import NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from _proof import Proof, randomised, show
from flax import nnx as flax_nnx
from in_core import checkpoints as core
from in_haiku import checkpoints as haiku
from in_linen import checkpoints as linen
from in_nnx import checkpoints as nnx

import bridges as br
import converters
from bridges import haiku_adapter, linen_adapter, nnx_adapter
from converters import cli

x = jax.random.normal(jax.random.key(1), (8, 64))
labels = jnp.arange(8) % 10

# region mapping
CORE_TOML = """
rules = [
  { src = "params/linear/w", dst = "trainer/model/hidden/params/kernel" },
  { src = "params/linear/b", dst = "trainer/model/hidden/params/bias" },
  { src = "params/layer_norm/scale", dst = "trainer/model/norm/params/scale" },
  { src = "params/layer_norm/offset", dst = "trainer/model/norm/params/bias" },
  { src = "params/linear_1/w", dst = "trainer/model/out/params/kernel" },
  { src = "params/linear_1/b", dst = "trainer/model/out/params/bias" },
]
"""
# endregion

# region plan
to_linen = {"src_model": haiku.model, "dst_model": linen.model, "inputs": (x,)}
to_nnx = {"src_model": haiku.model, "dst_model": nnx.Model, "inputs": (x,)}
to_core = {"src_model": haiku.model, "dst_model": core.trainer.model, "inputs": (x,), "mapping": "core.toml"}


def plan():
    for file, arguments in (("run.msgpack", to_linen), ("run.orbax", to_nnx), ("run.npz", to_core)):
        job = converters.Job.of("run.pkl", file, **arguments)
        assert job.verdict == "exact" and not os.path.exists(file)
    return str(job)  # every entry, where it goes, what goes along; no array was read, nothing is written


# endregion


# region convert
def convert():
    converters.convert("run.pkl", "run.msgpack", **to_linen)
    converters.convert("run.pkl", "run.orbax", **to_nnx)
    converters.convert("run.pkl", "run.npz", **to_core)


def load_into_core(path):
    found = converters.load(path)  # the state of the optimizer lies beside the model
    trainer = found["trainer"] | {"opt": {"state": found["opt_state"]}, "rng": found["rng"]}
    return jax.eval_shape(core.create, 0).restore({"trainer": trainer})


# endregion


# region verify
def verify():
    model, _, _ = nnx.load(pathlib.Path("run.orbax"))
    report = converters.verify(
        haiku.model,
        model,
        x,
        src=haiku.load("run.pkl")["params"],
        dst=flax_nnx.state(model),
        dtypes=("float32",),
    )
    assert report.verdict == "equal", report


# endregion

# region shell
SHELL = r"""
bridges inspect run.pkl
bridges plan run.pkl shell.msgpack --input 'float32[8,64]' \
    --from-model in_haiku.checkpoints:model --into in_linen.checkpoints:model
bridges convert run.pkl shell.msgpack --input 'float32[8,64]' \
    --from-model in_haiku.checkpoints:model --into in_linen.checkpoints:model
bridges verify run.pkl shell.msgpack --input 'float32[8,64]' \
    --from-model in_haiku.checkpoints:model --into in_linen.checkpoints:model
bridges convert --back shell.msgpack again.pkl
bridges diff run.pkl again.pkl
bridges convert run.pkl shell.npz --mapping core.toml --input 'float32[8,64]' \
    --from-model in_haiku.checkpoints:model --into in_core.checkpoints:trainer.model
"""
# endregion


def in_a_shell():
    said = io.StringIO()
    for line in SHELL.replace("\\\n", " ").strip().splitlines():
        with contextlib.redirect_stdout(said):
            assert cli.main(shlex.split(line)[1:]) == 0, line
    assert "verdict: equal" in said.getvalue() and "21 entries are the same." in said.getvalue()
    for ending in ("msgpack", "npz"):  # the same files as from Python
        assert pathlib.Path(f"run.{ending}").read_bytes() == pathlib.Path(f"shell.{ending}").read_bytes()


# region back
def back(run):
    linen.save("run.msgpack", run)  # trained on since it was converted; the manifest beside it has stayed
    converters.convert_back("run.msgpack", "back.pkl")
    return haiku.load("back.pkl")


# endregion


def refused(error, text, call, *args, **kwargs):
    """Asserts that a call raises, and what it says."""
    try:
        call(*args, **kwargs)
    except error as err:
        assert text in str(err), err
    else:
        raise AssertionError(f"nothing was raised, where {text!r} was expected")


# region pickles
class Hostile:
    def __reduce__(self):
        return os.mkdir, ("ran",)


class TrainingState(NamedTuple):
    params: dict
    step: int


class FromJax04:  # what JAX before 0.5 wrote for an array
    def __reduce__(self):
        fun, (*args, aval) = jnp.ones(3).__reduce__()
        return fun, (*args, aval | {"named_shape": {}})


def pickles():
    write = pathlib.Path.write_bytes
    write(pathlib.Path("hostile.pkl"), pickle.dumps({"params": Hostile()}))
    refused(converters.CheckpointError, f"{os.mkdir.__module__}.mkdir at 'params'", converters.load, "hostile.pkl")
    assert not os.path.exists("ran")
    haiku.load("hostile.pkl")
    assert os.path.exists("ran")

    assert b"jax._src" in pickle.dumps(jnp.ones(3)) and b"jax" not in pickle.dumps(np.ones(3))
    write(pathlib.Path("old.pkl"), pickle.dumps({"linear": {"w": FromJax04()}}))
    refused(TypeError, "named_shape", haiku.load, "old.pkl")
    assert converters.load("old.pkl")["linear"]["w"].tolist() == [1, 1, 1]

    name = f"{__name__}.TrainingState"
    write(pathlib.Path("own.pkl"), pickle.dumps(TrainingState({}, 7)))
    refused(converters.CheckpointError, f"--namedtuple {name}=FIELD,FIELD", converters.load, "own.pkl")
    assert converters.load("own.pkl", namedtuples={name: ("params", "step")}).step == 7


# endregion


# region msgpack
def msgpack():
    with open("run.msgpack", "rb") as file:
        bare = flax.serialization.msgpack_restore(file.read())["opt_state"]
    assert list(bare) == ["0", "1"]  # no tuple any more, and Adam's NamedTuple a dictionary
    params = linen.load("run.msgpack").params
    refused(AttributeError, "has no attribute 'mu'", linen.tx.update, params, bare, params)

    like, wider = {"w": jnp.ones(3)}, flax.serialization.to_bytes({"w": jnp.ones((5, 5))})
    assert flax.serialization.from_bytes(like, wider)["w"].shape == (5, 5)  # compares no shapes


def into_haiku():  # of a run that began in Linen
    from_linen = {"src_model": linen.model, "dst_model": haiku.model, "inputs": (x,)}
    done = converters.convert("run.msgpack", "bare.pkl", **from_linen)
    assert "--optimizer" in done.notes[0] and type(haiku.load("bare.pkl")["opt_state"]) is dict
    converters.convert("run.msgpack", "typed.pkl", tx=linen.tx, **from_linen)
    assert type(haiku.load("typed.pkl")["opt_state"][0]).__name__ == "ScaleByAdamState"


# endregion


# region orbax
def orbax():
    def relative():
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(pathlib.Path("linen.orbax"), {"w": np.ones(1)})

    refused(ValueError, "should be absolute", relative)
    here = pathlib.Path.cwd()
    params = linen.load("run.msgpack").params
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(here / "linen.orbax", {"params": params, "layers": ({0: np.ones(2)},)})
        checkpointer.save(here / "dense.orbax", params["Dense_1"])
        checkpointer.wait_until_finished()
        found = checkpointer.restore(here / "linen.orbax")
        assert type(found["layers"]) is list and list(found["layers"][0]) == ["0"]  # was a tuple, and a number

        model = nnx.Model(flax_nnx.Rngs(0))
        like = flax_nnx.state(model.out)  # kernel and bias, as in the file
        refused(ValueError, "do not match", checkpointer.restore, here / "dense.orbax", like)

        from_linen = {"src_model": linen.model, "dst_model": nnx.Model, "inputs": (x,), "part": "params"}
        converters.convert("linen.orbax", "model.orbax", **from_linen)
        found = checkpointer.restore(here / "model.orbax", flax_nnx.state(model))
        assert (found["out"]["kernel"][...] == params["Dense_1"]["kernel"]).all()


# endregion


# region dtypes
def dtypes():
    half = {"w": jnp.ones(3, jnp.bfloat16)}
    np.savez("numpy.npz", **half)
    assert np.load("numpy.npz")["w"].dtype == "V2"  # NumPy has no name for it
    converters.save("half.npz", half)
    assert converters.load("half.npz")["w"].dtype == jnp.bfloat16

    grads = jax.grad(lambda tree: tree["w"] * tree["n"], allow_int=True)({"w": 2.0, "n": 3})
    assert grads["n"].dtype == jax.dtypes.float0  # the gradient of an integer
    written = flax.serialization.to_bytes(grads)
    refused(ValueError, "itemsize", flax.serialization.msgpack_restore, written)
    refused(br.UnsupportedError, "'n' has the dtype", converters.save, "grads.msgpack", grads)


# endregion


# region keys
def keys():
    key = jax.random.key(0)
    assert b"jax._src.random" in pickle.dumps(key)  # only this release of JAX reads it
    refused(TypeError, "jax.random.key_data", flax.serialization.to_bytes, {"rng": key})
    for name in ("key.pkl", "key.msgpack"):
        refused(br.UnsupportedError, "store jax.random.key_data(key)", converters.save, name, {"rng": key})
    converters.save("key.orbax", {"rng": key})
    assert converters.load("key.orbax")["rng"].dtype == key.dtype


# endregion


# region check
def prove(proof: Proof) -> None:
    weights(proof)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        pathlib.Path("core.toml").write_text(CORE_TOML)
        old = haiku.create(0)
        for _ in range(2):
            old, _ = haiku.train_step(old, x, labels)
        haiku.save("run.pkl", old)

        assert "the state of an optimizer (opt_state), also rng, step" in plan()
        convert()
        verify()
        in_a_shell()
        for trap in (pickles, msgpack, into_haiku, orbax, dtypes, keys):
            trap()
        go_on(proof, old)


def go_on(proof: Proof, old) -> None:
    in_linen = linen.load("run.msgpack")
    model, optimizer, rng = nnx.load(pathlib.Path("run.orbax"))
    in_core = load_into_core("run.npz")
    for number in (3, 4):
        old, wanted = haiku.train_step(old, x, labels)
        in_linen, loss = linen.train_step(in_linen, x, labels)
        proof.equal(f"loss, step {number}", wanted, loss, column="linen")
        rng, loss = nnx.train_step(model, optimizer, rng, x, labels)
        proof.equal(f"loss, step {number}", wanted, loss, column="nnx")
        in_core, loss = core.train_step(in_core, x, labels)
        proof.equal(f"loss, step {number}", wanted, loss, column="core")
    assert old["step"] == in_linen.step == optimizer.step[...] == in_core["trainer/opt/state/0/count"] == 4

    core.save("own.npz", in_core)  # each column reads what it wrote
    assert all((in_core[path] == value).all() for path, value in core.load("own.npz").items())
    nnx.save(pathlib.Path("own.orbax"), model, optimizer, rng)
    assert (nnx.load(pathlib.Path("own.orbax"))[2] == rng).all()

    again = back(in_linen)
    for number in (5, 6):
        old, wanted = haiku.train_step(old, x, labels)
        again, loss = haiku.train_step(again, x, labels)
        proof.equal(f"loss back, step {number}", wanted, loss, column="haiku")
    assert again["step"] == 6


# endregion


def weights(proof: Proof) -> None:
    """Compares all that the models compute, by the plans that the conversions of the files have."""
    fresh = haiku.create(0)
    ends = haiku_adapter.spec(haiku.model, x), linen_adapter.spec(linen.model, x), nnx_adapter.spec(nnx.Model, x)
    in_core = jax.eval_shape(core.create, 0).filter("trainer/model")
    model = nnx.Model(flax_nnx.Rngs(0))

    def apply(entries):
        return haiku.model.apply(haiku_adapter.unflatten(entries)[0], {}, x)[0]

    proof.start("haiku", haiku_adapter.flatten(randomised(fresh["params"])), apply)
    plan = br.conventions("haiku", "linen").plan(ends[0], ends[1])
    proof.moved("linen", plan, lambda e: linen.model.apply(linen_adapter.unflatten(e), x))
    plan = br.conventions("haiku", "nnx").plan(ends[0], ends[2])
    proof.moved("nnx", plan, lambda e: nnx_adapter.apply(model, e, x)[0])
    plan = br.Mapping.loads(CORE_TOML).plan(ends[0], in_core)
    proof.moved("core", plan, lambda e: br.pure(core.trainer.model)(e, x)[1])


if __name__ == "__main__":
    show(prove, "checkpoints", __doc__)
