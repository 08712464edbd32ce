"""Flags of the host for Haiku code: as arguments of its call, and of the layers inside that nobody has told."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import haiku as hk

from bridges.core._training import told


def for_layer(cls: type | None, flags: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the flags as a class of layers understands them.

    The `is_training` of `hk.BatchNorm` says whether it uses the statistics of the batch, and nothing else (`haiku/_src/
    batch_norm.py`, 0.0.17), so that `use_running_average` decides it.
    """
    if cls is not None and issubclass(cls, hk.BatchNorm) and "use_running_average" in flags:
        return {**flags, "is_training": not flags["use_running_average"]}
    return flags


def following(flags: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Returns a `with` block in which layers that must be told whether they train, and are not, follow the flags.

    Such a layer (`hk.BatchNorm` in a `hk.Sequential`) is otherwise an error.
    """
    if not flags:
        return contextlib.nullcontext()

    def intercept(next_fun: Any, args: Any, kwargs: Any, context: hk.MethodContext) -> Any:
        more = told(context.orig_method, args, kwargs, for_layer(type(context.module), flags), undecided=True)
        return next_fun(*args, **{**kwargs, **more})

    return hk.intercept_methods(intercept)
