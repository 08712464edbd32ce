"""What the tests of example programs share."""

from __future__ import annotations

import jax
import pytest

FLAG = "jax_disable_most_optimizations"


@pytest.fixture(scope="module")
def lightly_compiled():
    """LLVM optimises little, as these programs compile far longer than they run; what XLA makes of them is the same."""
    before = jax.config.read(FLAG)
    jax.config.update(FLAG, True)
    yield
    jax.config.update(FLAG, before)
