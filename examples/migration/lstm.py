"""LSTM and GRU: the order of gates, the forget gate's 1, and what is no other function's weights."""

import jax
import jax.numpy as jnp
import numpy as np
from _proof import Proof, difference, randomised, show
from flax import linen as nn
from flax import nnx as flax_nnx
from in_core import lstm as core
from in_haiku import lstm as haiku
from in_linen import lstm as linen
from in_nnx import lstm as nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter

x = jax.random.normal(jax.random.key(1), (2, 6, 4))

# region plans
in_haiku = haiku_adapter.spec(haiku.model, x)
in_linen = linen_adapter.spec(linen.model, x)
in_nnx = nnx_adapter.spec(nnx.model, x)

to_linen = br.conventions("haiku", "linen").plan(in_haiku, in_linen)
to_nnx = br.conventions("haiku", "nnx").plan(in_haiku, in_nnx)
to_core = br.Mapping.loads("""
[[rules]]
src = "params/lstm/cell/{gate}/{leaf}"
dst = "net/cell/params/{gate}/{leaf}"

[[rules]]
src = "params/head/{leaf}"
dst = "net/head/params/{leaf}"
""").plan(in_linen, core.state)
assert to_linen.verdict == to_nnx.verdict == "exact to rounding"
# endregion


# region by_hand
def cell_by_hand(w, b, order="igfo", forget=1.0):
    of_x, of_h = np.split(np.asarray(w), [4])  # rows of the input, then of the hidden state
    of_x, of_h, bias = np.split(of_x, 4, axis=1), np.split(of_h, 4, axis=1), np.split(np.asarray(b), 4)
    bias[order.index("f")] = bias[order.index("f")] + forget  # Haiku adds it in the call, not to the array
    cell = {}
    for k, gate in enumerate(order):
        cell[f"i{gate}"] = {"kernel": of_x[k]}
        cell[f"h{gate}"] = {"kernel": of_h[k], "bias": bias[k]}
    return cell


# endregion


# region refused
def why_not(names, src, dst):
    try:
        br.conventions(*names).plan(src, dst)
    except br.MappingError as err:
        return str(err)
    raise AssertionError("planned, and should not have been")


haiku_gru = haiku_adapter.spec(haiku.gru, x)
linen_gru = nn.RNN(nn.GRUCell(5))
nnx_gru = flax_nnx.RNN(flax_nnx.GRUCell(4, 5, rngs=flax_nnx.Rngs(0)))
specs = linen_adapter.spec(linen_gru, x), nnx_adapter.spec(nnx_gru, x)

said = why_not(("haiku", "linen"), haiku_gru, specs[0])
assert "no weights make these the same function" in said
said = why_not(("linen", "nnx"), *specs)
assert "'params/cell/hn/bias': nnx.GRUCell has no recurrent bias" in said
# endregion

# region gru
same = br.Mapping.of(modules={"gru": "cell"})  # "computes the same": ours to say
gru_to_linen = (same | br.conventions("haiku", "linen")).plan(haiku_gru, linen_adapter.spec(linen.gru, x))
gru_to_nnx = (same | br.conventions("haiku", "nnx")).plan(haiku_gru, nnx_adapter.spec(nnx.gru, x))
assert gru_to_linen.verdict == gru_to_nnx.verdict == "exact"
# endregion


# region check
def prove(proof: Proof) -> None:
    params = randomised(haiku.params)
    entries = haiku_adapter.flatten(params)

    def in_nnx(entries):
        own = nnx_adapter.flatten(nnx.model)  # has random keys too
        (y, (cell, hidden)), _ = nnx_adapter.apply(nnx.model, own | entries, x)
        return y, hidden, cell

    proof.start("haiku", entries, lambda e: haiku.predict(haiku_adapter.unflatten(e)[0], x))
    for_linen = proof.moved("linen", to_linen, lambda e: linen.predict(linen_adapter.unflatten(e)["params"], x))
    for_nnx = proof.moved("nnx", to_nnx, in_nnx)
    for_core = proof.moved("core", to_core, lambda e: core.predict(e, x), after="linen")
    proof.equal("back, rounded", entries, to_linen.inverse(for_linen), column="linen")
    proof.equal("back, rounded", entries, to_nnx.inverse(for_nnx), column="nnx")

    in_linen = linen_adapter.unflatten(for_linen)["params"]
    flax_nnx.update(nnx.model, nnx_adapter.unflatten(nnx_adapter.flatten(nnx.model) | for_nnx, nnx.model))
    prove_gates(proof, params, in_linen)
    prove_carry(proof, params, in_linen, for_core)
    prove_reset(proof, params, in_linen, for_core)
    prove_gru(proof)


