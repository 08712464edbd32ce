"""Lean: an NNX module that NNX and JAX flatten into its data and one thing more.

NNX flattens every attribute of a module, its own two among them (the trace it was made in, and which attributes are data),
at each call of a compiled function, and compares them with those of the call before. Here all that is static is one
attribute of the graph; what follows from the others, and data that is None, is left out. This is the one place that knows
how NNX flattens (flax 0.12).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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

    def _graph_node_flatten(self) -> tuple[list[tuple[str, Any]], type]:
        data, static = _parted(self)
        return [*((name, _DATA(value)) for name, value in data), (_REST, _STATIC(static))], type(self)

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
        data, static = _parted(self)
        return [value for _, value in data], (tuple(name for name, _ in data), static)

    def _pytree__flatten_with_paths(self) -> tuple[list[tuple[Any, Any]], tuple[tuple[str, ...], _Static]]:
        data, static = _parted(self)
        keyed = [(jax.tree_util.GetAttrKey(name), value) for name, value in data]
        return keyed, (tuple(name for name, _ in data), static)

    @classmethod
    def _pytree__unflatten(cls, static: Any, node_attrs: Iterable[Any]) -> Any:
        names, rest = static
        made = object.__new__(cls)
        _fill(made, rest, dict(zip(names, node_attrs, strict=True)))
        return made


def _parted(module: Lean) -> tuple[list[tuple[str, Any]], _Static]:
    """Returns the data and everything else of a module, each sorted by name."""
    attributes = vars(module)
    nodes, initializing = attributes[_NODES], attributes[_STATE].initializing
    data, static = [], []
    for item in sorted(attributes.items(), key=_name):
        name, value = item
        if nodes.get(name):
            if value is not None and name != _STATE:
                data.append(item)
        elif name != _NODES or _own(nodes, type(module)):
            static.append(item)
    if initializing:
        static.append((_STATE, True))
    return data, tuple(static)


def _own(nodes: Any, cls: type[Lean]) -> bool:
    """Whether a module knows of other data than its class says; an unpickled one has a mapping of its own that is equal."""
    return nodes is not cls._pytree__nodes and nodes != cls._pytree__nodes


def _name(item: tuple[str, Any]) -> str:
    return item[0]


def _fill(module: Lean, static: _Static, data: dict[str, Any]) -> None:
    attributes, rest = vars(module), dict(static)
    initializing = rest.pop(_STATE, False)
    if _STATE not in attributes:
        attributes[_STATE] = nnx.pytreelib.PytreeState(initializing=initializing)
    attributes[_NODES] = type(module)._pytree__nodes
    attributes.update(rest)
    attributes.update(data)
