"""A sharded model, in Haiku: specs by path, beside the model."""

# region define
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


class Mixer(hk.Module):
    def __init__(self, heads, size, name=None):
        super().__init__(name=name)
        self.heads = heads
        self.size = size

    def __call__(self, x):
        width = self.heads * self.size
        h = hk.Linear(width, with_bias=False, name="heads")(x)
        return hk.Linear(x.shape[-1], name="out")(jax.nn.gelu(h))


# endregion


# region create
def forward(x):
    return Mixer(8, 4)(x)


model = hk.without_apply_rng(hk.transform(forward))
sample = jnp.ones((1, 16))
# endregion

# region mesh
mesh = Mesh(np.array(jax.devices())[None], ("data", "model"))
# endregion

# region names
specs = {
    "mixer/heads": {"w": P(None, "model")},
    "mixer/out": {"w": P("model", None), "b": P(None)},
}
# endregion


# region place
def init():
    return model.init(jax.random.key(0), sample)


shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
params = jax.jit(init, out_shardings=shardings)()

kernel = params["mixer/heads"]["w"]
assert kernel.sharding.spec == P(None, "model")
shard = kernel.addressable_shards[0].data
assert shard.shape == (16, 32 // jax.device_count())
# endregion


# region predict
@jax.jit
def predict(params, x):
    return model.apply(params, x)


# endregion
