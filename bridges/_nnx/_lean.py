"""Lean: an NNX module that NNX and JAX flatten into its data and one thing more.

NNX flattens every attribute of a module, its own two among them (the trace it was made in, and which attributes are data),
at each call of a compiled function, and compares them with those of the call before. Here all that is static is one
attribute of the graph; what follows from the others, and data that is None, is left out. This is the one place that knows
how NNX flattens (flax 0.12).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import jax
from flax import nnx

_OWN = "_pytree__"  # What the names of NNX's own attributes begin with.
_NODES, _STATE, _REST = _OWN + "nodes", _OWN + "state", _OWN + "static"
_DATA, _STATIC = nnx.graphlib.DataElem, nnx.graphlib.StaticElem


@dataclasses.dataclass(frozen=True, slots=True)
class _Pairs:
    """Static attributes by name. Where a module has just those of its class, its static part is a tuple of their values."""

    items: tuple[tuple[str, Any], ...]


_Static = _Pairs | tuple[Any, ...]
_Parts = tuple[tuple[str, ...], list[Any], _Static]


class Lean(nnx.Module):
    """Base class of modules that say in `_pytree__nodes` which of their attributes are data.

    What is assigned under another name is data where NNX takes it for data, as in every module.
    """

    # Worked out once a class: NNX's own mapping of data is slow to look into.
    _is_data: ClassVar[dict[str, bool]]
    _data_names: ClassVar[tuple[str, ...]]
    _static_names: ClassVar[tuple[str, ...]]
    _blank: ClassVar[dict[str, None]]  # Data that is None where it was left out.

    def __init_subclass__(cls, **kwargs: Any) -> None:
        cls._pytree__nodes = {**cls._pytree__nodes, _NODES: False}  # As NNX notes it in every instance.
        super().__init_subclass__(**kwargs)
        cls._is_data = {name: data for name, data in cls._pytree__nodes.items() if not name.startswith(_OWN)}
        cls._data_names = tuple(sorted(name for name, data in cls._is_data.items() if data))
        cls._blank = {name: None for name in cls._data_names if getattr(cls, name, _OWN) is None}
        cls._static_names = tuple(sorted(name for name, data in cls._is_data.items() if not data))

    def _graph_node_flatten(self) -> tuple[list[tuple[str, Any]], type]:
        names, values, static = _parted(self)
        return [*zip(names, map(_DATA, values), strict=True), (_REST, _STATIC(static))], type(self)

    @staticmethod
    def _graph_node_create_empty(node_type: type) -> Any:
        return object.__new__(node_type)

    def _graph_node_clear(self) -> None:
        attributes = vars(self)
        state = attributes[_STATE]
        attributes.clear()
        attributes[_STATE] = state  # The module was made where it was made.

    def _graph_node_init(self, attributes: Iterable[tuple[Any, Any]]) -> None:
        data = dict(attributes)
        _fill(self, data.pop(_REST), data)

    def _pytree__flatten(self) -> tuple[list[Any], tuple[tuple[str, ...], _Static]]:
        names, values, static = _parted(self)
        return values, (names, static)

    def _pytree__flatten_with_paths(self) -> tuple[list[tuple[Any, Any]], tuple[tuple[str, ...], _Static]]:
        names, values, static = _parted(self)
        return list(zip(map(jax.tree_util.GetAttrKey, names), values, strict=True)), (names, static)

    @classmethod
    def _pytree__unflatten(cls, static: Any, node_attrs: Iterable[Any]) -> Any:
        names, rest = static
        made = object.__new__(cls)
        _fill(made, rest, dict(zip(names, node_attrs, strict=True)))
        return made


def _parted(module: Lean) -> _Parts:
    """Returns the names and values of a module's data, and everything else, each sorted by name."""
    cls, attributes = type(module), vars(module)
    if (
        attributes[_NODES] is not cls._pytree__nodes
        or len(attributes) != len(cls._is_data) + 2
        or attributes[_STATE].initializing
    ):
        return _with_names(module)
    names, values = cls._data_names, [attributes[name] for name in cls._data_names]
    if any([value is None for value in values]):
        names = tuple([name for name in names if attributes[name] is not None])
        values = [attributes[name] for name in names]
    return names, values, tuple([attributes[name] for name in cls._static_names])


def _with_names(module: Lean) -> _Parts:
    """Returns the same of a module that has attributes of its own, or is being initialised."""
    cls, attributes = type(module), vars(module)
    is_data, static = dict(attributes[_NODES]), []
    if is_data != dict(cls._pytree__nodes):  # An unpickled module has a mapping of its own that is equal.
        static.append((_NODES, attributes[_NODES]))
    rest = {name: attributes[name] for name in sorted(attributes) if name not in (_NODES, _STATE)}
    data = {name: value for name, value in rest.items() if is_data.get(name) and value is not None}
    static += [(name, value) for name, value in rest.items() if not is_data.get(name)]
    if attributes[_STATE].initializing:
        static.append((_STATE, True))
    if len(static) == len(cls._static_names) and tuple(dict(static)) == cls._static_names:
        return tuple(data), list(data.values()), tuple(dict(static).values())
    return tuple(data), list(data.values()), _Pairs(tuple(static))


def _fill(module: Lean, static: _Static, data: dict[str, Any]) -> None:
    attributes = vars(module)
    rest = dict(static.items if isinstance(static, _Pairs) else zip(type(module)._static_names, static, strict=True))
    initializing = rest.pop(_STATE, False)
    if _STATE not in attributes:
        attributes[_STATE] = nnx.pytreelib.PytreeState(initializing=initializing)
    attributes[_NODES] = type(module)._pytree__nodes
    attributes.update(type(module)._blank)
    attributes.update(rest)
    attributes.update(data)
