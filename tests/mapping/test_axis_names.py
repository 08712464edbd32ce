"""Partitioning metadata crosses with a plan: Linen's boxes become NNX's `out_sharding` and back, as both read it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bridges import conventions, linen_adapter, nnx_adapter
from bridges.core._errors import MappingError, StructureError
from bridges.param_mapping import Mapping

P = PartitionSpec
ONES = nn.initializers.ones


class Old(nn.Module):
    box: object = nn.with_partitioning

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, kernel_init=self.box(ONES, ("embed", "mlp")), bias_init=self.box(ONES, ("mlp",)))(x)
        return nn.Dense(4, kernel_init=self.box(ONES, ("mlp", "embed")))(x)


class New(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.second(self.first(x))


NAMES = {
    "params/Dense_0/kernel": ("embed", "mlp"),
    "params/Dense_0/bias": ("mlp",),
    "params/Dense_1/kernel": ("mlp", "embed"),
}
CARRIED = {
    "params/first/kernel": ("embed", "mlp"),
    "params/first/bias": ("mlp",),
    "params/second/kernel": ("mlp", "embed"),
}
X = jnp.ones((2, 4))


def test_linen_to_nnx_and_back_as_each_framework_reads_it():
    old = Old()
    new = New(nnx.Rngs(0))
    variables = old.init(jax.random.key(0), X)
    plan = conventions("linen", "nnx").plan(linen_adapter.spec(old, X), nnx_adapter.spec(new, X))
    names = plan.axis_names(linen_adapter.axis_names(variables))
    assert linen_adapter.axis_names(variables) == NAMES
    assert names.names == CARRIED and not names.lost

    state = nnx_adapter.unflatten(plan.forward(linen_adapter.flatten(variables)), new)
    state = nnx_adapter.with_axis_names(state, names.names)
    assert nnx_adapter.axis_names(state) == CARRIED
    specs = nnx.get_partition_spec(state)
    assert specs["first"]["kernel"].get_value() == P("embed", "mlp") and specs["second"]["bias"].get_value() == P()
    nnx.update(new, state)  # as a user goes on
    assert nnx_adapter.axis_names(new) == CARRIED
    assert (new(X) == old.apply(variables, X)).all()

    back = plan.axis_names_back(nnx_adapter.axis_names(new))
    assert back.names == NAMES and not back.lost
    plain = nn.meta.unbox(variables)
    assert linen_adapter.axis_names(plain) == {}
    boxed = linen_adapter.with_axis_names(plain, back.names)
    assert jax.tree.structure(boxed) == jax.tree.structure(variables)
    assert nn.get_partition_spec(boxed) == nn.get_partition_spec(variables)


def test_a_mesh_places_both_alike():
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("embed", "mlp"))
    old, new = Old(), New(nnx.Rngs(0))
    variables = old.init(jax.random.key(0), X)
    plan = conventions("linen", "nnx").plan(linen_adapter.spec(old, X), nnx_adapter.spec(new, X))
    state = nnx_adapter.with_axis_names(nnx.state(new), plan.axis_names(linen_adapter.axis_names(variables)).names)
    ours, theirs = nnx.get_named_sharding(state, mesh), nn.get_sharding(variables, mesh)
    assert (
        ours["first"]["kernel"].get_value()
        == theirs["params"]["Dense_0"]["kernel"]
        == NamedSharding(mesh, P("embed", "mlp"))
    )
    assert ours["second"]["kernel"].get_value() == theirs["params"]["Dense_1"]["kernel"]


def test_logical_names_keep_their_rules():
    rules = (("embed", None), ("mlp", "model"))
    variables = Old(box=nn.with_logical_partitioning).init(jax.random.key(0), X)
    names = linen_adapter.axis_names(variables)
    assert names == NAMES
    again = linen_adapter.with_axis_names(nn.meta.unbox(variables), names, box=nn.LogicallyPartitioned, rules=rules)
    assert again["params"]["Dense_0"]["kernel"].rules == rules
    new = New(nnx.Rngs(0))
    plan = conventions("linen", "nnx").plan(linen_adapter.spec(Old(), X), nnx_adapter.spec(new, X))
    state = nnx_adapter.with_axis_names(nnx.state(new), plan.axis_names(names).names, sharding_rules=rules)
    assert nnx.get_partition_spec(state)["first"]["kernel"].get_value() == P(None, "model")


def test_names_follow_heads_and_say_where_they_cannot():
    shapes = {"params/qkv": (8, 12), "params/out": (3, 4, 8)}
    src = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    dst = {"params/q": np.zeros((8, 3, 4), np.float32), "params/o": np.zeros((8, 12), np.float32)}
    plan = Mapping.loads("""
    [[rules]]
    src = "params/qkv"
    dst = "params/q"
    ops = ["reshape"]
    [[rules]]
    src = "params/out"
    dst = "params/o"
    ops = [{ op = "reshape", shape = [12, 8] }, "transpose"]
    """).plan(src, dst)
    found = plan.axis_names({"params/qkv": ("embed", "heads"), "params/out": ("heads", "kv", "embed")})
    assert found.names == {"params/q": ("embed", "heads", None), "params/o": ("embed", "heads")}
    (lost,) = found.lost
    assert lost.startswith("params/o: 'kv': reshape")
    back = plan.axis_names_back(found.names)
    assert back.names == {"params/qkv": ("embed", "heads"), "params/out": ("heads", None, "embed")} and not back.lost


def test_unknown_paths_and_too_many_names_are_errors():
    x = {"params/w": np.zeros((2, 3), np.float32)}
    plan = Mapping.loads('[[rules]]\nsrc = "params/w"\ndst = "params/w"').plan(x, x)
    with pytest.raises(MappingError, match=r"no entries.*\n.*'params/v'. Did you mean 'params/w'"):
        plan.axis_names({"params/v": ("a",)})
    with pytest.raises(MappingError, match="fewer axes than the names"):
        plan.axis_names_back({"params/w": ("a", "b", "c")})
    with pytest.raises(StructureError, match="'params/v' is no entry"):
        linen_adapter.with_axis_names({"params": {"w": np.ones(2)}}, {"params/v": ("a",)})
    with pytest.raises(StructureError, match="'params/v' is no Variable"):
        nnx_adapter.with_axis_names(nnx.state(New(nnx.Rngs(0))), {"params/v": ("a",)})
