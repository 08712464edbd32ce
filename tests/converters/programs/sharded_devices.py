"""python sharded_devices.py DIRECTORY: converts a sharded checkpoint on eight devices of one process."""

import pathlib
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bridges import linen_adapter
from bridges.core._errors import BridgeError
from converters.sharded import convert_sharded
from tests.converters.programs.sharded_source import MAPPING, TARGET, array, planned, variables


def main(root):
    devices = np.array(jax.devices())
    assert len(devices) == 8
    mesh = Mesh(devices.reshape(2, 4), ("data", "model"))
    tree = variables(mesh)
    saver = ocp.StandardCheckpointer()

    def saved(name, tree):
        saver.save(root / name, tree)
        saver.wait_until_finished()
        return root / name

    def refused(words, *args, **kwargs):
        try:
            convert_sharded(*args, to="linen", **kwargs)
        except BridgeError as err:
            assert words in str(err), err
        else:
            raise AssertionError(f"nothing said {words!r}")

    # Values are those of the plan, shardings are carried, fields beside the variables go along.
    source = saved("source", {**tree, "step": 3, "ema_decay": array((8,), P("model"), 9, mesh)})
    plan = planned(tree, MAPPING, {path: shape for path, (shape, _) in TARGET.items()})
    done = convert_sharded(source, root / "target", plan, to="linen")
    assert {path: s.spec for path, s in done.items()} == {path: spec for path, (_, spec) in TARGET.items()}, done
    want = plan.forward({path: np.asarray(x) for path, x in linen_adapter.flatten(tree).items()})
    got = saver.restore(root / "target")
    assert got.pop("step") == 3
    assert np.asarray(got.pop("ema_decay")).tobytes() == np.asarray(array((8,), P("model"), 9, mesh)).tobytes()
    flat = linen_adapter.flatten(got)
    assert flat.keys() == want.keys()
    for path, x in flat.items():
        assert isinstance(x, jax.Array) and x.sharding.is_equivalent_to(NamedSharding(mesh, TARGET[path][1]), x.ndim), (
            path
        )
        assert np.asarray(x).tobytes() == np.ascontiguousarray(want[path]).tobytes(), path

    # On another mesh, with a sharding of one's own.
    other = Mesh(devices.reshape(4, 2), ("data", "model"))
    own = NamedSharding(other, P("model"))
    done = convert_sharded(source, root / "other", plan, to="linen", mesh=other, shardings={"params/scales": own})
    assert done["params/scales"] == own and done["params/q"].mesh == other
    again = saver.restore(root / "other")["params"]
    for a, b in zip(jax.tree.leaves(got["params"]), jax.tree.leaves(again), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()

    # What has no form is refused, before anything is written, and given it is not.
    refused("exists", source, root / "target", plan)
    refused("cannot have", source, root / "x", plan, mesh=Mesh(devices, ("batch",)))
    heads = {"params": {"w": array((64, 4, 8), P(None, None, "model"), 0, mesh)}}
    merging = '[[rules]]\nsrc = "params/{m:path}"\ndst = "params/{m:path}"\nops = ["reshape"]'
    merged = planned(heads, merging, {"params/w": (64, 32)})
    small = saved("small", heads)
    refused("merges its axis 2", small, root / "x", merged)
    given = {"params/w": NamedSharding(mesh, P("data"))}
    assert convert_sharded(small, root / "merged", merged, to="linen", shardings=given) == given
    x = saver.restore(root / "merged")["params"]["w"]
    assert np.asarray(x).tobytes() == np.asarray(heads["params"]["w"]).tobytes()
    refused("is no target", small, root / "x", merged, shardings={"params/v": given["params/w"]})
    optimizer = saved("optimizer", {**heads, "opt_state": {"mu": heads["params"]}})
    refused(
        "'opt_state' is the state of an optimizer", optimizer, root / "x", merged, shardings=given, framework="linen"
    )
    assert not (root / "x").exists() and not [p for p in root.iterdir() if "tmp" in p.name]


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
