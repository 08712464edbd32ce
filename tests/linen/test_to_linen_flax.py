"""What `flax.nnx.bridge.ToLinen` is tested for (flax 0.12, tests/nnx/bridge/wrappers_test.py), asked of ours.

Left out: what `nnx.display` shows, and `skip_rng` and `nnx_method`, arguments that ours does without.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import bridges as br
from bridges.linen_adapter import ToLinen
from bridges.nnx_adapter import ToNNX
from tests.linen.models import inputs, same
from tests.linen.to_linen_models import KEY, X, flat, initial

XS = inputs(2, 4)


class Inner(nnx.Module):
    """A weight and dropout."""

    def __init__(self, din, dout, rate=0.5, *, rngs):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("in", "out"))
        with nnx.use_eager_sharding(False):
            self.w = nnx.Param(init(rngs.params(), (din, dout)))
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x):
        return self.dropout(x @ self.w)


class Bias(nnx.Variable): ...


class Count(nnx.Variable): ...


def test_a_layer():
    out, variables = ToLinen(nnx.Linear, 3, out_features=5).init_with_output(KEY, X)
    assert out.shape == (4, 5)
    np.testing.assert_allclose(out, X @ variables["params"]["kernel"], rtol=1e-6)
    theirs = nnx.bridge.to_linen(nnx.Linear, 3, out_features=5).init(KEY, X)
    assert jax.tree.structure(variables) == jax.tree.structure(theirs)


def test_several_streams():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return ToLinen(Inner, 4, 3)(x)

    one, two, three = jax.random.split(KEY, 3)
    out, variables = Outer().init_with_output({"params": one, "dropout": two}, XS)
    assert not np.allclose(out, Outer().apply(variables, XS, rngs={"dropout": three}))
    assert same(
        Outer().apply(variables, XS, rngs={"dropout": three}), Outer().apply(variables, XS, rngs={"dropout": three})
    )
    with pytest.raises(br.SeedError, match="dropout"):  # Theirs draws with the key 0.
        Outer().apply(variables, XS)


def test_several_collections():
    class Model(nnx.Module):
        def __init__(self, din, dout, rngs):
            self.w = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (din, dout)))
            self.bn = nnx.BatchNorm(dout, use_running_average=False, rngs=rngs)
            self.lora = nnx.LoRA(din, 3, dout, rngs=rngs)

        def __call__(self, x):
            return self.bn(x @ self.w) + self.lora(x)

    model = ToLinen(Model, 4, 3)
    variables = model.init({"params": KEY, "dropout": KEY}, XS)
    assert sorted(variables) == ["LoRAParam", "batch_stats", "params"]
    out, new = model.apply(variables, XS, mutable=["batch_stats"])
    assert out.shape == (2, 3) and sorted(new) == ["batch_stats"]


class Counter(nnx.Module):
    def __init__(self):
        self.count = Count(jnp.array(0))

    def __call__(self):
        self.count[...] += 1
        self.nonzero = nnx.Intermediate(jnp.array(1))


def test_what_is_mutable():
    model = ToLinen(Counter)
    variables = model.init(KEY)
    assert variables["Count"]["count"] == 0
    _, updates = model.apply(variables, mutable="Count")
    assert updates["Count"]["count"] == 1
    _, updates = model.apply(variables | updates, mutable=["Count", "intermediates"])
    assert updates["Count"]["count"] == 2
    assert updates["intermediates"]["nonzero"] == 1
    _, updates = model.apply(variables | updates, mutable=["Count"])
    assert updates["Count"]["count"] == 3
    with pytest.raises(br.PermissionsError, match="Count/count"):  # Theirs loses the update.
        model.apply(variables)


def test_methods():
    class Model(nn.Module):
        def setup(self):
            self.embedding = ToLinen(nnx.Embed, 2, 3)

        def __call__(self, x):
            return self.embedding(x)

        def attend(self, x):
            return self.embedding.attend(x)

    x, z = jnp.ones((1,), jnp.int32), jnp.ones((1, 3))
    out, variables = Model().init_with_output(KEY, x)
    assert out.shape == (1, 3) and variables["params"]["embedding"]["embedding"].shape == (2, 3)
    assert Model().apply(variables, z, method="attend").shape == (1, 2)
    model = ToLinen(nnx.Embed, 2, 3)
    assert model.apply(model.init(KEY, x), z, method="attend").shape == (1, 2)


def test_vmap():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            cls = nn.vmap(ToLinen, variable_axes={"params": 0}, split_rngs={"params": True})
            return cls(nnx.Linear, x.shape[-1], 3)(x)

    out, variables = Outer().init_with_output(KEY, XS)
    kernel = variables["params"]["VmapToLinen_0"]["kernel"]
    assert kernel.shape == (2, 4, 3)
    np.testing.assert_allclose(out, jnp.einsum("ab,abc->ac", XS, kernel), rtol=1e-5)


def test_metadata():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("in", "out"))
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("in", "out"))
    model = ToLinen(nnx.Linear, 3, 4, kernel_init=init)
    with jax.set_mesh(mesh):
        out, variables = model.init_with_output(KEY, X)
        specs = nn.get_partition_spec(variables)
    assert specs["params"]["kernel"] == jax.sharding.PartitionSpec("in", "out")
    assert variables["params"]["kernel"].names == ("in", "out")  # nn.Partitioned, which knows about lifted axes.
    np.testing.assert_allclose(out, X @ variables["params"]["kernel"].value, rtol=1e-6)


def test_one_structure_from_the_top_and_from_the_middle():
    class Middle(nnx.Module):
        def __init__(self, din, dout, rngs):
            self.dot = Inner(din, dout, rngs=rngs)
            self.b = Bias(nnx.initializers.zeros_init()(rngs.params(), (1, dout)))

        def __call__(self, x):
            return self.dot(x) + self.b

    class LinenMiddle(nn.Module):
        @nn.compact
        def __call__(self, x):
            dot = ToLinen(Inner, x.shape[-1], 3, name="dot")
            return dot(x) + self.variable("Bias", "b", nn.initializers.zeros_init(), None, (1, 3)).value

    keys = {"params": KEY, "dropout": jax.random.key(1)}
    top, middle = ToLinen(Middle, din=4, dout=3).init(keys, XS), LinenMiddle().init(keys, XS)
    assert jax.tree.structure(top) == jax.tree.structure(middle)
    assert sorted(flat(top)) == ["Bias/b", "params/dot/w"]


def test_nnx_in_linen_in_nnx():
    class Middle(nn.Module):
        rate: float

        @nn.compact
        def __call__(self, x):
            logical = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("axis",), rules=(("axis", "out"),))
            return ToLinen(Inner, 4, 6, self.rate, name="dot")(x) + self.param("b", logical, (2, 6))

    model = ToNNX(Middle(0.5), rngs=nnx.Rngs(default=1, dropout=2)).lazy_init(XS)
    nnx.reseed(model, dropout=2)
    one, two = model(XS), model(XS)
    assert not np.allclose(one, two)  # The innermost dropout draws anew at every call of the outermost module.
    nnx.reseed(model, dropout=2)
    assert same(one, model(XS))
    model = ToNNX(Middle(0.0), rngs=nnx.Rngs(default=1, dropout=2)).lazy_init(XS)
    w, b = model.variables["params"]["dot"]["w"], model.variables["params"]["b"]
    np.testing.assert_allclose(model(XS), XS @ w[...] + b[...], rtol=1e-5)
    assert isinstance(w, nnx.Param)
    assert w.get_metadata("out_sharding") == ("in", "out") and b.get_metadata("out_sharding") == ("axis",)


def test_linen_in_nnx_in_linen():
    """Left open by flax: a wrapper that an NNX constructor initialises lazily."""

    class Middle(nnx.Module):
        def __init__(self, rngs):
            self.dense = ToNNX(nn.Dense(3), rngs=rngs).lazy_init(jax.ShapeDtypeStruct((1, 4), jnp.float32))
            self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.dense(x))

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return ToLinen(Middle, name="middle")(x)

    variables = initial(Outer(), XS)
    names = {p.partition("middle/")[2] for p in flat(variables)}
    assert {"norm/bias", "norm/scale", "norm/mean", "norm/var"} < names
    kernel = next(v for p, v in flat(variables).items() if p.endswith("kernel"))
    out, new = Outer().apply(variables, XS, mutable=["batch_stats"])
    bias = next(v for p, v in flat(variables).items() if p.endswith("bias") and "norm" not in p)
    norm = variables["params"]["middle"]["norm"]
    x = XS @ kernel + bias
    want = (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5) * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-5)
    stats = variables["batch_stats"]["middle"]["norm"]["mean"] * 0.9 + x.mean(0) * 0.1
    np.testing.assert_allclose(new["batch_stats"]["middle"]["norm"]["mean"], stats, rtol=1e-5)
