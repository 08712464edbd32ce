"""A training step, its state, and the optimizer's."""

import jax
import jax.numpy as jnp
from _proof import Proof, randomised, show
from flax import nnx as flax_nnx
from in_core import train_step as core
from in_haiku import train_step as haiku
from in_linen import train_step as linen
from in_nnx import train_step as nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter

x = jax.random.normal(jax.random.key(1), (16, 64))
labels = jnp.arange(16) % 10

# region plans
in_haiku = haiku_adapter.spec(haiku.model, x)
in_linen = linen_adapter.spec(linen.model, x)
in_nnx = nnx_adapter.spec(nnx.Model, x)
in_core = jax.eval_shape(core.create, 0).filter("trainer/model")

to_linen = br.conventions("haiku", "linen").plan(in_haiku, in_linen)
to_nnx = br.conventions("haiku", "nnx").plan(in_haiku, in_nnx)
to_core = br.Mapping.loads("""
[[rules]]
src = "params/Dense_0/{leaf}"
dst = "trainer/model/hidden/params/{leaf}"

[[rules]]
src = "params/Dense_1/{leaf}"
dst = "trainer/model/out/params/{leaf}"
""").plan(in_linen, in_core)
# endregion


# region convert
def linen_from(old, step):
    like = linen.create(0)
    entries = to_linen.forward(haiku_adapter.flatten(old.params))
    opt_state = to_linen.optimizer(old.opt_state, old.params, like.params)
    return linen_adapter.train_state(like, entries, opt_state, step=step)


def nnx_from(old, step):
    model, optimizer = nnx.create(0)
    entries = to_nnx.forward(haiku_adapter.flatten(old.params))
    flax_nnx.update(model, nnx_adapter.unflatten(entries, model))
    opt_state = to_nnx.optimizer(old.opt_state, old.params, flax_nnx.state(model, flax_nnx.Param))
    flax_nnx.update(optimizer, nnx_adapter.optimizer_state(opt_state, optimizer, step=step))
    return model, optimizer


def nnx_train_state_from(old, step):
    like = nnx.create_train_state(0)
    params = nnx_adapter.unflatten(to_nnx.forward(haiku_adapter.flatten(old.params)), like.params)
    moved = to_nnx.optimizer(old.opt_state, old.params, like.params)
    opt_state = jax.tree.unflatten(jax.tree.structure(like.opt_state), jax.tree.leaves(moved))  # in Params again
    return like.replace(params=params, opt_state=opt_state, step=step)


def core_from(linen_state):
    entries = to_core.forward(linen_adapter.flatten({"params": linen_state.params}))
    opt_state = to_core.optimizer(linen_state.opt_state, linen_state.params, entries)
    state, _ = br.pure(core.trainer.opt.load)(entries, opt_state, create=True)
    return state


# endregion


# region check
def prove(proof: Proof) -> None:
    params = randomised(haiku.create(0).params)
    old = haiku.TrainingState(params, haiku.tx.init(params))
    for key in jax.random.split(jax.random.key(2), 3):  # the run that is left after three steps
        old, _ = haiku.train_step(old, key, x, labels)

    in_linen, (model, optimizer) = linen_from(old, step=3), nnx_from(old, step=3)
    in_core = core_from(in_linen)
    as_train_state = haiku.create_train_state(0).replace(params=old.params, opt_state=old.opt_state, step=3)
    nnx_train_state = nnx_train_state_from(old, step=3)
    for number, key in enumerate(jax.random.split(jax.random.key(3), 3)):  # and goes on, with the same masks of dropout
        old, wanted = haiku.train_step(old, key, x, labels)
        in_linen, loss = linen.train_step(in_linen, key, x, labels)
        proof.equal(f"loss, step {number}", wanted, loss, column="linen")
        proof.equal(f"loss, step {number}", wanted, nnx.train_step(model, optimizer, key, x, labels), column="nnx")
        in_core, loss = core.train_step(in_core, key, x, labels)
        proof.equal(f"loss, step {number}", wanted, loss, column="core")
        as_train_state, loss = haiku.train_step_of_train_state(as_train_state, key, x, labels)
        proof.equal(f"TrainState's loss, step {number}", wanted, loss, column="haiku")
        nnx_train_state, loss = nnx.train_step_of_train_state(nnx_train_state, key, x, labels)
        proof.equal(f"TrainState's loss, step {number}", wanted, loss, column="nnx")
    assert in_linen.step == optimizer.step[...] == 6

    proof.start(
        "haiku", haiku_adapter.flatten(old.params), lambda e: haiku.model.apply(haiku_adapter.unflatten(e)[0], x)
    )
    moved = proof.moved("linen", to_linen, lambda e: linen.model.apply(linen_adapter.unflatten(e), x))
    proof.equal("parameters after 3 steps", moved, linen_adapter.flatten({"params": in_linen.params}), column="linen")
    moved = proof.moved("nnx", to_nnx, lambda e: nnx_adapter.apply(model, e, x)[0])
    proof.equal("parameters after 3 steps", moved, nnx_adapter.flatten(model), column="nnx")
    moved = proof.moved("core", to_core, lambda e: br.pure(core.trainer.model)(e, x)[1], after="linen")
    proof.equal("parameters after 3 steps", moved, in_core.filter("trainer/model"), column="core")


# endregion


if __name__ == "__main__":
    show(prove, "train_step", __doc__)
