"""A sharded model, in the core: names of axes in the kinds of the entries."""

# region define
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bridges as br

kernel_init = jax.nn.initializers.lecun_normal


def named(*names):
    return br.Param(sharding=names)


class Mixer(br.Module):
    heads: int
    size: int

    def __call__(self, x):
        embed, heads, size = x.shape[-1], self.heads, self.size
        w = self.get(
            "heads",
            lambda: kernel_init(0, (1, 2))(br.rng(), (embed, heads, size)),
            kind=named("embed", "heads", "kv"),
        )
        out = self.get(
            "out",
            lambda: kernel_init((0, 1), 2)(br.rng(), (heads, size, embed)),
            kind=named("heads", "kv", "embed"),
        )
        bias = self.get("bias", jnp.zeros, (embed,), kind=named("embed"))
        h = jax.nn.gelu(jnp.einsum("be,ehk->bhk", x, w))
        return jnp.einsum("bhk,hke->be", h, out) + bias


# endregion


# region create
model = Mixer(heads=8, size=4)
sample = jnp.ones((1, 16))
# endregion

# region mesh
mesh = Mesh(np.array(jax.devices())[None], ("data", "model"))
rules = {"embed": None, "heads": "model", "kv": None}
# endregion


# region names
def init(key):
    return br.init(model)({}, sample, seed=key)


abstract = jax.eval_shape(init, jax.random.key(0))
names = {path: kind.metadata["sharding"] for path, kind in abstract.kinds.items()}
assert names["mixer/heads"] == ("embed", "heads", "kv")
# endregion


# region place
shardings = {path: NamedSharding(mesh, P(*(rules[name] for name in axes))) for path, axes in names.items()}
state = br.init(model, out_shardings=shardings)({}, sample, seed=0)

kernel = state["mixer/heads"]
assert kernel.sharding.spec == P(None, "model", None)
shard = kernel.addressable_shards[0].data
assert shard.shape == (16, 8 // jax.device_count(), 4)
# endregion


# region predict
@jax.jit
def predict(state, x):
    return br.pure(model)(state, x)[1]


# endregion
