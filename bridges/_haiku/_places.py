"""Where the entries of a hosted part stand among Haiku's parameters and state, and how they are read and written there.

Haiku has `{module: {leaf: array}}`, once for parameters and once for state. An entry is a parameter where its kind is
`Param`, and state otherwise. Below the name of the Haiku module stand the entry's own segments, the last one as the leaf:

    params/Dense_0/kernel        params['net/Dense_0']['kernel']
    batch_stats/BatchNorm_0/mean state['net/batch_stats/BatchNorm_0']['mean']

`params` is left out, and `state` where the part is Haiku's own, because Haiku's two dictionaries say it already. A
trainable entry of another collection (a Variable type of a user's own, in NNX) is marked: `params['net/~LoRA']['a']`.

Invariant: no two entries have one place, and `path_of(place_of(path))` is the path. Segments stay percent-escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import haiku as hk

from bridges._haiku._tree import PARAMS, STATE
from bridges.core._flat import SEPARATOR

Place = tuple[str, str, str]  # collection, module below the host's own, leaf
MARK = "~"


def place_of(path: str, param: bool, framework: str | None) -> Place:
    """Returns the place of an entry.

    Args:
      path: Its path below the part, `<collection>/<native path>`; that of an entry of a `bridges.Module` has no collection.
      param: Whether it is a parameter.
      framework: The part's, None for a `bridges.Module`.

    >>> place_of('params/Dense_0/kernel', True, 'flax.linen'), place_of('cache/index', False, 'flax.linen')
    (('params', 'Dense_0', 'kernel'), ('state', 'cache', 'index'))
    """
    collection = PARAMS if param else STATE
    first, _, rest = path.partition(SEPARATOR)
    if framework is not None and rest:
        if first == collection and (param or framework == "haiku"):
            path = MARK + rest if framework == "flax.nnx" and rest.startswith(MARK) else rest
        elif param:
            path = MARK + path
    module, _, leaf = path.rpartition(SEPARATOR)
    return collection, module, leaf


def path_of(place: Place, framework: str | None) -> str:
    """Returns the path of the entry at a place; the inverse of `place_of`."""
    collection, module, leaf = place
    path = f"{module}{SEPARATOR}{leaf}" if module else leaf
    if framework is None or (collection == STATE and framework != "haiku"):
        return path
    if framework == "flax.nnx" and path.startswith(MARK):
        return f"{PARAMS}{SEPARATOR}{path[1:]}" if path.startswith(MARK * 2) else path[1:]
    return f"{collection}{SEPARATOR}{path}"


class Bundle(hk.Module):
    """The entries under one Haiku module name, of which any characters are allowed.

    A Haiku module, so that Haiku's own functions read and write them, with whatever is registered around those.

    Args:
      owner: The module below whose name it stands.
      below: The rest of the name; empty for the owner's own.
    """

    AUTO_REPR = False

    def __init__(self, owner: hk.Module, below: str):
        super().__init__(
            name=hk.experimental.force_name(owner.module_name)
        )  # Names that Haiku would refuse come after.
        if below:
            self.module_name = f"{owner.module_name}{SEPARATOR}{below}"
            self.name = below.rpartition(SEPARATOR)[2]

    def __repr__(self) -> str:
        return f"Bundle({self.module_name!r})"

    def __call__(self, params: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Returns the entries of these names as Haiku has them; what it does not have is made of the values given."""
        return {
            PARAMS: {n: hk.get_parameter(n, v.shape, v.dtype, init=_always(v)) for n, v in params.items()},
            STATE: {n: hk.get_state(n, v.shape, v.dtype, init=_always(v)) for n, v in state.items()},
        }

    def write(self, state: Mapping[str, Any]) -> None:
        """Sets state entries."""
        for name, value in state.items():
            hk.set_state(name, value)


def _always(value: Any) -> Any:
    return lambda shape, dtype: value


def found(owner: hk.Module) -> dict[Place, Any]:
    """Returns all entries below the name of a module in the running Haiku function, before any getter."""
    entries: dict[Place, Any] = {}
    prefix = owner.module_name + SEPARATOR
    for collection, given in ((PARAMS, owner.params_dict()), (STATE, owner.state_dict())):
        for name, value in given.items():
            if name.startswith(prefix):
                module, _, leaf = name[len(prefix) :].rpartition(SEPARATOR)
                entries[collection, module, leaf] = value
    return entries


def taken(owner: hk.Module, entries: Mapping[Place, Any]) -> dict[Place, Any]:
    """Returns the entries at these places as Haiku gives them; those that it does not have are made, of these values."""
    result: dict[Place, Any] = {}
    for module, (params, state) in _bundles(entries).items():
        got = Bundle(owner, module)(params, state)
        result.update({(col, module, leaf): value for col, part in got.items() for leaf, value in part.items()})
    return result


def written(owner: hk.Module, entries: Mapping[Place, Any]) -> None:
    """Sets the state entries at these places."""
    for module, (_, state) in _bundles(entries).items():
        Bundle(owner, module).write(state)


def _bundles(entries: Mapping[Place, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    bundles: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for (collection, module, leaf), value in entries.items():
        bundles.setdefault(module, ({}, {}))[collection == STATE][leaf] = value
    return bundles
