"""Linen's own record of the module whose method runs (flax 0.12 linen/module.py, private): touched here only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from flax import linen as nn
from flax.linen import module as linen_module


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Runs a `with` block in which Linen modules that are made belong to nobody."""
    stack = linen_module._context.module_stack
    stack.append(None)
    try:
        yield
    finally:
        stack.pop()


@contextlib.contextmanager
def captured_once(module: nn.Module) -> Iterator[None]:
    """Runs a `with` block in which `capture_intermediates` leaves out a module: whoever hands it through is captured."""
    stack: list[Any] = linen_module._context.capture_stack
    outer: Any = stack[-1] if stack else False
    stack.append(outer and (lambda m, name: m is not module and outer(m, name)))
    try:
        yield
    finally:
        stack.pop()


def in_scope_of_another(module: nn.Module) -> bool:
    """Whether a module that calls a bound module has its scope (`nn.share_scope`), and may have variables there."""
    scope: Any = module.scope
    for caller in reversed(linen_module._context.module_stack):
        if caller is None:
            break
        # Classes that transformations derive from a module's stand for the module itself.
        if caller.scope is not None and caller.scope.path == scope.path and not _of_one_class(caller, module):
            return True
    return False


def _of_one_class(a: nn.Module, b: nn.Module) -> bool:
    return isinstance(a, type(b)) or isinstance(b, type(a))
