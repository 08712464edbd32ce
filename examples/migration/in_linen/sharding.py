"""A sharded model, in Linen: names of axes in boxes around the parameters."""

# region define
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

kernel_init = nn.initializers.lecun_normal()
named = nn.with_logical_partitioning


class Mixer(nn.Module):
    heads: int
    size: int

    @nn.compact
    def __call__(self, x):
        h = nn.DenseGeneral(
            (self.heads, self.size),
            use_bias=False,
            kernel_init=named(kernel_init, ("embed", "heads", "kv")),
            name="heads",
        )(x)
        return nn.DenseGeneral(
            x.shape[-1],
            axis=(-2, -1),
            kernel_init=named(kernel_init, ("heads", "kv", "embed")),
            bias_init=named(nn.initializers.zeros, ("embed",)),
            name="out",
        )(nn.gelu(h))


# endregion


# region create
model = Mixer(8, 4)
sample = jnp.ones((1, 16))
# endregion

# region mesh
mesh = Mesh(np.array(jax.devices())[None], ("data", "model"))
rules = (("embed", None), ("heads", "model"), ("kv", None))
# endregion

# region names
boxed = jax.eval_shape(model.init, jax.random.key(0), sample)
specs = nn.get_partition_spec(boxed)
assert specs["params"]["heads"]["kernel"] == P("embed", "heads", "kv")
# endregion


# region place
def init():
    return model.init(jax.random.key(0), sample)


shardings = nn.logical_to_mesh_sharding(specs, mesh, rules)
variables = jax.jit(init, out_shardings=shardings)()
box = variables["params"]["heads"]["kernel"]
assert isinstance(box, nn.LogicallyPartitioned)
params = nn.meta.unbox(variables)["params"]

kernel = params["heads"]["kernel"]
assert kernel.sharding.spec == P(None, "model", None)
shard = kernel.addressable_shards[0].data
assert shard.shape == (16, 8 // jax.device_count(), 4)
# endregion


# region predict
@jax.jit
def predict(params, x):
    return model.apply({"params": params}, x)


# endregion
