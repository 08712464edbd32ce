"""Mould: the nodes of an NNX module without its leaves, from which modules of that structure are made quickly.

`nnx.merge` finds its way through the whole graph at every call. What differs between two modules that it makes from one
graph is a leaf, a node, or the note in which trace a node was made; all else they share. So a mould is read off two of them,
and makes others by filling in these alone.

It is for modules whose leaves are attributes of their nodes. A leaf inside of a list or dictionary is none, and a call may
put one into an empty one.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from bridges._nnx._leaves import holds_data

_STATE = "_pytree__state"  # Where a node of flax 0.12 keeps the trace that it was made in.


@dataclasses.dataclass(frozen=True, slots=True)
class _Node:
    """One node: its class, its attributes with those that are shared filled in, and the places of the others."""

    cls: type
    names: list[str]
    attributes: Mapping[str, Any]
    leaves: tuple[tuple[str, int], ...]
    nodes: tuple[tuple[str, int], ...]
    state: Any


class Mould:
    """Makes modules of one structure.

    Args:
      nodes: What `Mould.of` has found.
    """

    __slots__ = ("_nodes",)

    def __init__(self, nodes: Sequence[_Node]):
        self._nodes = tuple(nodes)

    @classmethod
    def of(cls, build: Callable[[], tuple[Any, Sequence[Any]]]) -> Mould | None:
        """Returns the mould of a structure, None if it has leaves that are no attributes.

        Args:
          build: Makes a module and its leaves with `nnx.merge`, of new leaves at every call.
        """
        (module, leaves), (other, others) = build(), build()
        at, at_other = ({id(leaf): i for i, leaf in enumerate(given)} for given in (leaves, others))
        if len(at) < len(leaves) or len(at_other) < len(leaves):
            return None  # One object is two leaves.
        pairs, index, seen = [(module, other)], {id(module): 0}, set()
        nodes: list[_Node] = []
        for one, two in pairs:  # It grows on the way.
            found = _Found()
            for name, value in vars(one).items():
                twin = vars(two).get(name)
                if isinstance(value, (list, dict)) and (not value or holds_data(value)):
                    return None
                if id(value) in at:
                    if at[id(value)] != at_other.get(id(twin)):
                        return None
                    found.leaves.append((name, at[id(value)]))
                    seen.add(id(value))
                elif isinstance(value, nnx.Pytree):
                    if id(value) not in index:
                        index[id(value)] = len(pairs)
                        pairs.append((value, twin))
                    found.nodes.append((name, index[id(value)]))
                elif name != _STATE and value is not twin:
                    return None
            if type(one) is not type(two) or _STATE not in vars(one):
                return None
            nodes.append(found.node(one))
        return cls(nodes) if len(seen) == len(leaves) else None

    def cast(self, leaves: Sequence[Any]) -> list[Cast]:
        """Returns the nodes of a new module, the module itself first.

        It belongs to the trace that runs now.

        Args:
          leaves: Its leaves, in the order of `nnx.flatten`.
        """
        made: list[Any] = [object.__new__(node.cls) for node in self._nodes]
        cast = []
        for new, node in zip(made, self._nodes, strict=True):
            attributes = vars(new)
            attributes.update(node.attributes)
            for name, i in node.leaves:
                attributes[name] = leaves[i]
            for name, i in node.nodes:
                attributes[name] = made[i]
            attributes[_STATE] = node.state.unflatten(())
            cast.append(Cast(new, node.names, [*attributes.values()]))
        return cast


class Cast(NamedTuple):
    """A node as it was made.

    Attributes:
      node: The node.
      names: The names of its attributes.
      values: Their values.
    """

    node: Any
    names: list[str]
    values: list[Any]

    @property
    def unchanged(self) -> bool:
        """Whether its attributes are those that it was made with."""
        now = vars(self.node)
        return list(now) == self.names and all(map(operator.is_, now.values(), self.values))


class _Found:
    """What is being found of one node."""

    def __init__(self) -> None:
        self.leaves: list[tuple[str, int]] = []
        self.nodes: list[tuple[str, int]] = []

    def node(self, like: Any) -> _Node:
        attributes = dict(vars(like))
        state = jax.tree.structure(attributes[_STATE])
        attributes.update({name: None for name, _ in (*self.leaves, *self.nodes, (_STATE, 0))})
        return _Node(type(like), list(attributes), attributes, tuple(self.leaves), tuple(self.nodes), state)
