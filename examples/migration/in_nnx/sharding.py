"""A sharded model, in NNX: names of axes in the metadata of the Variables."""

# region define
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

kernel_init = nnx.initializers.lecun_normal()
named = nnx.with_partitioning


class Mixer(nnx.Module):
    def __init__(self, embed, heads, size, rngs):
        self.heads = nnx.LinearGeneral(
            embed,
            (heads, size),
            use_bias=False,
            kernel_init=named(kernel_init, ("embed", "heads", "kv")),
            rngs=rngs,
        )
        self.out = nnx.LinearGeneral(
            (heads, size),
            embed,
            axis=(-2, -1),
            kernel_init=named(kernel_init, ("heads", "kv", "embed")),
            bias_init=named(nnx.initializers.zeros, ("embed",)),
            rngs=rngs,
        )

    def __call__(self, x):
        return self.out(nnx.gelu(self.heads(x)))


# endregion


# region create
def create():
    return Mixer(16, 8, 4, nnx.Rngs(0))


# endregion

# region mesh
mesh = Mesh(np.array(jax.devices())[None], ("data", "model"))
rules = (("embed", None), ("heads", "model"), ("kv", None))
# endregion

# region names
with jax.set_mesh(mesh), nnx.logical_axis_rules(rules):
    abstract = nnx.eval_shape(create)
    specs = nnx.get_partition_spec(nnx.state(abstract))
kernel = abstract.heads.kernel
assert kernel.out_sharding == ("embed", "heads", "kv")
spec = specs["heads"]["kernel"].get_value()
assert spec == P(None, "model", None)
# endregion

# region place
with jax.set_mesh(mesh), nnx.logical_axis_rules(rules):
    model = nnx.jit(create)()

kernel = model.heads.kernel[...]
shard = kernel.addressable_shards[0].data
assert shard.shape == (16, 8 // jax.device_count(), 4)
# endregion


# region predict
@nnx.jit
def predict(model, x):
    return model(x)


# endregion
