"""Flags of the host for a Linen module: as arguments of its call, and of the layers inside that nobody has told."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from bridges.core._training import told


def arguments(
    module: nn.Module, method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], flags: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the arguments by keyword that the flags give to a call of the module; see `bridges.core._training`."""
    if not flags:
        return {}
    found = method if callable(method) else getattr(type(module), method or "__call__", None)
    try:
        signature = inspect.signature(found)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # A submodule that setup makes: its own call will ask.
        return {}
    signature = signature.replace(parameters=list(signature.parameters.values())[1:])
    return told(signature, args, kwargs, flags, fixed=lambda name: getattr(module, name, None) is not None)


def following(flags: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Returns a `with` block in which layers that would not know whether they train follow the flags.

    Such a layer (`nn.Dropout(0.5)(x)`, `nn.BatchNorm()(x)` in a module that says nothing) is otherwise an error.
    """
    if not flags:
        return contextlib.nullcontext()

    def intercept(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        more = told(
            context.orig_method, args, kwargs, flags,
            fixed=lambda name: getattr(module, name, None) is not None, undecided=True,
        )  # fmt: skip
        return next_fun(*args, **{**kwargs, **more})

    return nn.intercept_methods(intercept)
