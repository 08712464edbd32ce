"""Initialisers: why fresh models differ, and how to make them alike."""

import flax.linen as nn
import haiku as hk
import jax
import numpy as np
from _proof import Proof, difference, randomised, show
from flax import nnx as flax_nnx
from in_core import initialisers as core
from in_haiku import initialisers as haiku
from in_linen import initialisers as linen
from in_nnx import initialisers as nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter

tokens = jax.random.randint(jax.random.key(1), (4, 4), 0, 500)

# region plans
in_haiku = haiku_adapter.spec(haiku.model, tokens)
in_linen = linen_adapter.spec(linen.model, tokens)
in_nnx = nnx_adapter.spec(nnx.Model, tokens)
in_core = jax.eval_shape(core.create, 0)

to_linen = br.conventions("haiku", "linen").plan(in_haiku, in_linen)
to_nnx = br.conventions("haiku", "nnx").plan(in_haiku, in_nnx)
to_core = br.Mapping.loads("""
[[rules]]
src = "params/Embed_0/{leaf}"
dst = "model/embed/params/{leaf}"

[[rules]]
src = "params/LSTMCell_0/{path:path}"
dst = "model/rnn/params/cell/{path:path}"

[[rules]]
src = "params/Dense_0/{leaf}"
dst = "model/linear/params/{leaf}"
""").plan(in_linen, in_core)
# endregion

CUT = 0.87962566103423978  # standard deviation of a standard normal that is cut off at 2 on both sides


# region statistics
def expect(values, std, largest=None):
    values = np.asarray(values)
    allowed = 4 / (2 * values.size) ** 0.5  # four standard errors
    assert abs(np.std(values) / std - 1) < allowed
    if largest is not None:
        assert 0.95 * largest < np.max(np.abs(values)) <= largest * (1 + 1e-6)


def expect_haikus(params):
    expect(params["embed"]["embeddings"], CUT, 2)
    for kernel in np.split(params["lstm/linear"]["w"], 2):  # that of x, that of h
        expect(kernel, CUT / 64**0.5, 2 / 64**0.5)  # fan-in: 32 + 32
    assert not params["lstm/linear"]["b"].any()  # to which the cell adds 1 for f
    expect(params["linear"]["w"], CUT / 32**0.5, 2 / 32**0.5)


def expect_flaxs(params):
    expect(params["embed"]["embeddings"], 1 / 32**0.5)  # not cut off
    of_x, of_h = np.split(params["lstm/linear"]["w"], 2)
    expect(of_x, 1 / 32**0.5, 2 / CUT / 32**0.5)
    for gate in np.split(of_h, 4, axis=1):
        assert np.allclose(gate.T @ gate, np.eye(32), atol=1e-5)  # orthogonal
    i, g, f, o = np.split(params["lstm/linear"]["b"], 4)
    assert (f == -1).all() and not (i.any() or g.any() or o.any())  # f is 0 with the cell's 1
    expect(params["linear"]["w"], 1 / 32**0.5, 2 / CUT / 32**0.5)


def read(params):  # of Linen, in Haiku's names
    return haiku_adapter.unflatten(to_linen.inverse(linen_adapter.flatten({"params": params})))[0]


def read_nnx(model):
    return haiku_adapter.unflatten(to_nnx.inverse(nnx_adapter.flatten(model)))[0]


def read_core(state):
    return haiku_adapter.unflatten(to_linen.inverse(to_core.inverse(state)))[0]


def statistics():
    expect_haikus(haiku.create(0))
    expect_flaxs(read(linen.create(0)))
    expect_flaxs(read_nnx(nnx.create(0)))

    expect_flaxs(haiku.create_as_the_other(0))
    expect_haikus(read(linen.create_as_the_other(0)))
    expect_haikus(read_nnx(nnx.create_as_the_other(0)))
    expect_haikus(read_core(core.create_as_the_other(0)))

    convolution = hk.transform(lambda x: hk.Conv1D(32, 4)(x))
    kernel = convolution.init(jax.random.key(0), np.ones((1, 4, 8), np.float32))["conv1_d"]["w"]
    expect(kernel, CUT / 32**0.5, 2 / 32**0.5)  # fan-in: 4 * 8
    assert nn.Conv.kernel_init is nn.Dense.kernel_init

    assert np.allclose(jax.nn.sigmoid(np.array([0.0, 1.0])), [0.5, 0.731], atol=1e-3)


# endregion


# region keys
def keys():
    key = jax.random.key(0)
    for column in (haiku, nnx):  # one key after the other, in the order in which layers are made
        a = column.kernel(key, "ab", of="a")
        assert (a != column.kernel(key, "ba", of="a")).all()
        assert (a == column.kernel(key, "ba", of="b")).all()
    for column in (linen, core):  # folded with the layer's path
        a = column.kernel(key, "ab", of="a")
        assert (a == column.kernel(key, "ba", of="a")).all()
        assert (a != column.kernel(key, "ba", of="b")).all()

    drawn = jax.random.truncated_normal(jax.random.split(key)[1], -2, 2, (32, 32))
    assert difference(drawn / 32**0.5, haiku.kernel(key, "a", of="a")) < 1e-6
    drawn = jax.random.truncated_normal(jax.random.fold_in(key, 0), -2, 2, (32, 32))
    assert difference(drawn / 32**0.5 / CUT, nnx.kernel(key, "a", of="a")) < 1e-6


# endregion


# region same
def load_into_nnx(model, params):
    entries = to_nnx.forward(haiku_adapter.flatten(params))
    flax_nnx.update(model, nnx_adapter.unflatten(nnx_adapter.flatten(model) | entries, model))


def same(proof: Proof) -> None:
    params = haiku.create(0)  # Haiku's fresh weights, wherever the run goes on
    entries = to_linen.forward(haiku_adapter.flatten(params))
    in_linen = linen_adapter.unflatten(entries)["params"]
    proof.equal("fresh weights of Haiku", params, read(in_linen), column="linen")
    in_core = to_core.forward(entries)
    proof.equal("fresh weights of Haiku", params, read_core(in_core), column="core")
    model = nnx.create(0)
    load_into_nnx(model, params)
    proof.equal("fresh weights of Haiku", params, read_nnx(model), column="nnx")

    params = haiku_adapter.flatten(params)  # the Haiku code itself, as a part of the other framework
    guest = br.ToLinen(haiku.forward).init(jax.random.key(0), haiku.sample)
    proof.equal("initial values of a guest", params, linen_adapter.flatten(guest), column="linen", allowed=0.0)
    hosted = br.init(br.HaikuModule(haiku.forward, name="model"))({}, haiku.sample, seed=0)
    hosted = {path.removeprefix("model/"): value for path, value in hosted.items()}
    proof.equal("initial values of a guest", params, hosted, column="core", allowed=0.0)


# endregion


# region check
def prove(proof: Proof) -> None:
    same(proof)
    entries = haiku_adapter.flatten(randomised(haiku.create(0)))
    proof.start("haiku", entries, lambda e: haiku.predict(haiku_adapter.unflatten(e)[0], tokens))
    proof.moved("linen", to_linen, lambda e: linen.predict(linen_adapter.unflatten(e)["params"], tokens))
    model = nnx.create(0)
    rest = nnx_adapter.flatten(model)  # keys of the carry, which is zero
    proof.moved("nnx", to_nnx, lambda e: nnx_adapter.apply(model, rest | e, tokens)[0])
    proof.moved("core", to_core, lambda e: core.predict(e, tokens), after="linen")
    statistics()
    keys()


# endregion


if __name__ == "__main__":
    show(prove, "initialisers", __doc__)
