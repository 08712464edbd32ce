"""One layer at a time: both frameworks in one model."""

import haiku as hk
import jax
import jax.numpy as jnp
from _proof import Proof, randomised, show
from flax import linen as nn
from flax import nnx as flax_nnx
from in_encoder import incremental as encoder
from in_haiku import incremental as haiku
from in_head import incremental as head
from in_leaf import incremental as leaf
from in_nnx import incremental as nnx
from in_whole import incremental as whole

import bridges as br
from bridges import haiku_adapter, nnx_adapter

x = jax.random.normal(jax.random.key(1), (16, 8))
labels = jnp.arange(16) % 10

# region specs
in_haiku = haiku_adapter.spec(haiku.model, x, training=True)
in_leaf = haiku_adapter.spec(leaf.model, x, training=True)
in_whole, in_head, in_encoder, in_nnx = (
    nnx_adapter.spec(lambda program=program: program.create(0)[0]) for program in (whole, head, encoder, nnx)
)
haiku_to_nnx = br.conventions("haiku", "nnx")
# endregion

# region to_whole
to_whole = br.Mapping.loads("""
[[rules]]
src = "params/{p:path}"
dst = "params/net/variables/params/{p:path}"

[[rules]]
src = "state/{p:path}"
dst = "batch_stats/net/variables/state/{p:path}"
""").plan(in_haiku, in_whole)
# endregion

# region to_head
to_head = (
    br.Mapping.loads("""
[modules]  # becomes NNX
"net/variables/params/head" = "head"

[[rules]]  # stays Haiku
src = "params/net/variables/params/encoder/{p:path}"
dst = "params/features/variables/params/encoder/{p:path}"

[[rules]]
src = "batch_stats/net/{p:path}"
dst = "batch_stats/features/{p:path}"
""")
    | haiku_to_nnx
).plan(in_whole, in_head)
# endregion

# region to_encoder
to_encoder = (
    br.Mapping.loads("""
[modules]
"features/variables/params/encoder" = "encoder"

[[rules]]
src = "batch_stats/features/{p:path}"
dst = "batch_stats/scale/{p:path}"

[[rules]]
src = "params/head/{p:path}"
dst = "params/head/{p:path}"
""")
    | haiku_to_nnx
).plan(in_head, in_encoder)
# endregion

# region to_nnx
to_nnx = br.Mapping.loads("""
[[rules]]
src = "batch_stats/scale/variables/state/scale/square"
dst = "batch_stats/scale/square"

[[rules]]
src = "params/{p:path}"
dst = "params/{p:path}"
""").plan(in_encoder, in_nnx)
# endregion

# region to_leaf
to_leaf = (
    br.Mapping.loads("""
[modules]
"head" = "head"

[[rules]]
src = "params/encoder/{p:path}"
dst = "params/encoder/{p:path}"

[[rules]]
src = "state/{p:path}"
dst = "state/{p:path}"
""")
    | haiku_to_nnx
).plan(in_haiku, in_leaf)
# endregion

# region at_once
at_once = (
    br.Mapping.loads("""
[[rules]]
src = "state/scale/square"
dst = "batch_stats/scale/square"
""")
    | haiku_to_nnx
).plan(in_haiku, in_nnx)
# endregion


