"""Lean: an NNX module that NNX and JAX flatten into its data and one thing more.

NNX flattens every attribute of a module, its own two among them (the trace it was made in, and which attributes are data),
at each call of a compiled function, and compares them with those of the call before. Here all that is static is one
attribute of the graph; what follows from the others, and data that is None, is left out. This is the one place that knows
how NNX flattens (flax 0.12).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import jax
from flax import nnx

_OWN = "_pytree__"  # What the names of NNX's own attributes begin with.
_NODES, _STATE, _REST = _OWN + "nodes", _OWN + "state", _OWN + "static"
_DATA, _STATIC = nnx.graphlib.DataElem, nnx.graphlib.StaticElem

_Static = tuple[tuple[str, Any], ...]


class Lean(nnx.Module):
    """Base class of modules that say in `_pytree__nodes` which of their attributes are data.

    What is assigned under another name is data where NNX takes it for data, as in every module.
    """

    _is_data: ClassVar[dict[str, bool]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._is_data = dict(cls._pytree__nodes)  # NNX's own mapping is slow to look into.

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
        _fill(self, data.pop(_REST, ()), data)

    def _pytree__flatten(self) -> tuple[list[Any], tuple[tuple[str, ...], _Static]]:
        names, values, static = _parted(self)
        return values, (tuple(names), static)

    def _pytree__flatten_with_paths(self) -> tuple[list[tuple[Any, Any]], tuple[tuple[str, ...], _Static]]:
        names, values, static = _parted(self)
        keys = map(jax.tree_util.GetAttrKey, names)
        return list(zip(keys, values, strict=True)), (tuple(names), static)

    @classmethod
    def _pytree__unflatten(cls, static: Any, node_attrs: Iterable[Any]) -> Any:
        names, rest = static
        made = object.__new__(cls)
        _fill(made, rest, dict(zip(names, node_attrs, strict=True)))
        return made


def _parted(module: Lean) -> tuple[list[str], list[Any], _Static]:
    """Returns the names and values of a module's data, and everything else, each sorted by name."""
    cls, attributes = type(module), vars(module)
    nodes, is_data = attributes[_NODES], cls._is_data
    names, values, static = [], [], []
    # An unpickled module has a mapping of its own that is equal.
    if nodes is not cls._pytree__nodes and (own := dict(nodes)) != is_data:
        is_data = own
        static.append((_NODES, nodes))
    for name in sorted(attributes):
        if name in (_NODES, _STATE):
            continue
        value = attributes[name]
        if not is_data.get(name):
            static.append((name, value))
        elif value is not None:
            names.append(name)
            values.append(value)
    if attributes[_STATE].initializing:
        static.append((_STATE, True))
    return names, values, tuple(static)


def _fill(module: Lean, static: _Static, data: dict[str, Any]) -> None:
    attributes, rest = vars(module), dict(static)
    initializing = rest.pop(_STATE, False)
    if _STATE not in attributes:
        attributes[_STATE] = nnx.pytreelib.PytreeState(initializing=initializing)
    attributes[_NODES] = type(module)._pytree__nodes
    attributes.update(rest)
    attributes.update(data)
