"""A basic module with dropout."""

import jax
from _proof import Proof, randomised, show
from flax import nnx as flax_nnx
from in_core import basic as core
from in_haiku import basic as haiku
from in_linen import basic as linen
from in_nnx import basic as nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter

x = jax.random.normal(jax.random.key(1), (4, 64))

# region plans
in_haiku = haiku_adapter.spec(haiku.model, x, training=False)
in_linen = linen_adapter.spec(linen.model, x, training=False)
in_nnx = nnx_adapter.spec(nnx.model, x)

to_linen = br.conventions("haiku", "linen").plan(in_haiku, in_linen)
to_nnx = br.conventions("haiku", "nnx").plan(in_haiku, in_nnx)
to_core = br.Mapping.loads("""
[[rules]]
src = "params/Block_0/Dense_0/{leaf}"
dst = "model/block/linear/params/{leaf}"

[[rules]]
src = "params/Dense_0/{leaf}"
dst = "model/linear/params/{leaf}"
""").plan(in_linen, core.state)
# endregion


# region convert
def params_for_linen(params):
    entries = to_linen.forward(haiku_adapter.flatten(params))
    return linen_adapter.unflatten(entries)["params"]


def load_into_nnx(model, params):
    entries = to_nnx.forward(haiku_adapter.flatten(params))
    own = nnx_adapter.flatten(model)  # has the keys of dropout too, which stay the model's own
    flax_nnx.update(model, nnx_adapter.unflatten(own | entries, model))


def state_for_core(params):
    return to_core.forward(to_linen.forward(haiku_adapter.flatten(params)))


# endregion


# region check
def prove(proof: Proof) -> None:
    params = randomised(haiku.params)
    load_into_nnx(nnx.model, params)
    wanted = haiku.predict(params, x)
    proof.equal("predict", wanted, linen.predict(params_for_linen(params), x), column="linen")
    proof.equal("predict", wanted, nnx.predict(nnx.model, x), column="nnx")
    proof.equal("predict", wanted, core.predict(state_for_core(params), x), column="core")

    for dropped in (
        haiku.predict_with_dropout(params, jax.random.key(2), x),
        linen.predict_with_dropout(params_for_linen(params), jax.random.key(2), x),
        nnx.predict_with_dropout(nnx.model, x),
        core.predict_with_dropout(state_for_core(params), jax.random.key(2), x),
    ):  # each framework draws masks of its own
        assert dropped.shape == wanted.shape and (dropped != wanted).any()

    def in_evaluation(entries):
        model = flax_nnx.view(nnx.model, deterministic=True)
        return nnx_adapter.apply(model, nnx_adapter.flatten(model) | entries, x)[0]

    proof.start("haiku", haiku_adapter.flatten(params), lambda e: haiku.predict(haiku_adapter.unflatten(e)[0], x))
    proof.moved("linen", to_linen, lambda e: linen.predict(linen_adapter.unflatten(e)["params"], x))
    proof.moved("nnx", to_nnx, in_evaluation)
    proof.moved("core", to_core, lambda e: core.predict(e, x), after="linen")


# endregion


if __name__ == "__main__":
    show(prove, "basic", __doc__)
