"""Scan over layers: one entry for many equal layers."""

import jax
from _proof import Proof, randomised, show
from flax import nnx as flax_nnx
from in_core import layer_stack as core
from in_haiku import layer_stack as haiku
from in_linen import layer_stack as linen
from in_nnx import layer_stack as nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter

x = jax.random.normal(jax.random.key(1), (4, 16))

# region plans
in_haiku = haiku_adapter.spec(haiku.model, x, training=False)
in_linen = linen_adapter.spec(linen.model, x, training=False)
in_nnx = nnx_adapter.spec(nnx.model, x)

to_linen = br.conventions("haiku", "linen").plan(in_haiku, in_linen)
to_nnx = br.conventions("haiku", "nnx").plan(in_haiku, in_nnx)
to_core = br.Mapping.loads("""
[[rules]]
src = "params/ScanBlock_0/Dense_0/{leaf}"
dst = "mlp/blocks/linear/params/{leaf}"
""").plan(in_linen, core.state)
# endregion

# region unroll
unrolled = {
    f"params/layer_{i}/{leaf}": jax.ShapeDtypeStruct(shape, "float32")
    for i in range(5)
    for leaf, shape in (("kernel", (16, 16)), ("bias", (16,)))
}
to_unrolled = (
    br.Mapping.loads("""
[modules]
"mlp/__layer_stack_no_per_layer/block/linear/[{i:int}]" = "layer_{i:int}"
""")
    | br.conventions("haiku", "linen")
).plan(in_haiku, unrolled)
# endregion


# region check
def prove(proof: Proof) -> None:
    params = randomised(haiku.params)
    entries = haiku_adapter.flatten(params)

    def in_evaluation(entries):
        model = flax_nnx.view(nnx.model, deterministic=True)
        return nnx_adapter.apply(model, nnx_adapter.flatten(model) | entries, x)[0]

    def one_by_one(entries):
        y = x
        for i in range(5):
            y = jax.nn.relu(y @ entries[f"params/layer_{i}/kernel"] + entries[f"params/layer_{i}/bias"])
        return y

    proof.start("haiku", entries, lambda e: haiku.predict(haiku_adapter.unflatten(e)[0], x))
    in_linen = proof.moved("linen", to_linen, lambda e: linen.predict(linen_adapter.unflatten(e), x))
    proof.moved("nnx", to_nnx, in_evaluation)
    in_core = proof.moved("core", to_core, lambda e: core.predict(e, x), after="linen")

    wanted = haiku.predict(params, x)
    proof.equal("five modules, not one", wanted, one_by_one(to_unrolled.forward(entries)), column="linen")
    for dropped in (
        haiku.predict_with_dropout(params, jax.random.key(2), x),
        linen.predict_with_dropout(linen_adapter.unflatten(in_linen), jax.random.key(2), x),
        nnx.predict_with_dropout(nnx.model, x),
        core.predict_with_dropout(in_core, jax.random.key(2), x),
    ):  # each framework draws masks of its own, another for each layer
        assert dropped.shape == wanted.shape and (dropped != wanted).any()


# endregion


if __name__ == "__main__":
    show(prove, "layer_stack", __doc__)
