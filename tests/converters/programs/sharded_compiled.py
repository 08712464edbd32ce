"""python sharded_compiled.py: for what is carried XLA moves nothing, and would choose the same, on eight devices."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bridges.param_mapping import Mapping
from converters._sharding import target_shardings


def main():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    F = np.float32
    cases = [
        (["transpose"], (8, 16), (16, 8), P("data", "model")),
        (["reshape"], (8, 16), (8, 4, 4), P("data", "model")),
        (["reshape"], (8, 4, 4), (8, 16), P("data", "model")),
        (["reshape"], (16, 8), (8, 16), P(("data", "model"))),
        (["transpose", "reshape"], (8, 16), (4, 4, 8), P("data", "model")),
        ([{"op": "expand", "axis": 0}, {"op": "scale", "value": 2.0}], (8, 16), (1, 8, 16), P("model")),
    ]
    for ops, ins, outs, spec in cases:
        plan = Mapping.of(rules=[{"src": "a", "dst": "b", "ops": ops}]).plan(
            {"a": np.zeros(ins, F)}, {"b": np.zeros(outs, F)}
        )
        wanted = target_shardings(plan, {"a": NamedSharding(mesh, spec)}, {})["b"]
        (item,) = plan
        x = jax.device_put(np.arange(np.prod(ins), dtype=F).reshape(ins), NamedSharding(mesh, spec))
        lowered = jax.jit(item.forward, out_shardings=[wanted]).lower([x]).compile()
        text = lowered.as_text()
        moved = [w for w in ("all-gather", "all-to-all", "collective-permute", "all-reduce") if w in text]
        assert not moved, (ops, spec, wanted, moved)
        (own,) = jax.jit(item.forward)([x])
        assert own.sharding.is_equivalent_to(wanted, own.ndim), (ops, own.sharding, wanted)
        assert (np.asarray(lowered([x])[0]) == item.forward([np.asarray(x)])[0]).all()


if __name__ == "__main__":
    main()
