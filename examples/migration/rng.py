"""Random streams: noise, dropout, and runs that can be repeated."""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from _proof import Proof, randomised, show
from flax import nnx as flax_nnx
from flax.nnx import bridge as flax_bridge
from in_core import rng as core
from in_haiku import rng as haiku
from in_linen import rng as linen
from in_nnx import rng as nnx

import bridges as br
import converters
from bridges import haiku_adapter, linen_adapter, nnx_adapter

x = haiku.x

# region plans
in_haiku = haiku_adapter.spec(haiku.model, x, training=False)
in_linen = linen_adapter.spec(linen.model, x, training=False)
in_nnx = nnx_adapter.spec(nnx.create(), x, training=False)

to_linen = br.conventions("haiku", "linen").plan(in_haiku, in_linen)
to_nnx = br.conventions("haiku", "nnx").plan(in_haiku, in_nnx)
to_core = br.Mapping.loads("""
[[rules]]
src = "params/{layer}/{leaf}"
dst = "denoiser/{layer}/params/{leaf}"
""").plan(in_linen, core.state)

assert to_nnx.dst_random == (
    "RngCount/dropout/rngs/count",
    "RngCount/noise/count",
    "RngKey/dropout/rngs/key",
    "RngKey/noise/key",
)
# endregion


# region convert
def load_into_nnx(model, params):
    entries = to_nnx.forward(haiku_adapter.flatten(params))
    own = nnx_adapter.flatten(model)  # keys and counts stay the model's own
    flax_nnx.update(model, nnx_adapter.unflatten(own | entries, model))


# endregion


# region between_nnx
between = br.conventions("nnx", "nnx").plan(in_nnx, in_nnx)
assert between.src_random == between.dst_random == ()  # they are entries like the weights

hosted_nnx = br.NNXModule(nnx.create, name="denoiser")
into_core = br.Mapping.loads("""
[[rules]]
src = "{entry:path}"
dst = "denoiser/{entry:path}"
""").plan(in_nnx, br.init(hosted_nnx)({}, x, training=False, seed=0))
# endregion


# region file
def through_a_file(model, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "old", flax_nnx.state(model))
    converters.convert(folder / "old", folder / "new", src_model=nnx.create, dst_model=nnx.create, inputs=(x, False))
    other = nnx.create()
    with ocp.StandardCheckpointer() as checkpointer:
        flax_nnx.update(other, checkpointer.restore(folder / "new", flax_nnx.state(other)))
    return other


# endregion


# region hosted
def hosted_by_nnx(params, step, key):
    model = br.ToNNX(haiku.forward, rngs=flax_nnx.Rngs(0)).lazy_init(x, training=False)
    flax_nnx.update(model, {"variables": linen_adapter.unflatten(haiku_adapter.flatten(params))})
    model.rngs = flax_nnx.Rngs(key)  # which folds its count into the key,
    model.rngs.default.count[...] = jnp.uint32(step)  # as the Haiku program does with its step
    return model


def hosted_by_linen(params, key, x):
    variables = linen_adapter.unflatten(haiku_adapter.flatten(params))
    return br.ToLinen(haiku.forward).apply(variables, x, training=True, rngs={"dropout": key})


def hosted_by_core(params, key, x):
    model = br.HaikuModule(haiku.forward, name="model")
    state = {f"model/{path}": value for path, value in haiku_adapter.flatten(params).items()}
    return br.pure(model)(state, x, training=True, seed=key)[1]


# endregion


# region traps
ones = jnp.ones((4, 16))


def a_count_that_never_moves():
    model = flax_nnx.Dropout(0.5, rngs=flax_nnx.Rngs(0))

    def call(model, x):
        return model(x)

    compiled = jax.jit(call)  # a module is a pytree: the count of a copy goes up
    assert (compiled(model, ones) == compiled(model, ones)).all()
    compiled = flax_nnx.jit(call)
    assert (compiled(model, ones) != compiled(model, ones)).any()


