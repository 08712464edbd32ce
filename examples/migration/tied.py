"""Tied weights: one table that is read twice."""

import jax
import jax.numpy as jnp
import optax
from _proof import Proof, randomised, show
from flax import nnx as flax_nnx
from in_core import tied as core
from in_haiku import tied as haiku
from in_linen import tied as linen
from in_nnx import tied as nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter

tokens = jax.random.randint(jax.random.key(1), (4, 8), 0, 50)

# region plans
in_haiku = haiku_adapter.spec(haiku.model, tokens)
in_linen = linen_adapter.spec(linen.model, tokens)
in_nnx = nnx_adapter.spec(nnx.model, tokens)

to_linen = br.conventions("haiku", "linen").plan(in_haiku, in_linen)
to_nnx = br.conventions("haiku", "nnx").plan(in_haiku, in_nnx)
to_core = br.Mapping.of(
    rules=[
        {"src": "params/embed/{leaf}", "dst": "language_model/embed/params/{leaf}"},
        {"src": "params/hidden/{leaf}", "dst": "language_model/hidden/params/{leaf}"},
    ]
).plan(in_linen, core.state)
# endregion

# region untie
untied = linen.Untied(50, 16)
untie = br.Mapping.loads("""
[[rules]]
src = "params/hidden/{leaf}"
dst = "params/hidden/{leaf}"

[[rules]]
src = "params/embed/embedding"
dst = ["params/embed/embedding", "params/logits/kernel"]
ops = ["copy", {op = "transpose", part = 1}]
""").plan(in_linen, linen_adapter.spec(untied, tokens))
# endregion


# region check
def prove(proof: Proof) -> None:
    params = randomised(haiku.params)
    entries = haiku_adapter.flatten(params)
    wanted = haiku.predict(params, tokens)
    in_linen = linen_adapter.unflatten(to_linen.forward(entries))["params"]
    proof.equal("predict", wanted, linen.predict(in_linen, tokens), column="linen")
    flax_nnx.update(nnx.model, nnx_adapter.unflatten(to_nnx.forward(entries), nnx.model))
    proof.equal("predict", wanted, nnx.predict(nnx.model, tokens), column="nnx")

    proof.start("haiku", entries, lambda e: haiku.predict(haiku_adapter.unflatten(e)[0], tokens))
    moved = proof.moved("linen", to_linen, lambda e: linen.predict(linen_adapter.unflatten(e)["params"], tokens))
    proof.moved("nnx", to_nnx, lambda e: nnx_adapter.apply(nnx.model, e, tokens)[0])
    proof.moved("core", to_core, lambda e: core.predict(e, tokens), after="linen")

    # Two tables begin equal and train apart: the way back is there before a step, and refused after it.
    two = untie.forward(moved)
    proof.equal("untied", wanted, linen_adapter.apply(untied, two, tokens)[0], column="linen")
    proof.equal("tied again", moved, untie.inverse(two), column="linen", allowed=0.0)
    grads = jax.grad(lambda e: jnp.sum(linen_adapter.apply(untied, e, tokens)[0] ** 2))(two)
    trained = optax.apply_updates(two, jax.tree.map(lambda g: -0.01 * g, grads))
    try:
        untie.inverse(trained)
    except br.UnsupportedError as err:
        assert "params/embed/embedding" in str(err)
    else:
        raise AssertionError("two tables that differ were made one")


# endregion


if __name__ == "__main__":
    show(prove, "tied", __doc__)
