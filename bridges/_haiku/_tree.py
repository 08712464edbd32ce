"""Haiku's two-level dictionaries <-> `State`.

Haiku stores `{module path: {leaf name: array}}`, once for parameters and once for state. The flat path is the
collection (`params` or `state`), the module path split at its slashes, and the leaf name with any slash of its own
escaped. The last segment is always the leaf, so the pair (module, leaf) can be read back from the path, also where
Haiku's own habit of joining the two with a slash is ambiguous: module `b` with a leaf `c/w` is `params/b/c%2Fw`, module
`b/c` with a leaf `w` is `params/b/c/w`.

A state leaf may be any pytree (`hk.set_state('carry', (a, b))`); its leaves get further segments. Such paths can only
be read back with a `like`, as can modules with no leaf at all.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from bridges.core import _flat
from bridges.core._errors import CollisionError, StructureError, describe, listing
from bridges.core._kind import BatchStat, Kind, Param, RngState
from bridges.core._spec import Spec
from bridges.core._state import State

PARAMS, STATE = "params", "state"
Bundle = Mapping[str, Mapping[str, Any]]
Native = tuple[Bundle, Bundle]


def flatten(params: Bundle, state: Bundle | None = None) -> State:
    """Returns the flat state of Haiku's parameters and state.

    Args:
      params: `{module: {leaf: array}}`: plain dictionaries, `FlatMapping` or any other mapping, as `init` or a pickle
        gave them. Arrays may be NumPy, JAX, tracers or `jax.ShapeDtypeStruct`; they are handed on untouched.
      state: The same for Haiku state, if there is any.

    Returns:
      A `State` with paths `params/<module>/<leaf>` of kind `Param` and `state/<module>/<leaf>` of kind `BatchStat`
      (`RngState` for a typed random key).

    Raises:
      StructureError: The argument is not a mapping of mappings.
      CollisionError: Two leaves would have one path (only a state leaf that is a pytree can do this).

    >>> flat = flatten({'mlp/~/linear_0': {'w': 1.0}, '~': {'b/c': 2.0}}, {'bn/~/mean_ema': {'counter': 3}})
    >>> list(flat)
    ['params/mlp/~/linear_0/w', 'params/~/b%2Fc', 'state/bn/~/mean_ema/counter']
    """
    entries = leaves(params, state)
    return State(entries, {path: kind(path, value) for path, value in entries.items()})


def unflatten(
    state: Mapping[str, Any], like: Native | Bundle | Spec | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns Haiku's `(params, state)`, each `{module: {leaf: array}}`: the inverse of `flatten`, always a pair.

    Args:
      state: A `State` or plain dictionary with paths `params/…` and `state/…`.
      like: The structure wanted: native `(params, state)`, or `params` alone, whose leaves may be `jax.ShapeDtypeStruct`,
        or the `Spec` of the Haiku model. With it nothing may be missing or left over and all shapes must agree. Without
        it the structure is read from the paths; then leaves that are pytrees, and modules with no leaves, cannot be told.

    Raises:
      StructureError: A path that Haiku cannot have; with `like`, missing and unexpected paths. All are listed.
      EntryShapeError: With `like`, shapes differ. All are listed.

    >>> unflatten({'params/mlp/~/linear_0/w': 1.0, 'state/~/b%2Fc': 2.0})
    ({'mlp/~/linear_0': {'w': 1.0}}, {'~': {'b/c': 2.0}})
    """
    if like is None:
        return _nest(state.items())
    params, rest = _native(like)
    wanted = leaves(params, rest)
    found = _flat.unflatten(dict(state), State(wanted))
    tree = {PARAMS: _plain(params), STATE: _plain(rest)}
    filled = jax.tree.unflatten(jax.tree.structure(tree), [found[path] for path in wanted])
    return filled[PARAMS], filled[STATE]


def leaves(params: Bundle, state: Bundle | None) -> dict[str, Any]:
    """Returns `{path: leaf}` in the order of the native tree; `flatten` without the kinds."""
    flat = _flat.flatten({PARAMS: _plain(params), STATE: _plain(state or {})})
    entries: dict[str, Any] = {}
    for native, value in flat.items():
        path = _path(native)
        if path in entries:
            raise CollisionError(
                f"{path!r} is the path of two leaves: a Haiku state entry that is a pytree has the path of an entry"
                " of a module below it. Rename the module or the entry."
            )
        entries[path] = value
    return entries


def kind(path: str, value: Any) -> Kind:
    """Returns the kind of the Haiku variable at a path."""
    if path.startswith(PARAMS + _flat.SEPARATOR):
        return Param
    dtype = getattr(value, "dtype", None)
    return RngState if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else BatchStat


@functools.lru_cache(maxsize=1 << 16)
def _path(native: str) -> str:
    """Returns the path for core's path of the native tree, where the module is one escaped segment."""
    collection, module, *rest = _flat.split(native)
    return _flat.join([collection, *module.split(_flat.SEPARATOR), *rest])


@functools.lru_cache(maxsize=1 << 16)
def place(path: str) -> tuple[str, str, str] | None:
    """Returns `(collection, module, leaf)` of a path, or None if Haiku cannot have it.

    >>> place('state/bn/~/mean_ema/average')
    ('state', 'bn/~/mean_ema', 'average')
    """
    collection, *rest = _flat.split(path) or ("",)
    *module, leaf = rest or [""]
    if collection not in (PARAMS, STATE) or not module or any(_flat.SEPARATOR in segment for segment in module):
        return None
    return collection, _flat.SEPARATOR.join(module), leaf


def _nest(entries: Iterable[tuple[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    bundles: dict[str, dict[str, Any]] = {PARAMS: {}, STATE: {}}
    wrong = []
    for path, value in entries:
        where = place(path)
        if where is None:
            wrong.append(repr(path))
        else:
            collection, module, leaf = where
            bundles[collection].setdefault(module, {})[leaf] = value
    if wrong:
        raise StructureError(
            "These paths are not those of Haiku variables:\n"
            + listing(wrong)
            + "\nHaiku has `params/<module path>/<leaf>` and `state/<module path>/<leaf>`. To convert the variables of"
            " another framework use a Mapping."
        )
    return bundles[PARAMS], bundles[STATE]


def _plain(bundle: Any) -> dict[str, Any]:
    """Returns plain dictionaries for the two levels; what lies below a leaf name is left as it is."""
    if not isinstance(bundle, Mapping) or not all(isinstance(inner, Mapping) for inner in bundle.values()):
        items = bundle.values() if isinstance(bundle, Mapping) else ()
        inside = next((value for value in items if not isinstance(value, Mapping)), None)
        raise StructureError(
            f"Haiku variables are {{module: {{leaf: array}}}}, got {describe(bundle)}"
            + (f" with {describe(inside)} inside" if inside is not None else "")
            + ". If it is the pair that init returned, write flatten(*pair)."
        )
    return {module: dict(inner) for module, inner in bundle.items()}


def _native(like: Native | Bundle | Spec) -> Native:
    if isinstance(like, Spec):
        return like.native if isinstance(like.native, tuple) else unflatten(like.entries)
    if isinstance(like, tuple) and len(like) == 2:
        return like[0], like[1] or {}
    if isinstance(like, Mapping):  # What `init` of `hk.transform` gives.
        return like, {}
    raise StructureError(f"`like` must be Haiku's pair (params, state), its params or a Spec, got {describe(like)}.")
