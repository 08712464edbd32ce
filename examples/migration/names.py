"""Parameter structures: what everything is called."""

import jax
from _proof import Proof, randomised, show
from in_core import names as core
from in_haiku import names as haiku
from in_linen import names as linen
from in_nnx import names as nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter

x = jax.random.normal(jax.random.key(1), (4, 8))

# region plans
in_haiku = haiku_adapter.spec(haiku.model, x)
in_linen = linen_adapter.spec(linen.model, x)
in_nnx = nnx_adapter.spec(nnx.model, x)

own = br.Mapping.of(
    rules=[{"src": "params/net/gain", "dst": "params/gain"}]
)  # no layer, so that no convention knows it
to_linen = (own | br.conventions("haiku", "linen")).plan(in_haiku, in_linen)
to_nnx = (own | br.conventions("haiku", "nnx")).plan(in_haiku, in_nnx)
to_core = br.Mapping.loads("""
[[rules]]
src = "params/gain"
dst = "net/gain"

[[rules]]
src = "params/enc/layers_{i:int}/{leaf}"
dst = "net/enc/layers_{i:int}/params/{leaf}"

[[rules]]
src = "params/Dense_0/{leaf}"
dst = "net/down/params/{leaf}"

[[rules]]
src = "params/Dense_1/{leaf}"
dst = "net/up/params/{leaf}"

[[rules]]
src = "params/head/{leaf}"
dst = "net/head/params/{leaf}"
""").plan(in_linen, core.state)
# endregion


# region check
def prove(proof: Proof) -> None:
    params = randomised(haiku.params)
    proof.start("haiku", haiku_adapter.flatten(params), lambda e: haiku.model.apply(haiku_adapter.unflatten(e)[0], x))
    proof.moved("linen", to_linen, lambda e: linen.model.apply(linen_adapter.unflatten(e), x))
    proof.moved("nnx", to_nnx, lambda e: nnx_adapter.apply(nnx.model, e, x)[0])
    proof.moved("core", to_core, lambda e: br.pure(core.model)(e, x)[1], after="linen")


# endregion


if __name__ == "__main__":
    show(prove, "names", __doc__)
