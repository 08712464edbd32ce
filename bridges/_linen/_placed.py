"""Where the entries of a part lie in Linen's variables: `{collection: {native: {path: array}}}` of one scope, and back.

A part of another framework keeps its own collections (Haiku's `params` and `state`, the names that NNX has for its
Variable types); the entries of a core part lie in the collection of their kind. What a call sows lies in tuples, as in
Linen itself.

Invariant: `entry_path(placed(path, kind))` is the path, whatever the names: a layer may be called as anything in Linen is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.core import meta

from bridges._host._host import OUTSIDE, Host
from bridges._linen._variables import entry_of, is_leaf, leaf_of
from bridges.core import _flat
from bridges.core._errors import CollisionError
from bridges.core._kind import BatchStat, Cache, Intermediate, Kind, Param, RngState, Variable, kind_type
from bridges.core._state import State

_COLLECTIONS: dict[type[Variable], str] = {
    Param: "params",
    BatchStat: "batch_stats",
    Cache: "cache",
    Intermediate: "intermediates",
    RngState: "rng_state",
    Variable: "variables",
}
_KINDS: dict[str, type[Variable]] = {name: kind for kind, name in _COLLECTIONS.items()}
_HAIKU = ("params", "state")

Place = tuple[str, tuple[str, ...]]  # collection, names below the scope


def collection_of(kind: Kind) -> str:
    """Returns the collection of a kind: a kind of the user's own has one of its name.

    >>> class Calls(Variable): ...
    >>> collection_of(Param), collection_of(Calls), collection_of(Variable(collection='losses'))
    ('params', 'Calls', 'losses')
    """
    named = None if isinstance(kind, type) else kind.metadata.get("collection")
    return str(named) if named is not None else _COLLECTIONS.get(kind_type(kind), kind_type(kind).__name__)


def placed(host: Host, path: str, kind: Kind) -> Place:
    """Returns where an entry of the running context lies."""
    outer = _flat.split(host.outer(path))
    if host.core:
        place = collection_of(kind), outer
    elif outer[0] == OUTSIDE or (host.framework == "haiku" and outer[0] not in _HAIKU):
        place = collection_of(kind), (OUTSIDE, *_flat.split(path))  # Of a core module that the part's code uses.
    else:
        place = outer[0], outer[1:]
    collection, names = place
    # Linen takes {'params': {'params': …}} for a mistake (flax 0.12 core/scope.py).
    return (collection, ("params%", *names[1:])) if collection == names[0] == "params" else place


def entry_path(host: Host, place: Place) -> str:
    """Returns the path in the running context of an entry; the inverse of `placed`."""
    collection, names = place
    if collection == "params" and names[0] == "params%":
        names = ("params", *names[1:])
    if names[0] == OUTSIDE:
        return _flat.join(names[1:])
    return _flat.join(names) if host.core else host.inner(_flat.join((collection, *names)))


class Held:
    """The entries of a part that one scope holds.

    Args:
      host: The part.
      variables: The scope's variables.

    Attributes:
      state: Path in the running context -> array, with the kinds that the collections say.
      places: Path -> where it lies.

    Raises:
      CollisionError: Two collections hold entries of one path.
    """

    def __init__(self, host: Host, variables: Mapping[str, Any]):
        self.host = host
        self.places: dict[str, Place] = {}
        self._boxes: dict[str, Any] = {}
        entries, kinds = {}, {}
        for native, leaf in _flat.flatten(dict(variables), _is_leaf).items():
            collection, *names = _flat.split(native)
            place = collection, tuple(names)
            if isinstance(leaf, tuple) or collection == "intermediates" or not names or place in host.recorded:
                continue  # Recorded by an earlier call.
            path = entry_path(host, place)
            if path in self.places:
                raise CollisionError(
                    f"{shown(place)!r} and {shown(self.places[path])!r} are one entry of {host!r}, which it keeps in one"
                    " collection. Remove one of the two."
                )
            value, metadata = entry_of(leaf)
            entries[path], self.places[path] = value, place
            if metadata:
                self._boxes[path] = leaf
            kind = known_kind(host, collection, metadata)
            if kind is not None:
                kinds[path] = kind
        self.state = State(entries, kinds)

    def leaf(self, path: str, value: Any, kind: Kind | None) -> Any:
        """Returns what Linen is given for an entry: in the box that it came in, or that its kind says."""
        box = self._boxes.get(path)
        if box is not None:  # An object without arrays stays what it is.
            return meta.replace_boxed(box, value) if jax.tree.leaves(box) else box
        return value if path in self.places or kind is None else _boxed(value, kind)


def _is_leaf(value: Any) -> bool:
    return isinstance(value, tuple) or is_leaf(value)


def shown(place: Place) -> str:
    """Returns the path of an entry from the collection on, for errors."""
    return _flat.join((place[0], *place[1]))


def known_kind(host: Host, collection: str, metadata: Mapping[str, Any]) -> Kind | None:
    """Returns the kind of an entry as far as its collection and box tell it; None: whoever uses it will say."""
    base = _KINDS.get(collection)
    if not host.core:
        return None  # Its wrapper knows.
    if base is None:
        return (
            Variable(collection=collection, **metadata) if metadata else None
        )  # A kind of the user's own says itself.
    return base(**metadata) if metadata else base


def _boxed(value: Any, kind: Kind) -> Any:
    if isinstance(kind, type):
        return value
    metadata = kind.metadata
    if "box" in metadata or "node" in metadata:
        return leaf_of(value, kind)
    noted = {name: getattr(v, "value", v) for name, v in metadata.items()}  # Unhashable ones are held by NNX's adapter.
    sharding = noted.get("out_sharding")
    if sharding is None:
        return value
    sharding = getattr(sharding, "spec", sharding)
    names = tuple(sharding) if not isinstance(sharding, str) else (sharding,)
    box = noted.get("linen_meta_type", nn.Partitioned)
    if box is nn.LogicallyPartitioned:
        return box(value, names, mesh=noted.get("mesh"), rules=noted.get("sharding_rules"))
    return box(value, names, mesh=noted.get("mesh"))


# Writing -------------------------------------------------------------------------------------------------------------


def recorded(places: Mapping[Place, Any]) -> dict[Place, Any]:
    """Returns what a call has recorded as Linen holds it: what was sown under one name is a tuple, all else as it is."""
    found: dict[Place, Any] = {}
    sown: dict[Place, dict[int, Any]] = {}
    for (collection, names), value in places.items():
        if len(names) > 1 and names[-1].isdigit():
            sown.setdefault((collection, names[:-1]), {})[int(names[-1])] = value
        else:
            found[collection, names] = value
    return found | {place: tuple(values[i] for i in sorted(values)) for place, values in sown.items()}


def at(variables: Mapping[str, Any], place: Place) -> Any:
    """Returns what lies at a place, None if nothing does."""
    found: Any = variables
    for name in (place[0], *place[1]):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def nested(places: Mapping[Place, Any]) -> dict[str, dict[str, Any]]:
    """Returns `{collection: {native: {path: leaf}}}`."""
    return _flat.nest({_flat.join((collection, *names)): leaf for (collection, names), leaf in places.items()})
