"""What the programs of `test_sharded.py` share: a sharded source, a mapping, and its target."""

import jax
import numpy as np
import tensorstore as ts
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bridges import linen_adapter
from bridges.param_mapping import Mapping

MAPPING = """
[[rules]]
src = "params/up/{n}"
dst = "params/first/{n}"
[[rules]]
src = "params/down/kernel"
dst = "params/second/kernel"
ops = ["transpose"]
[[rules]]
src = "params/qkv/kernel"
dst = ["params/q", "params/k", "params/v"]
ops = [{op = "split", axis = 1, parts = 3, equal = true}, "reshape"]
[[rules]]
src = "params/l{i:int}/scale"
dst = "params/scales"
ops = ["stack"]
"""
HEADS = """
[[rules]]
src = "params/up/kernel"
dst = "params/heads"
ops = ["transpose", "reshape"]
"""
# The target's entries: shape, and the sharding that the source's should become.
TARGET = {
    "params/first/kernel": ((64, 256), P(None, "model")),
    "params/first/bias": ((256,), P("model")),
    "params/second/kernel": ((64, 256), P("data", "model")),
    "params/q": ((64, 8, 4), P("data", "model", None)),
    "params/k": ((64, 8, 4), P("data", "model", None)),
    "params/v": ((64, 8, 4), P("data", "model", None)),
    "params/scales": ((2, 64), P(None, "model")),
}


def array(shape, spec, seed, mesh):
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return jax.make_array_from_callback(shape, NamedSharding(mesh, spec), lambda index: x[index])


def variables(mesh):
    return {
        "params": {
            "up": {
                "kernel": array((64, 256), P(None, "model"), 0, mesh),
                "bias": array((256,), P("model"), 1, mesh),
            },
            "down": {"kernel": array((256, 64), P("model", "data"), 2, mesh)},
            "qkv": {"kernel": array((64, 96), P("data", "model"), 3, mesh)},
            "l0": {"scale": array((64,), P("model"), 4, mesh)},
            "l1": {"scale": array((64,), P("model"), 5, mesh)},
        }
    }


def planned(tree, mapping, target):
    flat = linen_adapter.flatten(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree))
    return Mapping.loads(mapping).plan(flat, {path: np.zeros(shape, np.float32) for path, shape in target.items()})


def bytes_read():
    """How many bytes TensorStore has read from files in this process."""
    found = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(int(value["value"]) for metric in found for value in metric["values"])