# region linen
class LinenHead(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jax.nn.relu(nn.Dense(16, name="hidden")(x))
        return nn.Dense(10, name="out")(x)


class WithLinen(flax_nnx.Module):
    """The classifier in NNX, with its running statistics in Haiku and a head in Linen."""

    def __init__(self, x, rngs):
        self.encoder = encoder.Encoder(rngs)
        hidden = self.encoder(x, training=False)
        self.scale = br.ToNNX(encoder.Scale, rngs=rngs).lazy_init(hidden, training=True)
        self.head = br.ToNNX(LinenHead(), rngs=rngs).lazy_init(hidden)

    def __call__(self, x, training, key=None):
        return self.head(self.scale(self.encoder(x, training, key), training))


in_mixed = nnx_adapter.spec(lambda: WithLinen(x, flax_nnx.Rngs(0)))
to_mixed = br.Mapping.loads("""
[[rules]]
src = "params/head/{p:path}"
dst = "params/head/variables/params/{p:path}"

[[rules]]
src = "params/encoder/{p:path}"
dst = "params/encoder/{p:path}"

[[rules]]
src = "batch_stats/{p:path}"
dst = "batch_stats/{p:path}"
""").plan(in_encoder, in_mixed)
# endregion


# region convert
def empty(program):
    """The model and optimizer of a stage, as shapes: no initialiser runs."""
    return flax_nnx.eval_shape(lambda: program.create(0))


def into_whole(run, step):
    """From the Haiku program into the first stage."""
    params, state, opt_state = run
    model, optimizer = empty(whole)
    entries = to_whole.forward(haiku_adapter.flatten(params, state))
    opt_state = to_whole.optimizer(opt_state, params, flax_nnx.state(model, flax_nnx.Param))
    return loaded(model, optimizer, entries, opt_state, step)


def into_next(plan, program, model, optimizer):
    """From one stage into the next."""
    new, new_optimizer = empty(program)
    entries = plan.forward(nnx_adapter.flatten(model))
    params = (flax_nnx.state(each, flax_nnx.Param) for each in (model, new))
    opt_state = plan.optimizer(optimizer.opt_state, *params)
    return loaded(new, new_optimizer, entries, opt_state, optimizer.step[...])


def loaded(model, optimizer, entries, opt_state, step):
    flax_nnx.update(model, nnx_adapter.unflatten(entries, model))
    flax_nnx.update(optimizer, nnx_adapter.optimizer_state(opt_state, optimizer, step))
    return model, optimizer


def into_leaf(run):
    """From the Haiku program into the one with a native head."""
    params, state, opt_state = run
    new = haiku_adapter.unflatten(to_leaf.forward(haiku_adapter.flatten(params, state)))
    return *new, to_leaf.optimizer(opt_state, params, new[0])


# endregion


# region check
def prove(proof: Proof) -> None:
    keys = iter(jax.random.split(jax.random.key(2), 20))
    params, state, _ = jax.eval_shape(haiku.create, 0)
    params = randomised(params)
    run = params, randomised(state, positive=True), haiku.tx.init(params)
    for _ in range(3):
        run, _ = haiku.train_step(run, next(keys), x, labels)

    stage, as_leaf = into_whole(run, step=3), into_leaf(run)
    loaded_weights = nnx_adapter.flatten(stage[0])
    stage[0].net.lazy_init(x, training=False)  # once more
    proof.equal("loaded weights", loaded_weights, nnx_adapter.flatten(stage[0]), column="whole", allowed=0.0)
    following = (
        ("whole", whole, None),
        ("head", head, to_head),
        ("encoder", encoder, to_encoder),
        ("nnx", nnx, to_nnx),
    )
    for column, program, plan in following:
        if plan:
            stage = into_next(plan, program, *stage)
        for key in (next(keys), next(keys)):
            drawn = flax_nnx.Rngs(key)()  # what a wrapper draws from that key for the Haiku function
            first = next(hk.PRNGSequence(drawn))  # and what `hk.next_rng_key` gives in there
            run, wanted = haiku.train_step(run, drawn, x, labels)  # the run that never changes
            as_leaf, loss = leaf.train_step(as_leaf, drawn, x, labels)
            proof.equal("loss", wanted, loss, column="leaf")
            loss = program.train_step(*stage, first if column in ("encoder", "nnx") else key, x, labels)
            proof.equal("loss", wanted, loss, column=column)
        proof.equal("prediction", haiku.predict(*run[:2], x), program.predict(stage[0], x), column=column)
    assert stage[1].step[...] == 11

    def of(model):
        return lambda entries: nnx_adapter.apply(model, entries, x, training=False)[0]

    proof.start("haiku", haiku_adapter.flatten(*run[:2]), lambda e: haiku.predict(*haiku_adapter.unflatten(e), x))
    proof.moved("leaf", to_leaf, lambda e: leaf.predict(*haiku_adapter.unflatten(e), x))
    proof.moved("whole", to_whole, of(empty(whole)[0]))
    proof.moved("head", to_head, of(empty(head)[0]), after="whole")
    proof.moved("encoder", to_encoder, of(empty(encoder)[0]), after="head")
    moved = proof.moved("nnx", to_nnx, of(stage[0]), after="encoder")
    proof.equal("all at once", moved, at_once.forward(proof.ends["haiku"].entries), column="nnx", allowed=0.0)
    moments = at_once.optimizer(run[2], run[0], flax_nnx.state(stage[0], flax_nnx.Param))
    proof.equal("moments after the run", moments[0].mu, flax_nnx.as_pure(stage[1].opt_state)[0].mu, column="nnx")
    mixed = to_mixed.forward(proof.ends["encoder"].entries)
    model = flax_nnx.eval_shape(lambda: WithLinen(x, flax_nnx.Rngs(0)))
    proof.equal("Linen inside", proof.ends["haiku"].output, of(model)(mixed), column="encoder")


# endregion


if __name__ == "__main__":
    show(prove, "incremental", __doc__)