# endregion


# region check_gates
def prove_gates(proof, params, in_linen):
    w, b = params["net/~/lstm/linear"]["w"], params["net/~/lstm/linear"]["b"]
    proof.equal("by hand", cell_by_hand(w, b), in_linen["lstm"]["cell"], column="linen", allowed=0.0)
    assert "reorder(order=[0, 2, 1, 3, 4, 6, 5, 7])" in str(to_nnx) and "add(value=1.0, part=2)" in str(to_nnx)

    wanted, _, _ = haiku.predict(params, x)
    for order, forget in (("ifgo", 1.0), ("igfo", 0.0)):  # another order, no 1: both fit, both are wrong
        wrong = {"lstm": {"cell": cell_by_hand(w, b, order, forget)}, "head": in_linen["head"]}
        assert difference(wanted, linen.predict(wrong, x)[0]) > 0.05


# endregion


# region check_carry
def prove_carry(proof, params, in_linen, in_core):
    wanted, _, _ = haiku.predict(params, x)
    _, hidden, cell = haiku.predict(params, x[:, :3])  # three steps in Haiku, the others elsewhere
    rest = x[:, 3:]
    for column, y in (
        ("haiku", haiku.go_on(params, rest, hidden, cell)),
        ("linen", linen.go_on(in_linen, rest, hidden, cell)),
        ("nnx", nnx.go_on(nnx.model, rest, hidden, cell)),
        ("core", core.go_on(in_core, rest, hidden, cell)),
    ):
        proof.equal("from the fourth step", wanted[:, 3:], y, column=column)
    assert difference(wanted[:, 3:], linen.go_on(in_linen, rest, cell, hidden)) > 0.1  # swapped: fits, and is wrong


# endregion


# region check_reset
def prove_reset(proof, params, in_linen, in_core):
    reset = jnp.array([[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1]], bool)
    wanted = haiku.predict_with_reset(params, x, reset)
    assert difference(wanted, haiku.predict(params, x)[0]) > 0.05
    proof.equal("reset", wanted, linen.predict_with_reset(in_linen, x, reset), column="linen")
    proof.equal("reset", wanted, nnx.predict_with_reset(nnx.model, x, reset), column="nnx")
    proof.equal("reset", wanted, core.predict_with_reset(in_core, x, reset), column="core")


# endregion


# region fits
def best_fit(w_i, w_h, b):  # z is 1 - z in Flax, so that its sign changes
    z, r, a = ({"kernel": w, "bias": bias} for w, bias in zip(np.split(w_i, 3, 1), np.split(b, 3), strict=True))
    hz, hr, ha = ({"kernel": w} for w in np.split(w_h, 3, 1))
    z, hz = jax.tree.map(np.negative, (z, hz))
    return {"cell": {"ir": r, "iz": z, "in": a, "hr": hr, "hz": hz, "hn": ha | {"bias": np.zeros(5, np.float32)}}}


# endregion


# region check_gru
def prove_gru(proof):
    params = randomised(jax.eval_shape(haiku.gru.init, jax.random.key(0), x))
    entries = haiku_adapter.flatten(params)
    wanted = haiku.gru.apply(params, x)
    variables = linen_adapter.unflatten(gru_to_linen.forward(entries))
    proof.equal("GRU", wanted, linen.gru.apply(variables, x), column="linen")
    in_nnx, _ = nnx_adapter.apply(nnx.gru, nnx_adapter.flatten(nnx.gru) | gru_to_nnx.forward(entries), x)
    proof.equal("GRU", wanted, in_nnx, column="nnx")

    fit = best_fit(**jax.tree.map(np.asarray, params["gru"]))
    assert difference(wanted, linen_gru.apply({"params": fit}, x)) > 0.05  # fits, and is wrong
    prove_reverse(proof, params, variables)


# endregion


# region check_reverse
def prove_reverse(proof, params, variables):
    wanted = haiku.gru.apply(params, x, reverse=True)
    in_order = linen.gru.apply(variables, x, reverse=True, keep_order=True)
    proof.equal("reverse, in order", wanted, in_order, column="linen")
    as_made = linen.gru.apply(variables, x, reverse=True)
    proof.equal("reverse", wanted, as_made[:, ::-1], column="linen")


# endregion


if __name__ == "__main__":
    show(prove, "lstm", __doc__)
