"""Writes, with the frameworks' own calls and without this project, the files and models that `drive.py` works on."""

import pathlib
import pickle
import sys

import flax.serialization
import haiku as hk
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import safetensors.flax
from flax import nnx

OLD = """
import haiku as hk, jax

def forward(x):
    return hk.Linear(4, name="head")(jax.nn.relu(hk.LayerNorm(-1, True, True)(hk.nets.MLP([16, 16])(x))))
"""
NEW = """
import flax.linen as nn
from flax import nnx

class Net(nn.Module):
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16)(nn.relu(nn.Dense(16)(x)))
        x = nn.LayerNorm(epsilon=self.eps, use_fast_variance=False)(x)
        return nn.Dense(4, name="head")(nn.relu(x))

model, careless, far = Net(), Net(1e-6), Net(1e-3)

class Graph(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)])
        self.norm = nnx.LayerNorm(16, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.head = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        x = self.layers[1](nnx.relu(self.layers[0](x)))
        return self.head(nnx.relu(self.norm(x)))
"""


def randomised(tree, seed):
    """Every leaf random: an initial zero or one hides what became of it."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: rng.uniform(0.2, 1.2, x.shape).astype(x.dtype) * rng.choice([-1, 1], x.shape).astype(x.dtype), tree
    )


def main(folder: pathlib.Path) -> None:
    (folder / "old.py").write_text(OLD)
    (folder / "new.py").write_text(NEW)
    spaces = {}
    exec(OLD, spaces)
    exec(NEW, spaces)
    x = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    net = hk.without_apply_rng(hk.transform(spaces["forward"]))
    params = randomised(net.init(jax.random.key(0), x), 1)
    opt_state = optax.adamw(1e-3).init(params)
    np.savez(folder / "batch.npz", x)
    np.save(folder / "wanted.npy", net.apply(params, x))
    (folder / "params.pkl").write_bytes(pickle.dumps(params))
    (folder / "train.pkl").write_bytes(pickle.dumps((params, {}, opt_state)))
    (folder / "accept.toml").write_text('[accept]\nLayerNorm_0 = ["epsilon"]\n')
    (folder / "cut.pkl").write_bytes(pickle.dumps(params)[:-40])
    (folder / "hostile.pkl").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    np.savez(folder / "weights.npz", **{f"{m}//{n}": v for m, leaves in params.items() for n, v in leaves.items()})
    variables = randomised(spaces["model"].init(jax.random.key(0), x), 2)
    (folder / "linen.msgpack").write_bytes(flax.serialization.to_bytes(variables))
    safetensors.flax.save_file({"a/kernel": x, "a/bias": x[0]}, folder / "flat.safetensors")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "graph", nnx.state(spaces["Graph"](nnx.Rngs(0))))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve())
