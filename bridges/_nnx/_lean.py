"""Lean: an NNX object without NNX's own attributes among the nodes of its graph.

NNX keeps two attributes in every object (its trace, and which attributes are data) and flattens them with the rest at
every call of a compiled function. They follow from the others, and leaving them out makes a call of a small wrapped layer
about as fast as one of NNX's own. This is the one place that knows how NNX flattens a graph (flax 0.12); trees, as JAX
flattens them, are as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flax import nnx

OWN = "_pytree__"  # What the names of NNX's own attributes begin with.
_DATA, _STATIC = nnx.graphlib.DataElem, nnx.graphlib.StaticElem


class Lean(nnx.Pytree):
    """Base class of objects whose graph nodes are their own attributes only."""

    _lean_data = frozenset[str]()  # Attributes that are data whatever their value, None included.

    def _graph_node_flatten(self) -> tuple[list[tuple[str, Any]], type]:
        data = self._pytree__nodes
        attributes = [
            (name, _DATA(value) if data[name] else _STATIC(value))
            for name, value in vars(self).items()
            if not name.startswith(OWN)
        ]
        return sorted(attributes, key=_name), type(self)

    @staticmethod
    def _graph_node_create_empty(node_type: type) -> Any:
        node: Any = object.__new__(node_type)
        vars(node).update(vars(Lean()))
        return node

    def _graph_node_clear(self) -> None:
        attributes = vars(self)
        for name in [name for name in attributes if not name.startswith(OWN)]:
            del attributes[name]

    def _graph_node_init(self, attributes: Iterable[tuple[Any, Any]]) -> None:
        given, data = dict(attributes), self._pytree__nodes
        new = {k: k in self._lean_data or nnx.is_data(v) for k, v in given.items() if k not in data}
        if new:
            vars(self)[OWN + "nodes"] = data.update(new)
        vars(self).update(given)


def _name(attribute: tuple[str, Any]) -> str:
    return attribute[0]
