"""Top-level functions with raw parameters and state."""

import jax
from _proof import Proof, randomised, show
from flax import nnx as flax_nnx
from in_core import functions as core
from in_haiku import functions as haiku
from in_linen import functions as linen
from in_nnx import functions as nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter

x = jax.random.normal(jax.random.key(1), (4, 64))

# region plans
in_haiku = haiku_adapter.spec(haiku.model, x)
in_linen = linen_adapter.spec(linen.model, x)
in_nnx = nnx_adapter.spec(nnx.model, x)

renames = br.Mapping.loads("""
[[rules]]
src = "params/~/multiplier"
dst = "params/multiplier"

[[rules]]
src = "state/~/counter"
dst = "counter/count"
""")
to_linen = renames.plan(in_haiku, in_linen)
to_nnx = br.Mapping.loads("""
[[rules]]
src = "params/~/multiplier"
dst = "params/multiplier"

[[rules]]
src = "state/~/counter"
dst = "Counter/counter"
""").plan(in_haiku, in_nnx)
to_core = br.Mapping.of(
    rules=[
        {"src": "params/~/multiplier", "dst": "multiplier"},
        {"src": "state/~/counter", "dst": "counter"},
    ]
).plan(in_haiku, core.state)
# endregion


# region check
def prove(proof: Proof) -> None:
    params = randomised(haiku.params)
    entries = haiku_adapter.flatten(params, haiku.state)
    *wanted, state = haiku.call_twice(params, haiku.state, x)

    *found, variables = linen.call_twice(linen_adapter.unflatten(to_linen.forward(entries)), x)
    proof.equal("called twice", wanted, found, column="linen")
    flax_nnx.update(nnx.model, nnx_adapter.unflatten(to_nnx.forward(entries), nnx.model))
    proof.equal("called twice", wanted, list(nnx.call_twice(nnx.model, x)), column="nnx")
    *found, in_core = core.call_twice(to_core.forward(entries), x)
    proof.equal("called twice", wanted, found, column="core")
    counts = [variables["counter"]["count"], nnx.model.counter[...], in_core["counter"]]
    for column, count in zip(("linen", "nnx", "core"), counts, strict=True):
        proof.equal("the counter", state["~"]["counter"], count, column=column, allowed=0.0)

    proof.start("haiku", haiku_adapter.flatten(params, state), lambda e: haiku_adapter.apply(haiku.model, e, x)[0])
    proof.moved("linen", to_linen, lambda e: linen_adapter.apply(linen.model, e, x)[0])
    proof.moved("nnx", to_nnx, lambda e: nnx_adapter.apply(nnx.model, e, x)[0])
    proof.moved("core", to_core, lambda e: br.pure(core.forward)(e, x)[1])


# endregion


if __name__ == "__main__":
    show(prove, "functions", __doc__)
