"""What `hk.EMAParamsTree` and `hk.SNParamsTree` keep for each parameter, as a tree like the parameters.

Both name a submodule after each parameter: the path with `/` as `__`, and `~` as `_tilde_` (EMA) or `_tilde` (SN)
(dm-haiku 0.0.17, moving_averages.py and spectral_norm.py). That cannot be read back by itself, `a/b` and `a__b` become
one; beside the parameters it can, unless two of them share a name. As a tree like `params`, averages go to another
framework by the plan of the parameters.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

from bridges._haiku._tree import Bundle
from bridges.core import _flat
from bridges.core._errors import CollisionError, StructureError, hint, listing

_SPECTRAL = ("u0", "sigma")


def read_params_tree(
    state: Bundle, params: Bundle, entry: str = "average", name: str = "ema_params_tree"
) -> dict[str, dict[str, Any]]:
    """Returns one entry that the tree keeps for each parameter, as `{module: {leaf: array}}`.

    Args:
      state: Haiku's state.
      params: The parameters that the tree was called with; their values are not read.
      entry: `'average'`, `'hidden'` or `'counter'` of an `hk.EMAParamsTree`; `'u0'` or `'sigma'` of an `hk.SNParamsTree`.
      name: The module path of the tree.

    Returns:
      A tree like `params`, without the parameters that the tree ignores (`ignore_regex`).

    Raises:
      CollisionError: Two parameters have one name in the state, so that the second bears a number there.
      StructureError: The state has no such tree, or keeps the entry for parameters that `params` lacks.

    >>> read_params_tree({'ema_params_tree/a___tilde___b__w': {'average': 2.0}}, {'a/~/b': {'w': 1.0}})
    {'a/~/b': {'w': 2.0}}
    """
    kept = {m: entries[entry] for m, entries in state.items() if _flat.under(m, name) and entry in entries}
    if not kept:
        raise StructureError(f"The state has no {entry!r} below {name!r}.{hint(name, state)}")
    found: dict[str, dict[str, Any]] = {}
    places = _places(params, entry, name)
    for module, (path, leaf) in places.items():
        if module in kept:
            found.setdefault(path, {})[leaf] = kept[module]
    rest = [module for module in kept if module not in places]
    if rest:
        raise StructureError(f"These entries of {name!r} are of no parameter that was given:\n" + listing(rest))
    return found


def write_params_tree(tree: Bundle, entry: str = "average", name: str = "ema_params_tree") -> dict[str, dict[str, Any]]:
    """Returns Haiku state that holds a tree like the parameters: the inverse of `read_params_tree`.

    >>> write_params_tree({'a/~/b': {'w': 2.0}}, 'u0', 'sn_params_tree')
    {'sn_params_tree/a___tilde__b__w': {'u0': 2.0}}
    """
    return {module: {entry: tree[path][leaf]} for module, (path, leaf) in _places(tree, entry, name).items()}


def _places(params: Mapping[str, Mapping[str, Any]], entry: str, name: str) -> dict[str, tuple[str, str]]:
    """Returns the module of each parameter in the tree -> the parameter's own module and leaf."""
    tilde = "_tilde" if entry in _SPECTRAL else "_tilde_"
    places: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for path, leaves in params.items():
        for leaf in leaves:
            places[f"{name}/" + f"{path}/{leaf}".replace("/", "__").replace("~", tilde)].append((path, leaf))
    twice = [f"{module}: {' and '.join(map(str, found))}" for module, found in places.items() if len(found) > 1]
    if twice:
        raise CollisionError("Parameters that Haiku gives one name here:\n" + listing(twice) + "\nRename a module.")
    return {module: found[0] for module, found in places.items()}