def members_that_drop_alike():
    model = flax_nnx.Dropout(0.5, rngs=flax_nnx.Rngs(0))
    alike = flax_nnx.vmap(lambda model, x: model(x), in_axes=(None, 0))
    first, second = alike(model, jnp.stack([ones, ones]))
    assert (first == second).all()  # without nnx.split_rngs


def a_mask_that_is_constant():
    dropout = flax_bridge.ToLinen(flax_nnx.Dropout, args=(0.5,))
    variables = dropout.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, ones)
    assert (dropout.apply(variables, ones) == dropout.apply(variables, ones)).all()  # no key, no error
    try:
        br.ToLinen(flax_nnx.Dropout, 0.5).apply({}, ones)
    except br.SeedError as err:
        assert "dropout" in str(err)
    else:
        raise AssertionError("a mask was drawn without a key")


# endregion


# region check
def prove(proof: Proof) -> None:
    params = randomised(haiku.params)
    model = nnx.create()
    load_into_nnx(model, params)
    proof.start("haiku", haiku_adapter.flatten(params), lambda e: haiku.predict(haiku_adapter.unflatten(e)[0], x))
    moved = proof.moved("linen", to_linen, lambda e: linen.predict(linen_adapter.unflatten(e)["params"], x))
    proof.moved("nnx", to_nnx, lambda e: nnx_adapter.apply(model, nnx_adapter.flatten(model) | e, x, training=False)[0])
    in_core = proof.moved("core", to_core, lambda e: core.predict(e, x), after="linen")

    # Each framework draws masks of its own from one key, and the same ones again.
    key = jax.random.key(7)
    wanted = haiku.samples(params, x, 3, key)
    in_linen = linen_adapter.unflatten(moved)["params"]
    for found in (linen.samples(in_linen, x, 3, key), core.samples(in_core, x, 3, key)):
        assert found.shape == wanted.shape and (found != wanted).any()
    _, loss = haiku.train_step(params, 0, x, key)
    assert haiku.train_step(params, 0, x, key)[1] == loss != haiku.train_step(params, 1, x, key)[1]

    # Hosted, the Haiku model draws its own: a run of three steps, moved after two.
    saved, _ = haiku.run((params, 0, key), x, 2)
    (trained, _, _), loss = haiku.run(saved, x, 1)
    hosted = hosted_by_nnx(*saved)
    proof.equal("hosted: loss of the step", loss, nnx.train_step(hosted, x), column="nnx")
    params_of = nnx_adapter.flatten(hosted).filter(br.Param)
    found = {path.removeprefix("params/variables/"): value for path, value in params_of.items()}
    proof.equal("hosted: weights after it", haiku_adapter.flatten(trained), found, column="nnx")
    wanted = haiku.model.apply(params, key, x, training=True)
    proof.equal("hosted: with dropout", wanted, hosted_by_linen(params, key, x), column="linen", allowed=0.0)
    proof.equal("hosted: with dropout", wanted, hosted_by_core(params, key, x), column="core", allowed=0.0)

    # From NNX to NNX, and into a part of the core, keys and counts move with the weights.
    nnx.run(model, x, 2)
    entries, other = nnx_adapter.flatten(model), nnx.create()
    flax_nnx.update(other, nnx_adapter.unflatten(between.forward(entries), other))
    with tempfile.TemporaryDirectory() as folder:
        read = through_a_file(model, pathlib.Path(folder))
    state, found = br.pure(hosted_nnx)(into_core.forward(entries), x, training=True)
    wanted = model(x, training=True)
    proof.equal("the next masks", wanted, other(x, training=True), column="nnx", allowed=0.0)
    proof.equal("next masks, from a file", wanted, read(x, training=True), column="nnx", allowed=0.0)
    proof.equal("the next masks", wanted, found, column="core", allowed=0.0)
    assert state["denoiser/RngCount/noise/count"] == model.noise.count[...] == 3

    nnx.train_step_of_key(other, 2, x, key)
    assert other.noise.count[...] == 1  # the step's key took the place of the stream's
    a_count_that_never_moves()
    members_that_drop_alike()
    a_mask_that_is_constant()


# endregion


if __name__ == "__main__":
    show(prove, "rng", __doc__)
