"""Optimizers and their state: moments, schedules, groups, a rate set by hand."""

import jax
import jax.numpy as jnp
from _proof import Proof, difference, randomised, show
from flax import nnx as flax_nnx
from flax.training.train_state import TrainState
from in_core import optimizers as core
from in_haiku import optimizers as haiku
from in_linen import optimizers as linen
from in_nnx import optimizers as nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter

x = jax.random.normal(jax.random.key(1), (16, 8))
y = jax.random.normal(jax.random.key(2), (16, 6, 4))

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
dst = "trainer/model/linear/params/{leaf}"

[[rules]]
src = "params/ConvTranspose_0/{leaf}"
dst = "trainer/model/up/params/{leaf}"
""").plan(in_linen, in_core)
# endregion


# region convert
def linen_from(old, step):
    like = jax.eval_shape(linen.create, 0)  # shapes are enough
    entries = to_linen.forward(haiku_adapter.flatten(old.params))
    opt_state = to_linen.optimizer(old.opt_state, old.params, like.params)
    return linen_adapter.train_state(like, entries, opt_state, step=step)


def nnx_from(old, step):
    model, optimizer = nnx.create(0)
    entries = to_nnx.forward(haiku_adapter.flatten(old.params))
    flax_nnx.update(model, nnx_adapter.unflatten(entries, model))
    opt_state = to_nnx.optimizer(old.opt_state, old.params, flax_nnx.state(model, optimizer.wrt))
    flax_nnx.update(optimizer, nnx_adapter.optimizer_state(opt_state, optimizer, step=step))
    return model, optimizer


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
    for _ in range(3):  # the run that is left after six steps
        old, _ = haiku.train_step(old, x, y)
    old = haiku.set_rate(old, 1e-3)
    for _ in range(3):
        old, _ = haiku.train_step(old, x, y)

    linen_state, (model, optimizer) = linen_from(old, step=6), nnx_from(old, step=6)
    core_state, switch = core_from(linen_state), linen_state
    for number in range(6, 10):
        old, wanted = haiku.train_step(old, x, y)
        linen_state, loss = linen.train_step(linen_state, x, y)
        proof.equal(f"loss, step {number}", wanted, loss, column="linen")
        proof.equal(f"loss, step {number}", wanted, nnx.train_step(model, optimizer, x, y), column="nnx")
        core_state, loss = core.train_step(core_state, x, y)
        proof.equal(f"loss, step {number}", wanted, loss, column="core")
    state = haiku.look(old)
    assert state["steps of Adam"] == state["steps of the schedule"] == 10 and state["rate by hand"] == jnp.float32(1e-3)
    state["first moment"] = jnp.swapaxes(state["first moment"], -1, -2)  # Haiku stores this kernel the other way round
    proof.equal("the optimizer's state", state, linen.look(linen_state), column="linen")
    proof.equal("the optimizer's state", state, nnx.look(optimizer), column="nnx")
    proof.equal("the optimizer's state", state, core.look(core_state), column="core")

    def by_rank(params):
        return jax.tree.leaves(jax.tree.map(lambda value: "weights" if value.ndim > 1 else "rest", params))

    assert by_rank(old.params) == jax.tree.leaves(haiku.groups(old.params))
    assert by_rank(linen_state.params) == jax.tree.leaves(linen.groups(linen_state.params))
    nnx_params, core_params = flax_nnx.state(model, flax_nnx.Param), dict(core_state.filter("trainer/model"))
    assert by_rank(nnx_params) == jax.tree.leaves(nnx.groups(nnx_params))
    assert by_rank(core_params) == jax.tree.leaves(core.groups(core_params))

    nnx.set_rate(optimizer, 1e-2)  # by hand again, on the other side
    core_state = core.set_rate(core_state, 1e-2)
    assert nnx.look(optimizer)["rate by hand"] == core.look(core_state)["rate by hand"] == jnp.float32(1e-2)

    to_haiku = br.conventions("linen", "haiku").plan(in_linen, in_haiku)
    moved = to_linen.optimizer(old.opt_state, old.params, linen_state.params)
    back = to_haiku.optimizer(moved, linen_state.params, old.params)
    proof.equal("the state's way back", old.opt_state, back, column="linen", allowed=0.0)

    proof.start(
        "haiku", haiku_adapter.flatten(old.params), lambda e: haiku.model.apply(haiku_adapter.unflatten(e)[0], x)
    )
    proof.moved("linen", to_linen, lambda e: linen.model.apply(linen_adapter.unflatten(e), x))
    proof.moved("nnx", to_nnx, lambda e: nnx_adapter.apply(model, e, x)[0])
    proof.moved("core", to_core, lambda e: br.pure(core.trainer.model)(e, x)[1], after="linen")
    left_out(switch)


# endregion


# region left_out
def left_out(state):
    """What the first step after the switch is without the plan."""

    def step(opt_state):
        after, _ = linen.train_step(state.replace(opt_state=opt_state), x, y)
        moved = jax.tree.map(jnp.subtract, after.params, state.params)["ConvTranspose_0"]
        return moved["kernel"], jnp.max(jnp.abs(moved["bias"]))

    kernel, bias = step(state.opt_state)  # how far the kernel went, and the bias at most

    fresh = linen.tx.init(state.params)  # the optimizer anew
    kernel_, bias_ = step(fresh)
    assert not kernel_.any()  # the warm-up begins again, at a rate of 0
    assert 2.9 < bias_ / bias < 3.1

    moments_only = jax.tree.map(lambda new, old: old if old.ndim else new, fresh, state.opt_state)
    kernel_, bias_ = step(moments_only)  # the arrays, without counts and rates
    assert not kernel_.any()
    assert 5.5 < bias_ / bias < 6.5

    def as_haiku_has_it(value):
        return jnp.swapaxes(value, -1, -2) if value.ndim == 3 else value

    kernel_, _ = step(jax.tree.map(as_haiku_has_it, state.opt_state))  # leaf by leaf: all shapes fit
    assert 1.5 < difference(kernel, kernel_) < 1.9

    def groups(params):  # by the old names, which no entry has any more
        return jax.tree.map_with_path(lambda path, _: "weights" if path[-1].key == "w" else "rest", params)

    like = TrainState.create(apply_fn=None, params=state.params, tx=linen.optimizer(groups))
    try:
        linen_adapter.train_state(like, {"params": state.params}, state.opt_state)
    except br.StructureError as err:
        assert "weights" in str(err)
    else:
        raise AssertionError("a state of other groups was taken")


# endregion


if __name__ == "__main__":
    show(prove, "optimizers", __doc__)
