"""`bridges._infer._solve`: small networks written in two ways, as plain functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridges._infer._found import Network
from bridges._infer._solve import solve

X = np.random.default_rng(0).normal(size=(3, 5, 6)).astype(np.float32)
IMAGE = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
IDS = np.array([[1, 4, 2, 2, 0], [3, 3, 1, 0, 4], [2, 1, 1, 4, 3]], np.int32)


def network(run, x, **shapes):
    variables = {p: jax.ShapeDtypeStruct(s, np.float32) for p, s in shapes.items()}
    return Network(lambda v, i: run(v, i["x"]), variables, {"x": x})


def solved(src, dst):
    """The result, whose leaves are put to the test by running both functions apart from the engine."""
    found = solve(src, dst)
    assert not found.unplaced and found.parting is None, (found.unplaced, found.parting)
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        leaves = {p: rng.uniform(0.2, 1.0, x.shape) for p, x in src.variables.items()}
        made = {p: o.value([leaves[s] for s in found.sources]) for p, o in found.origins.items()}
        inputs = {p: x if x.dtype == np.int32 else x.astype(np.float64) for p, x in src.inputs.items()}
        for a, b in zip(jax.tree.leaves(src.run(leaves, inputs)), jax.tree.leaves(dst.run(made, inputs)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)  # constants may be float32
    return found, made, leaves


def norm(x, eps=1e-5):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + eps)


def attend(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1]))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*q.shape[:2], -1)


def split_attention(v, x):
    q, k, w = (jnp.einsum("btc,chd->bthd", x, v[n]) + v["b" + n] for n in "qkv")
    return attend(q, k, w) @ v["o"]


def interleaved_attention(v, x):
    every = (x @ v["qkv"] + v["b"]).reshape(3, 5, 2, 3, 4)  # heads outside of q, k, v
    return jnp.dot(attend(*(every[..., i, :] for i in (1, 0, 2))), v["out"].T)


HEADS = {n: (6, 2, 4) for n in "qkv"} | {"b" + n: (2, 4) for n in "qkv"}


def test_fused_and_interleaved_heads_key_bias_included():
    src = network(split_attention, X, **HEADS, o=(8, 7))
    dst = network(interleaved_attention, X, qkv=(6, 24), b=(24,), out=(7, 8))
    _, made, leaves = solved(src, dst)
    fused = np.stack([leaves["k"], leaves["q"], leaves["v"]], 2)  # of no output is known which bias the keys have
    np.testing.assert_array_equal(made["qkv"], fused.reshape(6, 24))
    np.testing.assert_array_equal(made["b"], np.stack([leaves["bk"], leaves["bq"], leaves["bv"]], 1).ravel())


def test_split_of_what_is_fused():
    src = network(interleaved_attention, X, qkv=(6, 24), b=(24,), out=(7, 8))
    dst = network(split_attention, X, **HEADS, o=(8, 7))
    solved(src, dst)


def lstm(gates):
    def run(v, x):
        h = c = jnp.zeros((x.shape[0], 4), x.dtype)
        for t in range(x.shape[1]):
            i, f, g, o = gates(v, x[:, t], h)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return h

    return run


def test_lstm_with_a_forget_bias_in_the_code():
    def fused(v, x, h):
        i, g, f, o = jnp.split(jnp.concatenate([x, h], -1) @ v["w"] + v["b"], 4, -1)
        return i, f + 1, g, o

    def apart(v, x, h):
        return [x @ v["x" + n] + (h @ v["h" + n] + v["b" + n]) for n in "ifgo"]

    src = network(lstm(fused), X, w=(10, 16), b=(16,))
    names = {f"{p}{n}": s for n in "ifgo" for p, s in (("x", (6, 4)), ("h", (4, 4)), ("b", (4,)))}
    _, made, leaves = solved(src, network(lstm(apart), X, **names))
    np.testing.assert_allclose(made["bf"], leaves["b"][8:12] + 1, rtol=1e-15)


def test_batch_norm_in_evaluation_scaled_in_another_order():
    def one(v, x):
        return jnp.tanh((x @ v["w"] - v["mean"]) * (v["scale"] * jax.lax.rsqrt(v["var"] + 1e-5)) + v["offset"])

    def other(v, x):
        return jnp.tanh((jnp.dot(x, v["k"].T) - v["mu"]) / jnp.sqrt(v["sigma"] + 1e-5) * v["gamma"] + v["beta"])

    src = network(one, X, w=(6, 4), mean=(4,), scale=(4,), var=(4,), offset=(4,))
    dst = network(other, X, k=(4, 6), mu=(4,), gamma=(4,), sigma=(4,), beta=(4,))
    _, made, leaves = solved(src, dst)
    assert all(np.array_equal(made[p], leaves[q]) for p, q in (("mu", "mean"), ("sigma", "var"), ("gamma", "scale")))


def test_channels_first_and_last_and_a_flat_head():
    def last(v, x):
        y = jax.nn.relu(
            jax.lax.conv_general_dilated(x, v["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )
        return y.reshape(2, -1) @ v["head"]

    def first(v, x):
        x = x.transpose(0, 3, 1, 2)
        y = jax.lax.conv_general_dilated(
            x, v["w"], (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NCHW", "OIHW", "NCHW")
        )
        return jnp.maximum(y, 0).reshape(2, -1) @ v["head"]

    src = network(last, IMAGE, w=(3, 3, 3, 2), head=(40, 5))
    _, made, leaves = solved(src, network(first, IMAGE, w=(2, 3, 3, 3), head=(40, 5)))
    np.testing.assert_array_equal(made["head"], leaves["head"].reshape(5, 4, 2, 5).transpose(2, 0, 1, 3).reshape(40, 5))


def test_a_stack_that_is_scanned_and_layers_one_by_one():
    def scanned(v, x):
        return jax.lax.scan(lambda y, p: (jnp.tanh(y @ p[0] + p[1]), None), x, (v["w"], v["b"]))[0]

    def unrolled(v, x):
        for i in range(4):
            x = jnp.tanh(x @ v[f"w{i}"] + v[f"b{i}"])
        return x

    src = network(scanned, X, w=(4, 6, 6), b=(4, 6))
    dst = network(unrolled, X, **{f"w{i}": (6, 6) for i in range(4)}, **{f"b{i}": (6,) for i in range(4)})
    solved(src, dst)
    solved(dst, src)


def test_an_embedding_tied_to_the_output_and_one_hot():
    def gathered(v, x):
        return jnp.tanh(v["e"][x] + v["p"][:5]) @ v["e"].T

    def one_hot(v, x):
        y = jax.nn.one_hot(x, 9, dtype=v["table"].dtype) @ v["table"].T
        return jnp.tanh(y + v["place"].T[None]) @ v["table"]

    src = network(gathered, IDS, e=(9, 6), p=(5, 6))
    solved(src, network(one_hot, IDS, table=(6, 9), place=(6, 5)))


def test_a_scale_around_one_and_what_is_added_to_it():
    src = network(lambda v, x: norm(x) * (1 + v["s"]) + v["b"], X, s=(6,), b=(6,))
    dst = network(lambda v, x: v["gamma"] * norm(x) + v["beta"], X, gamma=(6,), beta=(6,))
    _, made, leaves = solved(src, dst)
    np.testing.assert_allclose(made["gamma"], 1 + leaves["s"], rtol=1e-15)


def test_towers_made_in_another_order():
    def towers(names):
        def run(v, x):
            a, b = (jnp.tanh(jnp.tanh(x @ v[n + "1"]) @ v[n + "2"]) for n in names)
            return {"actor": a, "critic": b * 2}

        return run

    shapes = {f"{n}{i}": (6, 6) for n in "ac" for i in (1, 2)}
    _, made, leaves = solved(network(towers("ac"), X, **shapes), network(towers("ca"), X, **shapes))
    np.testing.assert_array_equal(made["c1"], leaves["a1"])


def block(act=jax.nn.gelu, eps=1e-5, layers=2):
    def run(v, x):
        for i in range(layers):
            x = x + act(norm(x, eps) * v[f"s{i}"] @ v[f"w{i}"]) @ v[f"u{i}"]
        return x

    shapes = {f"{n}{i}": s for i in range(layers) for n, s in (("s", (6,)), ("w", (6, 8)), ("u", (8, 6)))}
    return network(run, X, **shapes)


def test_another_epsilon_is_told():
    found = solve(block(), block(eps=1e-3))
    assert found.parting.certain and "1e-05" in found.parting.text and "0.001" in found.parting.text


@pytest.mark.parametrize("other", [block(jax.nn.silu), block(jnp.tanh), block(layers=3), block(layers=1)])
def test_other_networks_are_never_complete_nor_wrongly_placed(other):
    found = solve(block(), other)
    assert found.parting is not None and not found.complete
    for path, origin in found.origins.items():
        assert {found.sources[i] for i in np.unique(origin.source)} == {path}


def test_a_leaf_that_nothing_reads_is_not_placed():
    found = solve(
        network(lambda v, x: x @ v["w"], X, w=(6, 4)), network(lambda v, x: x @ v["k"], X, k=(6, 4), unused=(4,))
    )
    assert [u.path for u in found.unplaced] == ["unused"] and list(found.origins) == ["k"]


def test_a_codebook_by_distances_that_are_written_out_and_summed_up():
    def expanded(v, x):
        z = x @ v["w"]
        far = (z**2).sum(-1, keepdims=True) - 2 * z @ v["e"] + (v["e"] ** 2).sum(0)
        return jax.nn.one_hot(far.argmin(-1), 7, dtype=z.dtype) @ v["e"].T

    def summed(v, x):
        far = jnp.square((x @ v["w"])[..., None, :] - v["codes"]).sum(-1)
        return v["codes"][far.argmin(-1)]

    src = network(expanded, X, w=(6, 4), e=(4, 7))
    solved(src, network(summed, X, w=(6, 4), codes=(7, 4)))


def test_evidence_says_where_and_how_exactly():
    found = solve(block(), block())
    evidence = found.origins["w1"].evidence
    assert evidence.kind == "values" and "dot_general" in evidence.src_place and "dot_general" in evidence.dst_place
    assert evidence.confirmed > 0 and evidence.error < 1e-12
