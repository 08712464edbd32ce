"""Attention: heads, masks, fused kernels and the cache of decoding."""

import haiku as hk
import jax
import jax.numpy as jnp
from _proof import Proof, difference, randomised, show
from flax import linen as nn
from flax import nnx as flax_nnx
from in_core import attention as core
from in_haiku import attention as haiku
from in_linen import attention as linen
from in_nnx import attention as nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter

tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 24)

# region plans
in_haiku = haiku_adapter.spec(haiku.model, tokens)
in_linen = linen_adapter.spec(linen.model, tokens)
in_nnx = nnx_adapter.spec(nnx.model, tokens)

to_linen = br.conventions("haiku", "linen").plan(in_haiku, in_linen)
to_nnx = br.conventions("haiku", "nnx").plan(in_haiku, in_nnx)
to_core = br.Mapping.loads("""
[[rules]]
src = "params/{layer}/{leaf}"
dst = "transformer/{layer}/params/{leaf}"

[[rules]]
src = "params/block/{layer}/{leaf:path}"
dst = "transformer/block/{layer}/params/{leaf:path}"
""").plan(in_linen, core.state)
# endregion

# region alone
x = jax.random.normal(jax.random.key(2), (2, 6, 12))
padding = jnp.array([[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]], bool)  # the second sequence is padded on the left
mask = jnp.tril(jnp.ones((6, 6), bool)) & padding[:, None, None]  # [batch, 1, T, T]

haiku_attention = hk.without_apply_rng(
    hk.transform(
        lambda x, mask: hk.MultiHeadAttention(2, 6, w_init=hk.initializers.Constant(0), name="a")(x, x, x, mask)
    )
)
linen_attention = nn.MultiHeadDotProductAttention(2)
nnx_attention = flax_nnx.MultiHeadAttention(2, 12, decode=False, rngs=flax_nnx.Rngs(0))

alone = haiku_adapter.spec(haiku_attention, x, mask)
alone_in_linen = br.conventions("haiku", "linen").plan(alone, linen_adapter.spec(linen_attention, x))
alone_in_nnx = br.conventions("haiku", "nnx").plan(alone, nnx_adapter.spec(nnx_attention, x))
# endregion


# region defaults
def why_not(src, dst):
    try:
        br.conventions("haiku", "linen").plan(src, dst)
    except br.MappingError as err:
        return str(err)
    raise AssertionError("planned, and should not have been")


defaults = linen_adapter.spec(linen.model.clone(norm=nn.LayerNorm), tokens)
said = why_not(in_haiku, defaults)
assert "has epsilon 1e-06" in said and "has fast_variance True" in said

accepted = br.Mapping.loads("""
extends = ["conventions:haiku->linen"]

[accept]
"{m:module}" = ["epsilon", "fast_variance"]
""").plan(in_haiku, defaults)
assert accepted.verdict == "not exact"
# endregion

# region heads
other = nn.MultiHeadDotProductAttention(4, dropout_rate=0.1, deterministic=True)
said = why_not(alone, linen_adapter.spec(other, x))
assert "has num_heads 4" in said and "has dropout 0.1" in said
# endregion

# region fused
fused = hk.without_apply_rng(hk.transform(lambda x, mask: haiku.FusedAttention(2, name="attention")(x, mask)))
by_head = hk.without_apply_rng(hk.transform(lambda x, mask: haiku.FusedByHead(2, name="attention")(x, mask)))

output = br.Mapping.loads("""
[[rules]]
src = "params/attention/proj/w"
dst = "params/out/kernel"
ops = ["reshape"]

[[rules]]
src = "params/attention/proj/b"
dst = "params/out/bias"
""")

three_parts = br.Mapping.loads("""
[[rules]]
src = "params/attention/qkv/w"
dst = ["params/query/kernel", "params/key/kernel", "params/value/kernel"]
ops = [{ op = "split", axis = 1, parts = 3, equal = true }, "reshape"]

[[rules]]
src = "params/attention/qkv/b"
dst = ["params/query/bias", "params/key/bias", "params/value/bias"]
ops = [{ op = "split", axis = 0, parts = 3, equal = true }, "reshape"]
""")

in_each_head = br.Mapping.loads("""
[[rules]]
src = "params/attention/qkv/w"
dst = ["params/query/kernel", "params/key/kernel", "params/value/kernel"]
ops = ["reshape", { op = "split", axis = 2 }]

[[rules]]
src = "params/attention/qkv/b"
dst = ["params/query/bias", "params/key/bias", "params/value/bias"]
ops = ["reshape", { op = "split", axis = 1 }]
""")

target = linen_adapter.spec(linen_attention, x)
from_fused = (three_parts | output).plan(haiku_adapter.spec(fused, x, mask), target)
from_by_head = (in_each_head | output).plan(haiku_adapter.spec(by_head, x, mask), target)
assert from_fused.verdict == from_by_head.verdict == "exact"
# endregion

# region decode
nnx_decoder = nnx.decoder_of(nnx.model, tokens.shape)
in_decoder = linen_adapter.spec(linen.decoder, tokens)
decoder_to_nnx = br.conventions("linen", "nnx").plan(in_decoder, nnx_adapter.spec(nnx_decoder, tokens[:, :1]))
assert "'cache/block/attention/cached_key' float32[2,6,2,6] gets nothing" in why_not(in_haiku, in_decoder)


