"""The structure of a Haiku part's variables, found with nothing allocated, no seed and no parameter initialiser."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import haiku as hk
import jax
import numpy as np

from bridges._haiku._frame import Filler, Skeleton, Thunk, where
from bridges._haiku._lift import Lift
from bridges._haiku._part import Args, Part, arrays_abstract
from bridges._haiku._places import Bundle
from bridges._haiku._tree import PARAMS, STATE, Native
from bridges.core._errors import BridgeError
from bridges.core._spec import Layer, Stack, abstract


@dataclasses.dataclass(frozen=True)
class Abstract:
    """What a call of a part makes.

    Attributes:
      native: `(params, state)` with `jax.ShapeDtypeStruct` leaves.
      layers: Module path -> layer.
      stacks: Module path -> the stacks of this module.
      called: Module paths in the order of first calls.
    """

    native: Native
    layers: Mapping[str, Layer]
    stacks: Mapping[str, tuple[Stack, ...]]
    called: tuple[str, ...]


def abstract_init(part: Part, method: str | None, args: Args) -> Abstract:
    """Returns the structure that `part.init` would make; arrays among the arguments may be `jax.ShapeDtypeStruct`.

    Whatever the code itself raises for these arguments, it raises here.
    """
    shapes, fill = arrays_abstract(args)
    recorder = _Recorder()

    def made(key: Any, arrays: list[Any]) -> Native:
        if part.has_init(method):
            return part.init(key, method, fill(arrays), recorder)
        filler = Filler(({}, {}), _unexpected, abstract=True)
        part.apply(({}, {}), lambda: key, method, fill(arrays), filler)
        return _filled(filler.params), _filled(filler.created)

    key = jax.eval_shape(lambda: jax.random.key(0))
    return Abstract(jax.eval_shape(made, key, shapes), recorder.layers(), recorder.stacks, recorder.called())


def _unexpected(*place: Any) -> Exception:
    return BridgeError(f"A variable was missing while variables were made: {place}.")


def _filled(made: Mapping[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    bundle: dict[str, dict[str, Any]] = {}
    for (module, leaf), value in made.items():
        bundle.setdefault(module, {})[leaf] = value
    return bundle


class _Recorder(Skeleton):
    """Beside making the skeleton, remembers each module that is constructed, with its constructor's arguments."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[hk.Module, dict[str, Any]]] = {}
        self._called: dict[str, None] = {}
        self._prefixes: list[str] = []
        self._lifts: list[Lift] = []
        self.stacks: dict[str, tuple[Stack, ...]] = {}

    def hooked(self, thunk: Thunk) -> Any:
        with hk.custom_creator(self._new_state, params=False, state=True):
            return super().hooked(thunk)

    def _new_param(self, next_creator: Any, shape: Any, dtype: Any, init: Any, context: hk.GetterContext) -> Any:
        if self._lifts and hk.running_init():
            self._lifts[-1].asked((PARAMS, *where(context)), shape)
        return super()._new_param(next_creator, shape, dtype, init, context)

    def _new_state(self, next_creator: Any, shape: Any, dtype: Any, init: Any, context: hk.GetterContext) -> Any:
        value = next_creator(shape, dtype, init)
        if self._lifts and hk.running_init() and hasattr(value, "shape"):
            self._lifts[-1].asked((STATE, *where(context)), value.shape)
        return value

    def _method(self, next_fun: Any, args: Any, kwargs: Any, context: hk.MethodContext) -> Any:
        if context.method_name == "__init__":
            out = next_fun(*args, **kwargs)
            if hk.running_init():
                bound = inspect.signature(type(context.module)).bind(*args, **kwargs)
                bound.apply_defaults()
                self._made[self._path(context.module)] = (context.module, dict(bound.arguments))
            return out
        self._called.setdefault(self._path(context.module))
        if context.method_name != "__call__" or type(context.module).__name__ != "LiftingModule":
            return super()._method(next_fun, args, kwargs, context)
        prefix = getattr(context.module, "prefix_name", "")
        self._prefixes.append(prefix)
        self._lifts.append(Lift())
        try:
            out = next_fun(*args, **kwargs)
        finally:
            self._prefixes.pop()
            lift = self._lifts.pop()
        if hk.running_init():
            outer = "/".join(p for p in self._prefixes if p)
            transparent = prefix != context.module.module_name
            for module, stacks in lift.stacks(out, prefix, transparent).items():
                self.stacks["/".join(p for p in (outer, module) if p)] = stacks
            if self._lifts:
                self._lifts[-1].lifted(out, prefix)
        return out

    def _path(self, module: hk.Module) -> str:
        return "/".join([p for p in self._prefixes if p] + [module.module_name])

    def called(self) -> tuple[str, ...]:
        """Returns the modules in the order in which a method of theirs is first called."""
        return tuple(path for path in self._called if path in self._made)

    def layers(self) -> dict[str, Layer]:
        layers = {}
        for path, (module, arguments) in self._made.items():
            cls = type(module)
            if isinstance(module, Bundle):  # Entries of a guest: which layer of its framework has them is not known.
                continue
            if not cls.__module__.startswith("haiku.") or cls.__name__ not in ("NameScopeModule", "LiftingModule"):
                layers[path] = Layer.of(cls, (hk.Module,), "haiku", _hyperparameters(module, arguments))
        return layers


_ABSENT = object()


def _hyperparameters(module: hk.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the constructor's arguments by name, each as the instance's attribute of that name says where there is one."""
    found = {}
    attributes = vars(module)
    for name, argument in arguments.items():
        if name in ("name", "args", "kwargs") or name.endswith("_init"):  # No initialiser changes what variables mean.
            continue
        value = _plain(attributes.get(name, _ABSENT))
        value = _plain(argument) if value is _ABSENT else value
        if value is not _ABSENT:
            found[name] = value
    return found


def _plain(value: Any) -> Any:
    """Returns the value if it is plain data, an array as its shape, a function as its full name; else `_ABSENT`."""
    if value is None or isinstance(value, (bool, int, float, complex, str, slice)):
        return value
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return value.item() if isinstance(value, np.generic) else abstract(value)
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return _ABSENT if any(item is _ABSENT for item in items) else tuple(items)
    if isinstance(value, (np.dtype, type)):
        with contextlib.suppress(TypeError, ValueError):  # ValueError: a class with an attribute `dtype`
            return str(np.dtype(value))
        return _ABSENT
    if callable(value) and hasattr(value, "__qualname__") and hasattr(value, "__module__"):
        return f"{value.__module__}.{value.__qualname__}"
    return _ABSENT
