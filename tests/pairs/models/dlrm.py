"""DLRM: Linen with a table a feature, Haiku with one table of all features behind offsets and `hk.nets.MLP`"""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

SIZES, DIM, DENSE = (5, 7, 6), 8, 8
PAIRS = tuple(x.astype(np.int32) for x in np.triu_indices(len(SIZES) + 1, 1))


class Tower(nn.Module):
    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for i, size in enumerate(self.sizes):
            x = nn.Dense(size, name=f"layer_{i}")(x)
            x = nn.relu(x) if i < len(self.sizes) - 1 or size == DIM else x
        return x


class DLRM(nn.Module):
    def setup(self):
        self.tables = [nn.Embed(size, DIM) for size in SIZES]
        self.top, self.bottom = Tower((16, 8, 1)), Tower((16, 8))

    def __call__(self, dense, sparse):
        x = self.bottom(dense)
        bags = [jnp.sum(table(sparse[:, i]), axis=1) for i, table in enumerate(self.tables)]
        stacked = jnp.stack([x, *bags], axis=1)
        products = jnp.einsum("bid,bjd->bij", stacked, stacked)[:, PAIRS[0], PAIRS[1]]
        return nn.sigmoid(self.top(jnp.concatenate([x, products], axis=-1)))[..., 0]


def source():
    return DLRM()


def target():
    def forward(dense, sparse):
        offsets = np.cumsum([0, *SIZES[:-1]], dtype=np.int32)[None, :, None]
        table = hk.get_parameter("table", (sum(SIZES), DIM), init=hk.initializers.RandomNormal())
        embedded = jnp.take(table, sparse + offsets, axis=0).sum(2)
        hidden = hk.nets.MLP([16, DIM], activate_final=True, name="dense_mlp")(dense)
        features = jnp.concatenate([hidden[:, None], embedded], 1)
        crossed = features @ features.swapaxes(1, 2)
        over = jnp.concatenate([crossed[:, i, i + 1 :] for i in range(len(SIZES))], 1)
        logits = hk.nets.MLP([16, 8, 1], name="over_mlp")(jnp.concatenate([hidden, over], 1))
        return jnp.squeeze(jax.nn.sigmoid(logits), -1)

    return forward


def inputs():
    rng = np.random.default_rng(0)
    sparse = np.stack([rng.integers(0, size, (4, 3)) for size in SIZES], 1)
    return rng.normal(size=(4, DENSE)).astype(np.float32), sparse.astype(np.int32)


def truth(s):
    made = {"params/~/table": jnp.concatenate([s[f"params/tables_{i}/embedding"] for i in range(len(SIZES))])}
    for old, new, depth in (("bottom", "dense_mlp", 2), ("top", "over_mlp", 3)):
        for i in range(depth):
            made[f"params/{new}/~/linear_{i}/w"] = s[f"params/{old}/layer_{i}/kernel"]
            made[f"params/{new}/~/linear_{i}/b"] = s[f"params/{old}/layer_{i}/bias"]
    return made
