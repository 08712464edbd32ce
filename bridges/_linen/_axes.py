"""Axes: along which axes `nn.scan` and `nn.vmap` keep several copies of a module's variables.

Linen tells each box (`nn.meta.AxisMetadata`) which axis a lifted transformation adds to its value. Variables are put in
boxes that write this down: the answer is Linen's own, whatever the sizes. It takes a second abstract initialisation, made
only where a variable comes out with another shape than it was made with. A model that reads its variables past the boxes
(`get_variable`, `nn.SpectralNorm`) cannot run so: there the shapes decide, where they leave no doubt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.core import meta

from bridges._linen._call import Call
from bridges.core import _flat
from bridges.core._spec import Stack

_TRANSFORMS = "flax.linen.transforms"
_STACKING = ("Scan", "Vmap")  # what flax/linen/transforms.py puts before the name of a class that it lifts


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class _Box(meta.AxisMetadata[Any]):
    """A value with the axes that it gained, the innermost transformation's first; a box of the model's own stays inside."""

    value: Any
    axes: tuple[int, ...]

    def tree_flatten_with_keys(self) -> Any:
        return ((jax.tree_util.GetAttrKey("value"), self.value),), self.axes

    def tree_flatten(self) -> Any:
        return (self.value,), self.axes

    @classmethod
    def tree_unflatten(cls, axes: tuple[int, ...], children: Iterable[Any]) -> _Box:
        return cls(value=next(iter(children)), axes=axes)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> _Box:
        return dataclasses.replace(self, value=meta.replace_boxed(self.value, val))

    def add_axis(self, index: int, params: dict[Any, Any]) -> _Box:
        return dataclasses.replace(self, value=meta.add_axis(self.value, index, params), axes=(*self.axes, index))

    def remove_axis(self, index: int, params: dict[Any, Any]) -> _Box:
        return dataclasses.replace(self, value=meta.remove_axis(self.value, index, params), axes=self.axes[:-1])


def _stacks(cls: type) -> bool:
    return cls.__module__ == _TRANSFORMS and cls.__name__.startswith(_STACKING)


class Watch:
    """Watches modules make variables; its `shadow` is given every bound module before its methods run.

    Attributes:
      made: Path of a variable -> the shape that it was made with.
      lifted: Paths of modules of a lifted class -> how many times it stacks.
    """

    def __init__(self, boxed: bool = False):
        self.boxed = boxed
        self.made: dict[str, tuple[int, ...]] = {}
        self.lifted: dict[str, int] = {}
        self._outer: tuple[type, int] | None = None

    def shadow(self, module: nn.Module) -> None:
        """Shadows `param` and `variable` on a bound module, unless it has attributes of these names."""
        cls = type(module)
        count = sum(_stacks(base) for base in cls.__mro__)
        if cls.__module__ == _TRANSFORMS:  # its scope is not the one that the variables are made in: its clone's is
            if not (self._outer and issubclass(self._outer[0], cls)):
                self._outer = cls, count
        elif self._outer and issubclass(self._outer[0], cls):
            self.lifted[_flat.join(module.path)] = self._outer[1]
            self._outer = None
        for name, shadowed in (("param", self._param), ("variable", self._variable)):
            if name not in module.__dict__ and getattr(type(module), name) is getattr(nn.Module, name):
                object.__setattr__(module, name, shadowed(module, getattr(module, name)))

    def _param(self, module: nn.Module, param: Callable[..., Any]) -> Callable[..., Any]:
        def shadowed(name: str, init_fn: Any, *args: Any, **kwargs: Any) -> Any:
            return param(name, self._init(("params", *module.path, name), init_fn, kwargs), *args, **kwargs)

        return shadowed

    def _variable(self, module: nn.Module, variable: Callable[..., Any]) -> Callable[..., Any]:
        def shadowed(col: str, name: str, init_fn: Any = None, *args: Any, **kwargs: Any) -> Any:
            return variable(col, name, self._init((col, *module.path, name), init_fn, kwargs), *args, **kwargs)

        return shadowed

    def _init(self, path: tuple[str, ...], init_fn: Any, kwargs: Mapping[str, Any]) -> Any:
        if not callable(init_fn):
            return init_fn

        def made(*args: Any, **kwargs: Any) -> Any:
            value = init_fn(*args, **kwargs)
            for below, leaf in _flat.flatten(meta.unbox(value)).items():
                self.made["/".join(filter(None, (_flat.join(path), below)))] = tuple(np.shape(leaf))
            return _Box(value=value, axes=()) if box else value

        box = self.boxed and kwargs.get("unbox", True)
        return made

    def grown(self, entries: Mapping[str, Any]) -> bool:
        """Whether a variable came out with another shape than it was made with."""
        return any(path in self.made and tuple(entries[path].shape) != self.made[path] for path in entries)


def stacks_of(call: Call, rngs: Any, seen: Watch, entries: Mapping[str, Any]) -> dict[str, tuple[Stack, ...]]:
    """Returns the stacks of a model by module path.

    Args:
      call: The model's initialisation.
      rngs: As for `Call.abstract_init`.
      seen: What watched a first initialisation.
      entries: What that gave, by path.
    """
    if not seen.grown(entries):
        return {}
    try:
        gained = _boxed(call, rngs)
    except Exception:  # of any kind: the model's own code, over values that it does not expect
        gained = _by_shapes(seen.made, entries)
    return _grouped(gained, seen.lifted)


_Gained = dict[str, list[tuple[int, int]]]  # entry -> (axis, size), the outermost first


def _by_shapes(made: Mapping[str, tuple[int, ...]], entries: Mapping[str, Any]) -> _Gained:
    """Returns the one axis of each collection that explains all shapes; nothing where there are several, or deeper ones."""
    gained: _Gained = {path: [] for path in entries}
    for collection in {path.partition("/")[0] for path in entries}:
        grown = {
            path: (tuple(entries[path].shape), shape)
            for path, shape in made.items()
            if path.partition("/")[0] == collection and path in entries and len(entries[path].shape) != len(shape)
        }
        possible = [
            axis
            for axis in range(min((len(outer) for outer, _ in grown.values()), default=0))
            if all(outer[:axis] + outer[axis + 1 :] == inner for outer, inner in grown.values())
        ]
        if grown and len(possible) != 1:
            return {path: [] for path in entries}
        gained.update({path: [(possible[0], outer[possible[0]])] for path, (outer, _) in grown.items()})
    return gained


def _boxed(call: Call, rngs: Any) -> _Gained:
    """Returns the axes that Linen tells boxes."""
    watch = Watch(boxed=True)

    def record(next_method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        watch.shadow(context.module)
        return next_method(*args, **kwargs)

    with nn.intercept_methods(record):
        native = call.abstract_init(rngs)
    gained: _Gained = {}
    boxes = jax.tree_util.tree_flatten_with_path(native, is_leaf=lambda x: isinstance(x, _Box))[0]
    for keys, box in boxes:
        path = _flat.join(str(getattr(key, "key", getattr(key, "name", key))) for key in keys)
        leaves = jax.tree.leaves(box)
        shape = list(np.shape(leaves[0])) if len(leaves) == 1 else []
        axes = box.axes[::-1] if isinstance(box, _Box) and len(leaves) == 1 else ()
        gained[path] = [(axis, shape.pop(axis)) for axis in axes]
    return gained


def _grouped(gained: Mapping[str, list[tuple[int, int]]], lifted: Mapping[str, int]) -> dict[str, tuple[Stack, ...]]:
    """Returns the stacks by module: the lifted classes above an entry, else the highest modules all of which is stacked."""
    plain = {above for path, axes in gained.items() if not axes for above in _above(path)}
    owners: dict[str, dict[int, tuple[int, dict[str, int]]]] = {}
    for path, axes in gained.items():
        collection = path.partition("/")[0]
        modules = list(_above(path))[::-1]  # from the root
        named = [m for m in modules for _ in range(lifted.get(m, 0))]
        if len(named) != len(axes):
            free = next((m for m in modules if m and m not in plain), modules[-1])
            named = [free] * len(axes)
        for module in dict.fromkeys(named):
            for n, (axis, size) in enumerate(a for a, m in zip(axes, named, strict=True) if m == module):
                found = owners.setdefault(module, {}).setdefault(n, (size, {}))
                found[1][collection] = axis
    return {m: tuple(Stack(size, axes) for _, (size, axes) in sorted(found.items())) for m, found in owners.items()}


def _above(path: str) -> Iterable[str]:
    """Yields the modules that an entry is in, the innermost first."""
    module = path.rpartition("/")[0].partition("/")[2]
    while module:
        yield module
        module = module.rpartition("/")[0]
    yield ""
