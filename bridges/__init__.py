"""bridges: dm-haiku, Flax Linen, Flax NNX and a flat-state module system for JAX, side by side and convertible.

Names are loaded when they are first used: `import bridges` imports neither a framework nor a file format.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridges import haiku_adapter as haiku_adapter
    from bridges import linen_adapter as linen_adapter
    from bridges import nnx_adapter as nnx_adapter
    from bridges import optax_adapter as optax_adapter
    from bridges import param_mapping as param_mapping
    from bridges.core import *  # noqa: F403
    from bridges.haiku_adapter import FromHaiku as FromHaiku
    from bridges.haiku_adapter import HaikuModule as HaikuModule
    from bridges.haiku_adapter import ToHaiku as ToHaiku
    from bridges.infer import DifferentModelsError as DifferentModelsError
    from bridges.infer import Function as Function
    from bridges.infer import InferredMapping as InferredMapping
    from bridges.infer import infer_mapping as infer_mapping
    from bridges.linen_adapter import FlaxModule as FlaxModule
    from bridges.linen_adapter import FromFlax as FromFlax
    from bridges.linen_adapter import FromLinen as FromLinen
    from bridges.linen_adapter import LinenModule as LinenModule
    from bridges.linen_adapter import ToLinen as ToLinen
    from bridges.nnx_adapter import FromNNX as FromNNX
    from bridges.nnx_adapter import NNXModule as NNXModule
    from bridges.nnx_adapter import ToNNX as ToNNX
    from bridges.optax_adapter import FromOptax as FromOptax
    from bridges.optax_adapter import OptaxModule as OptaxModule
    from bridges.param_mapping import Mapping as Mapping
    from bridges.param_mapping import Plan as Plan
    from bridges.param_mapping import Template as Template
    from bridges.param_mapping import conventions as conventions

__version__ = "0.1.0"

_CORE = (
    "All", "BatchStat", "BridgeError", "Cache", "CollisionError", "Context", "ContextError", "CreateError",
    "EntryShapeError", "FieldError", "FilterError", "Intermediate", "Kind", "Layer", "LeakError", "MappingError",
    "MissingEntryError", "Module", "NamingError", "Not", "Param", "PathContains", "PathMatches", "PermissionsError",
    "RngState", "SeedError", "Spec", "State", "StructureError", "UnsupportedError", "Variable", "apply", "arrays",
    "checkpoint", "cond", "context", "flag", "flags", "fori_loop", "get", "grad", "init", "jit", "pure", "remat", "rng",
    "scan", "scope", "state", "switch", "value_and_grad", "vmap", "while_loop",
)  # fmt: skip

# Where each public name lives; None: the name is that module itself.
_NAMES: dict[str, tuple[str, str | None]] = {
    **{name: ("bridges.core", name) for name in _CORE},
    "haiku_adapter": ("bridges.haiku_adapter", None),
    "linen_adapter": ("bridges.linen_adapter", None),
    "nnx_adapter": ("bridges.nnx_adapter", None),
    "optax_adapter": ("bridges.optax_adapter", None),
    "param_mapping": ("bridges.param_mapping", None),
    "HaikuModule": ("bridges.haiku_adapter", "HaikuModule"),
    "FromHaiku": ("bridges.haiku_adapter", "FromHaiku"),
    "ToHaiku": ("bridges.haiku_adapter", "ToHaiku"),
    "FlaxModule": ("bridges.linen_adapter", "FlaxModule"),
    "LinenModule": ("bridges.linen_adapter", "LinenModule"),
    "ToLinen": ("bridges.linen_adapter", "ToLinen"),
    "FromFlax": ("bridges.linen_adapter", "FromFlax"),
    "FromLinen": ("bridges.linen_adapter", "FromLinen"),
    "NNXModule": ("bridges.nnx_adapter", "NNXModule"),
    "FromNNX": ("bridges.nnx_adapter", "FromNNX"),
    "ToNNX": ("bridges.nnx_adapter", "ToNNX"),
    "OptaxModule": ("bridges.optax_adapter", "OptaxModule"),
    "FromOptax": ("bridges.optax_adapter", "FromOptax"),
    "Mapping": ("bridges.param_mapping", "Mapping"),
    "Plan": ("bridges.param_mapping", "Plan"),
    "Template": ("bridges.param_mapping", "Template"),
    "conventions": ("bridges.param_mapping", "conventions"),
    "infer_mapping": ("bridges.infer", "infer_mapping"),
    "Function": ("bridges.infer", "Function"),
    "InferredMapping": ("bridges.infer", "InferredMapping"),
    "DifferentModelsError": ("bridges.infer", "DifferentModelsError"),
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'bridges' has no attribute {name!r}")
    module, attribute = _NAMES[name]
    loaded = importlib.import_module(module)
    value = loaded if attribute is None else getattr(loaded, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])


__all__ = [*sorted(_NAMES)]
