"""Programs that compile far longer than they run, and are compared within a tolerance: LLVM optimises them little.

XLA's own passes are the same, instruction for instruction; only what LLVM makes of each differs, which takes half the time.
Not for results that are compared bit for bit: there the compiler is the user's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

LIGHTLY = {"xla_backend_optimization_level": 0}


def light(fn: Callable[..., Any]) -> Any:
    """Returns the compiled function."""
    return jax.jit(fn, compiler_options=LIGHTLY)
