"""Random values: variables of which every one moves the output, and inputs that hide none of them.

A model at its initial values hides much: biases are zero, scales one, and two layers alike. What is random here is so
unlikely to be equal by accident that equality is evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bridges.core._errors import BridgeError
from bridges.core._kind import Param, kind_type
from bridges.core._spec import Spec


def randomised(entries: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """Returns random values for abstract entries: every one that can be moves the output, none is at its initial value.

    Weights are normal and scaled by 1/sqrt of what they sum over, so that deep models keep their size; vectors and
    scalars have a size of 0.3 to 1.1 and either sign; what is called a variance is positive. Integers are 3.
    """
    rng = np.random.default_rng(seed)
    out = {}
    for path, x in entries.items():
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            raise BridgeError(f"{path!r} is a random key: pass variables for the source, it cannot be made up.")
        if not jax.dtypes.issubdtype(x.dtype, np.inexact):
            out[path] = np.full(x.shape, 3 if x.dtype != bool else True, x.dtype)
            continue
        if _is_weight(x.shape):
            values = rng.normal(size=x.shape) / np.sqrt(np.prod(x.shape[:-1]))
        else:
            values = rng.uniform(0.3, 1.1, x.shape) * (1 if "var" in path else rng.choice([-1, 1], x.shape))
        out[path] = values.astype(x.dtype)
    return out


def variables(spec: Spec, seed: int = 0, positive: bool = False) -> dict[str, Any]:
    """Returns random values for the real entries of a spec, whatever the layout of its weights.

    As `randomised`, but weights are divided by the root of all their sizes save the largest, and of the sizes of stacks,
    since nothing is known of which axis they sum over; and whatever is no parameter (running statistics) is positive.

    Args:
      spec: The spec.
      seed: What the values are made of.
      positive: Whether vectors and scalars are all positive: an entry may be under a root or a logarithm.
    """
    rng = np.random.default_rng(seed)
    copies = {path: [stack.size for stack in stacks] for path, stacks in spec.stacks.items()}
    out = {}
    for path, x in spec.entries.items():
        if not jax.dtypes.issubdtype(x.dtype, np.inexact):
            continue
        stacked = copies.get(path.partition("/")[2].rpartition("/")[0], [])
        if _is_weight(x.shape):
            among = np.prod(x.shape) / max(x.shape) / (np.prod(stacked) if len(stacked) < len(x.shape) - 1 else 1)
            values = rng.normal(size=x.shape) / np.sqrt(max(among, 1.0))
        else:
            kind = spec.entries.kind(path)
            signless = positive or "var" in path or (kind is not None and not issubclass(kind_type(kind), Param))
            values = rng.uniform(0.3, 1.1, x.shape) * (1 if signless else rng.choice([-1, 1], x.shape))
        out[path] = values.astype(x.dtype)
    return out


def drawn(x: Any, rng: np.random.Generator) -> Any:
    """Returns an input with values: what is abstract, real and all the same, or no number, is drawn; the rest stays.

    Integers that are abstract, or several and all zero, become 0 and 1, since what else they may be is not known.
    """
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x if not isinstance(x, jax.ShapeDtypeStruct) else jax.random.key(0)
    if not jax.dtypes.issubdtype(x.dtype, np.inexact):
        if not isinstance(x, jax.ShapeDtypeStruct) and (x.dtype == bool or np.size(x) < 2 or np.any(np.asarray(x))):
            return x
        return rng.integers(0, 2, x.shape).astype(x.dtype)
    given = np.full(x.shape, np.nan) if isinstance(x, jax.ShapeDtypeStruct) else np.asarray(x)
    odd = ~np.isfinite(given)  # a NaN would hide whatever depends on it
    if given.size and not odd.any() and not np.all(given == given.flat[0]):
        return x
    made = np.asarray(rng.standard_normal(x.shape)).astype(x.dtype)
    return np.where(odd, made, given) if odd.any() else made


def _is_weight(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and max(shape[:-1]) > 1
