"""Draw: random leaves and inputs, such that every leaf moves the output and none is under a root of a negative number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges._infer._graph import Graph

_ROOTS = {"sqrt", "rsqrt", "log", "pow", "cbrt"}


def positive(graph: Graph) -> frozenset[str]:
    """Returns the leaves that come under a root or a logarithm without any data."""
    found: set[str] = set()
    for step in graph.steps:
        if step.name in _ROOTS and not graph.data[step.ins[0]]:
            found |= graph.leaves[step.ins[0]]
    return frozenset(found)


def drawn_leaves(graph: Graph, variables: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Returns random values of leaves by path, float64 where they are real.

    Weights are normal, divided by the root of all their sizes but the largest; vectors have a size of 0.3 to 1.1 and either
    sign, but those that must be positive are. What is an array already is taken as it is.
    """
    rng = np.random.default_rng(seed)
    sure = positive(graph)
    out: dict[str, Any] = {}
    for path in sorted(variables):
        x = variables[path]
        shape = tuple(np.shape(x))
        if not isinstance(x, jax.ShapeDtypeStruct):  # an integer or a mask, which has a value of its own
            out[path] = np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, np.floating) else x
        elif jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            out[path] = jax.random.key(seed)
        elif jnp.issubdtype(x.dtype, np.complexfloating):
            size = np.sqrt(2 * max(1.0, np.prod(shape) / max((1, *shape))))
            out[path] = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / size
        elif not jnp.issubdtype(x.dtype, np.floating):
            out[path] = np.full(shape, 3, x.dtype) if x.dtype != bool else np.ones(shape, bool)
        elif path in sure or sum(n > 1 for n in shape) < 2:
            out[path] = rng.uniform(0.3, 1.1, shape) * (1.0 if path in sure else rng.choice([-1.0, 1.0], shape))
        else:
            out[path] = rng.normal(size=shape) / np.sqrt(max(1.0, np.prod(shape) / max(shape)))
    return out


def drawn_inputs(inputs: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Returns the inputs with random values in the place of real ones; integers, flags and keys stay."""
    rng = np.random.default_rng(seed + 1000)
    out = {}
    for path in sorted(inputs):
        x = inputs[path]
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) or not jnp.issubdtype(x.dtype, np.floating):
            out[path] = x
            continue
        flat = np.asarray(x, np.float64)
        if flat.size > 1 and np.all(np.isfinite(flat)) and np.ptp(flat) > 0 and np.unique(flat).size > flat.size // 2:
            size, middle = float(np.std(flat)), float(np.mean(flat))
            out[path] = middle + size * rng.normal(size=flat.shape)
        else:
            out[path] = rng.normal(size=flat.shape)
    return out
