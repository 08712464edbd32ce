"""Several methods: encode, decode and call."""

import jax
from _proof import Proof, randomised, show
from in_core import methods as core
from in_haiku import methods as haiku
from in_linen import methods as linen
from in_nnx import methods as nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter

x = jax.random.normal(jax.random.key(1), (4, 64))

# region plans
in_haiku = haiku_adapter.spec(haiku.model, x, method=0)  # the first of its functions
in_linen = linen_adapter.spec(linen.model, x)
in_nnx = nnx_adapter.spec(nnx.model, x)

to_linen = br.conventions("haiku", "linen").plan(in_haiku, in_linen)
to_nnx = br.conventions("haiku", "nnx").plan(in_haiku, in_nnx)
to_core = br.Mapping.loads("""
[[rules]]
src = "params/{layer}/{leaf}"
dst = "auto_encoder/{layer}/params/{leaf}"
""").plan(in_linen, core.state)
# endregion


# region check
METHODS = ("__call__", "encode", "decode")


def prove(proof: Proof) -> None:
    z = jax.random.normal(jax.random.key(2), (4, 16))
    inputs = {"__call__": x, "encode": x, "decode": z}

    def in_haiku(entries):
        params, _ = haiku_adapter.unflatten(entries)
        return [apply(params, inputs[name]) for name, apply in zip(METHODS, haiku.model.apply, strict=True)]

    def in_linen(entries):
        return [linen.model.apply(linen_adapter.unflatten(entries), inputs[name], method=name) for name in METHODS]

    def in_nnx(entries):
        return [nnx_adapter.apply(nnx.model, entries, inputs[name], method=name)[0] for name in METHODS]

    def in_core(entries):
        return [br.pure(getattr(core.model, name))(entries, inputs[name])[1] for name in METHODS]

    proof.start("haiku", haiku_adapter.flatten(randomised(haiku.params)), in_haiku)
    proof.moved("linen", to_linen, in_linen)
    proof.moved("nnx", to_nnx, in_nnx)
    proof.moved("core", to_core, in_core, after="linen")


# endregion


if __name__ == "__main__":
    show(prove, "methods", __doc__)
