"""Which framework a part comes from, and the wrapper that runs it: found without importing a framework.

A part's framework is that of its class; the wrapper's module is loaded when the wrapper is asked for. A function is taken
for Haiku's.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from bridges.core import Module
from bridges.core._errors import UnsupportedError

# The package that a class comes from, or one that it inherits from -> the module and name of the wrapper.
_WRAPPERS = {
    "flax.linen": ("bridges.linen_adapter", "FlaxModule"),
    "flax.nnx": ("bridges.nnx_adapter", "NNXModule"),
    "haiku": ("bridges.haiku_adapter", "HaikuModule"),
}


def framework_of(part: Any) -> str | None:
    """Returns which framework's wrapper a part needs, None for a `bridges.Module`.

    Raises:
      UnsupportedError: The part is nothing that can be hosted.
    """
    inner = innermost(part)
    cls = inner if isinstance(inner, type) else type(inner)
    if issubclass(cls, Module):
        return None
    for base in cls.__mro__:
        for package in _WRAPPERS:
            if base.__module__ == package or base.__module__.startswith(package + "."):
                return package
    if callable(inner) and not isinstance(inner, type):
        return "haiku"
    raise UnsupportedError(
        f"{part!r} cannot be hosted. Pass a Haiku function, hk.Module class or what hk.transform gave, a Linen"
        " module, an NNX class, or a bridges.Module."
    )


def wrapper_of(framework: str) -> Any:
    """Returns the `bridges.Module` class that runs parts of a framework."""
    module, name = _WRAPPERS[framework]
    return getattr(importlib.import_module(module), name)


def innermost(part: Any) -> Any:
    """Returns what stands inside of `functools.partial`."""
    while isinstance(part, functools.partial):
        part = part.func
    return part
