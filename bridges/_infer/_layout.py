"""Layout: steps that only move elements, as arrays of indices.

`moves(step, ...)` says for each element of what a step makes which element of which of its inputs it is. What a step does to
numbers, to references into leaves and to identities of elements is then one and the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bridges._infer._graph import Step
from bridges._infer._numbers import numbers

# How many of a step's inputs are moved (from the first on; None: all), the others being indices that must be known.
MOVED: dict[str, int | None] = {
    "reshape": 1, "transpose": 1, "broadcast_in_dim": 1, "squeeze": 1, "expand_dims": 1, "copy": 1, "copy_p": 1, "rev": 1,
    "slice": 1, "dynamic_slice": 1, "gather": 1, "concatenate": None, "pad": 2, "stack": None, "split": 1,
    "tile": 1, "stop_gradient": 1, "reduce_precision": 1, "sharding_constraint": 1, "dynamic_update_slice": 2,
    "select_n": -1, "convert_element_type": 1, "optimization_barrier": None,
}  # fmt: skip


def moved_inputs(step: Step) -> list[int] | None:
    """Returns which of a step's inputs it moves; None if it does more than moving elements."""
    count = MOVED.get(step.name, 0)
    if count == 0:
        return None
    if count == -1:
        return list(range(1, len(step.ins)))
    return list(range(len(step.ins) if count is None else count))


def moves(step: Step, shapes: Sequence[tuple[int, ...]], indices: Sequence[Any]) -> list[np.ndarray]:
    """Returns for each output the index of each of its elements among those of all moved inputs, laid end to end.

    Args:
      step: A step with moved inputs.
      shapes: The shapes of all inputs.
      indices: The known arrays of the inputs that are not moved; None for those that are.
    """
    start, ins = 0, []
    for shape, index in zip(shapes, indices, strict=True):
        if index is not None:
            ins.append(np.asarray(index))
            continue
        size = int(np.prod(shape))
        ins.append(np.arange(start, start + size, dtype=np.int64).reshape(shape))
        start += size
    if step.name == "convert_element_type":
        return [ins[0]]
    if step.name in ("gather", "dynamic_slice", "dynamic_update_slice", "split", "pad", "rev", "expand_dims", "tile"):
        params = dict(step.params)
        if params.get("fill_value") is not None:
            params["fill_value"] = -1
        with jax.enable_x64(True):
            out = step.with_params(params)(*ins)[0]
        return [np.asarray(x) for x in (out if isinstance(out, (list, tuple)) else [out])]
    return [np.asarray(x) for x in numbers(step, ins)]