def go_on_in_nnx(params, cache, tokens, start):
    entries = linen_adapter.flatten({"params": params, "cache": cache})
    new = nnx_adapter.unflatten(decoder_to_nnx.forward(entries), nnx_decoder)
    flax_nnx.update(nnx_decoder, new)
    return nnx.step(nnx_decoder, tokens[:, start : start + 1], start)


# endregion


# region check
def prove(proof: Proof) -> None:
    params = randomised(haiku.params, seed=15)  # one of those where the terms of the queries' gradients cancel least
    entries = haiku_adapter.flatten(params)
    proof.start("haiku", entries, lambda e: haiku.predict(haiku_adapter.unflatten(e)[0], tokens))
    in_linen = proof.moved("linen", to_linen, lambda e: linen.predict(linen_adapter.unflatten(e)["params"], tokens))
    in_nnx = proof.moved("nnx", to_nnx, lambda e: nnx_adapter.apply(nnx.model, e, tokens)[0])
    in_core = proof.moved("core", to_core, lambda e: core.predict(e, tokens), after="linen")

    wanted = proof.ends["haiku"].output
    prove_norms()
    prove_masks(proof)
    prove_fused(proof)
    prove_decoding(proof, wanted, linen_adapter.unflatten(in_linen)["params"], in_nnx, in_core)


# endregion


# region check_norms
def prove_norms():
    def off(x, **given):
        params = {"params": {"scale": jnp.ones(128), "bias": jnp.zeros(128)}}
        return difference(linen.LayerNorm().apply(params, x), nn.LayerNorm(**given).apply(params, x))

    normal = jax.random.normal(jax.random.key(3), (16, 128))
    assert (
        off(0.02 * normal, use_fast_variance=False) > 0.01
    )  # embeddings of a deviation of 0.02, as those of many transformers at first
    assert off(1000 + normal, epsilon=1e-5) > 0.05  # a mean of a thousand deviations


# endregion


# region check_masks
def prove_masks(proof):
    params = randomised(jax.eval_shape(haiku_attention.init, None, x, mask))
    entries = haiku_adapter.flatten(params)
    variables = linen_adapter.unflatten(alone_in_linen.forward(entries))
    wanted = haiku_attention.apply(params, x, mask)
    proof.equal("padded", wanted, linen_attention.apply(variables, x, mask=mask), column="linen")
    in_nnx, _ = nnx_adapter.apply(nnx_attention, alone_in_nnx.forward(entries), x, mask=mask)
    proof.equal("padded", wanted, in_nnx, column="nnx")

    # A query that may attend to nothing gets the mean of the values; a bias of the keys changes nothing.
    value, out = params["a/value"], params["a/linear"]
    mean = jnp.mean(x[1] @ value["w"] + value["b"], axis=0) @ out["w"] + out["b"]
    assert difference(jnp.stack(3 * [mean]), wanted[1, :3]) < 1e-6
    biased = params | {"a/key": {"w": params["a/key"]["w"], "b": params["a/key"]["b"] + 1}}
    assert difference(wanted, haiku_attention.apply(biased, x, mask)) < 1e-6

    # Without the axis of heads, Haiku raises, and Flax reads two sequences as two heads.
    try:
        haiku_attention.apply(params, x, mask[:, 0])
    except ValueError as err:
        assert "dimensionality" in str(err)
    else:
        raise AssertionError("Haiku took a mask of another rank")
    assert difference(wanted, linen_attention.apply(variables, x, mask=mask[:, 0])) > 0.1


# endregion


# region check_fused
def prove_fused(proof):
    for model, plan, wrong in ((fused, from_fused, from_by_head), (by_head, from_by_head, from_fused)):
        params = randomised(jax.eval_shape(model.init, jax.random.key(0), x, mask))
        entries = haiku_adapter.flatten(params)
        wanted = model.apply(params, x, mask)

        new, misread = (linen_adapter.unflatten(p.forward(entries)) for p in (plan, wrong))
        proof.equal("fused", wanted, linen_attention.apply(new, x, mask=mask), column="linen")
        proof.equal("fused again", entries, plan.inverse(linen_adapter.flatten(new)), column="haiku", allowed=0.0)
        assert difference(wanted, linen_attention.apply(misread, x, mask=mask)) > 0.1  # fits, and is wrong


# endregion


# region check_decoding
def prove_decoding(proof, wanted, in_linen, in_nnx, in_core):
    flax_nnx.update(nnx.model, nnx_adapter.unflatten(in_nnx, nnx.model))
    proof.equal("token by token", wanted, linen.decode(in_linen, tokens), column="linen")
    proof.equal("token by token", wanted, nnx.decode(nnx.model, tokens), column="nnx")
    proof.equal("token by token", wanted, core.decode(in_core, tokens), column="core")

    cache = linen.empty_cache(tokens)
    for i in range(3):
        _, cache = linen.step(in_linen, cache, tokens[:, i : i + 1], i)
    proof.equal("the fourth token", wanted[:, 3:4], go_on_in_nnx(in_linen, cache, tokens, 3), column="nnx")


# endregion


if __name__ == "__main__":
    show(prove, "attention", __doc__)
