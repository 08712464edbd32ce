"""Sharded models, and the names of axes."""

import os
import pathlib
import subprocess
import sys
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from _proof import Proof, randomised, show
from flax import nnx as flax_nnx
from in_core import sharding as core
from in_haiku import sharding as haiku
from in_linen import sharding as linen
from in_nnx import sharding as nnx
from jax.sharding import PartitionSpec as P

import bridges as br
import converters
from bridges import haiku_adapter, linen_adapter, nnx_adapter
from converters.sharded import convert_sharded

x = np.random.default_rng(1).normal(size=(4, 16)).astype(np.float32)

# region plans
in_haiku = haiku_adapter.spec(haiku.model, x)
in_linen = linen_adapter.spec(linen.model, x)
in_nnx = nnx_adapter.spec(nnx.model, x)

to_linen = br.conventions("haiku", "linen").plan(in_haiku, in_linen)
to_nnx = br.conventions("haiku", "nnx").plan(in_haiku, in_nnx)
to_core = br.Mapping.loads("""
[[rules]]
src = "params/{layer}/kernel"
dst = "mixer/{layer}"

[[rules]]
src = "params/out/bias"
dst = "mixer/bias"
""").plan(in_linen, core.state)
# endregion

# region names
names = linen_adapter.axis_names(linen.variables)
assert names["params/heads/kernel"] == ("embed", "heads", "kv")
assert nnx_adapter.axis_names(nnx.model) == names
assert to_core.axis_names(names).names == core.names

merged = to_linen.axis_names_back(names)
assert merged.names["params/mixer/heads/w"] == ("embed", "heads")
assert merged.names["params/mixer/out/w"] == ("heads", "embed")
assert len(merged.lost) == 2 and all("'kv'" in reason for reason in merged.lost)

on_mesh = dict(linen.rules)
for path, axes in merged.names.items():  # the table that the Haiku program keeps
    module, leaf = path.removeprefix("params/").rsplit("/", 1)
    assert haiku.specs[module][leaf] == P(*(on_mesh[name] for name in axes))
# endregion

# region stacked
layers = {f"params/layer_{i}/kernel": jnp.zeros((16, 32)) for i in range(3)}
stack = br.Mapping.of(
    rules=[{"src": "params/layer_{i:int}/kernel", "dst": "params/layers/kernel", "ops": ["stack"]}]
).plan(layers, {"params/layers/kernel": jnp.zeros((3, 16, 32))})

each = dict.fromkeys(layers, ("embed", "mlp"))
assert stack.axis_names(each).names == {"params/layers/kernel": (None, "embed", "mlp")}
back = stack.axis_names_back({"params/layers/kernel": ("layers", "embed", "mlp")})
assert back.names == each and "'layers'" in back.lost[0]
# endregion


# region boxes
def boxed_for_linen(params):
    entries = to_linen.forward(haiku_adapter.flatten(params))
    variables = linen_adapter.unflatten(entries)
    return linen_adapter.with_axis_names(variables, names, box=nn.LogicallyPartitioned)


# endregion


# region load
def load_into_nnx(model, params):
    entries = to_nnx.forward(haiku_adapter.flatten(params))
    state = nnx_adapter.unflatten(entries, model)
    with flax_nnx.logical_axis_rules(nnx.rules):
        state = jax.device_put(state, flax_nnx.get_named_sharding(state, nnx.mesh))
    flax_nnx.update(model, state)


# endregion


# region shards
def shard_by_shard(folder, params):
    with ocp.StandardCheckpointer() as saver:  # what a run has written
        saver.save(folder / "haiku", {"params": params})

    written = convert_sharded(folder / "haiku", folder / "nnx", to_nnx, to="nnx")
    assert written["params/heads/kernel"].spec == P(None, "model", None)

    with flax_nnx.logical_axis_rules(nnx.rules):
        graphdef, like = flax_nnx.get_abstract_model(nnx.create, nnx.mesh)
    with ocp.StandardCheckpointer() as reader:
        return flax_nnx.merge(graphdef, reader.restore(folder / "nnx", like))


# endregion


# region devices
def on_devices(folder):
    """Runs where there are several devices: converts, looks where everything is, and trains a step."""
    folder, params = pathlib.Path(folder), jax.tree.map(np.asarray, randomised(haiku.params))
    sharded = jax.device_put(params, haiku.shardings)
    kernel = to_nnx.forward(haiku_adapter.flatten(sharded))["params/heads/kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(16, 2, 4)}

    model, loaded = shard_by_shard(folder, sharded), nnx.model
    entries = to_nnx.forward(haiku_adapter.flatten(params))
    flax_nnx.update(loaded, nnx_adapter.unflatten(entries, loaded))
    assert isinstance(loaded.heads.kernel[...], np.ndarray)  # it has names, and is on the host
    load_into_nnx(loaded, params)

    @flax_nnx.jit
    def step(model, x):
        grads = flax_nnx.grad(lambda model: jnp.mean(model(x) ** 2))(model)
        params = flax_nnx.state(model, flax_nnx.Param)
        flax_nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))

    for found in (model, loaded):
        step(found, x)
        shards = found.heads.kernel[...].addressable_shards
        assert {shard.device for shard in shards} == set(jax.devices()) and len(shards) == 4
        assert {shard.data.shape for shard in shards} == {(16, 2, 4)}  # two heads a device
    assert (model.heads.kernel[...] == loaded.heads.kernel[...]).all()
    converters.save(folder / "trained.npz", nnx_adapter.flatten(model))


def on_four_devices(folder):
    program = "import sys, sharding; sharding.on_devices(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", program, folder],
        cwd=pathlib.Path(__file__).parent,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        check=True,
    )
    return linen_adapter.flatten(converters.load(f"{folder}/trained.npz"))


# endregion


# region check
def prove(proof: Proof) -> None:
    params = randomised(haiku.params)
    proof.start("haiku", haiku_adapter.flatten(params), lambda e: haiku.predict(haiku_adapter.unflatten(e)[0], x))
    proof.moved("linen", to_linen, lambda e: linen.predict(linen_adapter.unflatten(e)["params"], x))
    proof.moved("nnx", to_nnx, lambda e: nnx_adapter.apply(nnx.model, e, x)[0])
    proof.moved("core", to_core, lambda e: core.predict(e, x), after="linen")

    boxed = boxed_for_linen(params)
    assert nn.get_partition_spec(boxed) == linen.specs
    assert linen_adapter.axis_names(boxed) == names

    try:
        nnx.create()  # names, and no mesh to place anything on
    except ValueError as err:
        assert "mesh" in str(err)
    else:
        raise AssertionError("eager sharding took place without a mesh")
    with flax_nnx.use_eager_sharding(False):
        assert nnx_adapter.axis_names(nnx.create()) == names

    gradient = jax.grad(lambda params: jnp.mean(haiku.predict(params, x) ** 2))(params)
    trained = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    with tempfile.TemporaryDirectory() as folder:
        found = on_four_devices(folder)
    proof.equal("a step on four devices", to_nnx.forward(haiku_adapter.flatten(trained)), found, column="nnx")


# endregion


if __name__ == "__main__":
    show(prove, "sharding", __doc__)
