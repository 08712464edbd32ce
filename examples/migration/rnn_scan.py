"""Lifted transforms: a recurrent network by scan."""

import jax
from _proof import Proof, randomised, show
from in_core import rnn_scan as core
from in_haiku import rnn_scan as haiku
from in_linen import rnn_scan as linen
from in_nnx import rnn_scan as nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter

x = jax.random.normal(jax.random.key(1), (3, 12, 8))

# region plans
in_haiku = haiku_adapter.spec(haiku.model, x)
in_linen = linen_adapter.spec(linen.model, x)
in_nnx = nnx_adapter.spec(nnx.model, x)

to_linen = br.conventions("haiku", "linen").plan(in_haiku, in_linen)
to_nnx = br.conventions("haiku", "nnx").plan(in_haiku, in_nnx)
to_core = br.Mapping.loads("""
[[rules]]
src = "params/ScanRNNCell_0/Dense_0/{leaf}"
dst = "rnn/cell/linear/params/{leaf}"
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
    show(prove, "rnn_scan", __doc__)
