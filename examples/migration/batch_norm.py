"""Mutable state: the running statistics of BatchNorm."""

import jax
import jax.numpy as jnp
from _proof import Proof, randomised, show
from flax import nnx as flax_nnx
from in_core import batch_norm as core
from in_haiku import batch_norm as haiku
from in_linen import batch_norm as linen
from in_nnx import batch_norm as nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter

x = jax.random.normal(jax.random.key(1), (16, 64))
labels = jnp.arange(16) % 10

# region plans
in_haiku = haiku_adapter.spec(haiku.model, x, training=True)
in_linen = linen_adapter.spec(linen.model, x, training=True)
in_nnx = nnx_adapter.spec(nnx.Model, x)
in_core = jax.eval_shape(core.create, 0)

to_linen = br.conventions("haiku", "linen").plan(in_haiku, in_linen)
to_nnx = br.conventions("haiku", "nnx").plan(in_haiku, in_nnx)
to_core = br.Mapping.loads("""
[[rules]]
src = "{collection}/Block_0/Dense_0/{leaf}"
dst = "model/block/linear/{collection}/{leaf}"

[[rules]]
src = "{collection}/Block_0/BatchNorm_0/{leaf}"
dst = "model/block/norm/{collection}/{leaf}"

[[rules]]
src = "{collection}/Dense_0/{leaf}"
dst = "model/linear/{collection}/{leaf}"
""").plan(in_linen, in_core)
back = br.conventions("linen", "haiku").plan(in_linen, in_haiku)

assert (to_linen.verdict, back.verdict) == ("exact for evaluation only", "exact")
# endregion


# region convert
def linen_from(params, state):
    variables = linen_adapter.unflatten(to_linen.forward(haiku_adapter.flatten(params, state)))
    return variables["params"], variables["batch_stats"]


def nnx_from(params, state):
    model = nnx.create(0)
    entries = to_nnx.forward(haiku_adapter.flatten(params, state))
    flax_nnx.update(model, nnx_adapter.unflatten(entries, model))
    return model


def core_from(params, batch_stats):
    return to_core.forward(linen_adapter.flatten({"params": params, "batch_stats": batch_stats}))


def haiku_from(params, batch_stats):
    entries = back.forward(linen_adapter.flatten({"params": params, "batch_stats": batch_stats}))
    return haiku_adapter.unflatten(entries)


# endregion


# region check
def prove(proof: Proof) -> None:
    params, state = haiku.create(0)
    params = randomised(params)
    for _ in range(200):  # until the bias correction of the averages, 1 - 0.9 ** steps, is 1 in float32
        params, state = haiku.train_step(params, state, x, labels)

    in_linen, model = linen_from(params, state), nnx_from(params, state)
    in_core, again = core_from(*in_linen), haiku_from(*in_linen)
    held = haiku.create_train_state(params, state)
    held_linen, held_nnx = linen.create_train_state(*in_linen), nnx.create_train_state(nnx_from(params, state))
    params, state = haiku.train_step(params, state, x, labels)
    wanted = to_linen.forward(haiku_adapter.flatten(params, state))

    held = haiku.train_step_of_train_state(held, x, labels)
    found = haiku_adapter.flatten(held.params, held.state)
    proof.equal("a TrainState's step", haiku_adapter.flatten(params, state), found, column="haiku")
    held_linen = linen.train_step_of_train_state(held_linen, x, labels)
    found = linen_adapter.flatten({"params": held_linen.params, "batch_stats": held_linen.batch_stats})
    proof.equal("a TrainState's step", wanted, found, column="linen")
    held_nnx = nnx.train_step_of_train_state(held_nnx, x, labels)
    trained = flax_nnx.merge_state(held_nnx.params, held_nnx.batch_stats)
    proof.equal(
        "a TrainState's step",
        to_nnx.forward(haiku_adapter.flatten(held.params, held.state)),
        nnx_adapter.flatten(trained),
        column="nnx",
    )

    in_linen = linen.train_step(*in_linen, x, labels)
    variables = dict(zip(("params", "batch_stats"), in_linen, strict=True))
    proof.equal("a step in training", wanted, linen_adapter.flatten(variables), column="linen")
    nnx.train_step(model, x, labels)
    wanted = to_nnx.forward(haiku_adapter.flatten(params, state))
    proof.equal("a step in training", wanted, nnx_adapter.flatten(model), column="nnx")
    in_core, _ = core.train_step(in_core, x, labels)
    proof.equal("a step in training", core_from(*in_linen), in_core, column="core")
    again = haiku.train_step(*again, x, labels)
    wanted = haiku.predict(params, state, x)
    proof.equal("back, and a step in training", wanted, haiku.predict(*again, x), column="haiku")

    entries = haiku_adapter.flatten(params, randomised(state, positive=True))
    proof.start("haiku", entries, lambda e: haiku.predict(*haiku_adapter.unflatten(e), x))
    proof.moved("linen", to_linen, lambda e: linen.model.apply(linen_adapter.unflatten(e), x, training=False))
    proof.moved("nnx", to_nnx, lambda e: nnx_adapter.apply(flax_nnx.view(model, use_running_average=True), e, x)[0])
    proof.moved("core", to_core, lambda e: core.predict(e, x), after="linen")


# endregion


if __name__ == "__main__":
    show(prove, "batch_norm", __doc__)
