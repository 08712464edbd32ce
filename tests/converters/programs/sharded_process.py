"""python sharded_process.py DIRECTORY PORT RANK: one of two processes that convert a sharded checkpoint together."""

import pathlib
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from converters.sharded import convert_sharded
from tests.converters.programs.sharded_source import HEADS, array, bytes_read, planned


def main(root, port, rank):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
    assert len(jax.devices()) == 4 and len(jax.local_devices()) == 2
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
    tree = {"params": {"up": {"kernel": array((1024, 2048), P("data", "model"), 0, mesh)}}}
    saver = ocp.StandardCheckpointer()
    saver.save(root / "source", tree)
    saver.wait_until_finished()

    plan = planned(tree, HEADS, {"params/heads": (16, 128, 1024)})
    before = bytes_read()
    done = convert_sharded(root / "source", root / "target", plan, to="linen")
    read = (bytes_read() - before) / (1024 * 2048 * 4)
    assert 0.4 < read < 0.6, read  # half of the array: the other half is the other process's
    assert done["params/heads"].spec == P("model", None, "data")

    like = {"params": {"heads": jax.ShapeDtypeStruct((16, 128, 1024), np.float32, sharding=done["params/heads"])}}
    got = saver.restore(root / "target", like)["params"]["heads"]
    want = np.random.default_rng(0).standard_normal((1024, 2048)).astype(np.float32).T.reshape(16, 128, 1024)
    assert len(got.addressable_shards) == 2
    for shard in got.addressable_shards:
        assert np.asarray(shard.data).tobytes() == np.ascontiguousarray(want[shard.index]).tobytes()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
