"""What a compiled program consists of, for tests that say: wrapped is native, instruction for instruction."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax

from tests.light import light

# `ROOT %sum.2 = (f32[2]{0}, s32[]) fusion(%a, %b), kind=kLoop, …`: the name, the shape, then the opcode.
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (?:\([^=]*?\)|\S+) ([a-z][a-z0-9\-]*)\(", re.MULTILINE)


def opcodes(compiled: Any) -> Counter[str]:
    """Returns how often each opcode occurs in an optimised program, inside of its fusions and loops too.

    Args:
      compiled: What `jax.jit(f).lower(…).compile()` returns, or its text.
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    return Counter(_INSTRUCTION.findall(re.sub(r"/\*.*?\*/", "", text)))  # /*index=5*/ in the shape of a long tuple


def compiled(fn: Callable[..., Any], *args: Any) -> Any:
    """Returns the compiled program of a function for these arguments."""
    return jax.jit(fn).lower(*args).compile()


def compiled_lightly(fn: Callable[..., Any], *args: Any) -> Any:
    """Returns the same, where results are compared within a tolerance or not at all; see `tests.light`."""
    return light(fn).lower(*args).compile()
