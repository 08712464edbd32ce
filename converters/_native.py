"""A framework's native variables <-> entries, for trees as files hold them: with lazy leaves, and without a model at hand.

Structure that paths do not say comes from a spec's `native` where there is one. Without it, Haiku's and Linen's trees are
what the paths spell; an NNX pure dictionary does not say which Variables its arrays belong to, and is read by Flax's own
names: `mean` beside `var` is a running statistic, `key` beside `count` random state, `cached_key` and its like a cache.

`{'value': leaf}` is how Orbax saves the Variables of an `nnx.State`, and what it wants to restore into one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from bridges._haiku import _tree as haiku_tree
from bridges.core import _flat
from bridges.core._errors import StructureError, UnsupportedError, hint, listing
from bridges.core._kind import BatchStat, Cache, Intermediate, Kind, Param, RngState, Variable
from bridges.core._spec import Spec
from bridges.core._state import State

_KINDS: dict[str, Kind] = {
    "params": Param,
    "batch_stats": BatchStat,
    "cache": Cache,
    "intermediates": Intermediate,
    "RngKey": RngState(collection="RngKey"),
    "RngCount": RngState(collection="RngCount"),
}
_CACHES = ("cached_key", "cached_value", "cache_index")


def with_kinds(framework: str, entries: Mapping[str, Any]) -> State:
    """Returns the entries as a state, with kinds by collection; those of a flat tree of no framework have none."""
    if framework == "haiku":
        return State(entries, {path: haiku_tree.kind(path, value) for path, value in entries.items()})
    if framework == "flat":
        return State(entries)
    return State(entries, {path: _kind(path) for path in entries})


def _kind(path: str) -> Kind:
    collection = _flat.unescape(path.partition(_flat.SEPARATOR)[0])
    return _KINDS.get(collection) or Variable(collection=collection)


def entries(framework: str, params: Any, state: Any, collections: Mapping[str, Any], spec: Spec | None) -> State:
    """Returns the entries of native variables.

    Args:
      framework: `'haiku'`, `'linen'` or `'nnx'`.
      params: Haiku's or Linen's parameters; NNX's whole pure dictionary.
      state: Haiku's state; what Linen keeps beside the parameters under that name.
      collections: Linen's collections other than `params`.
      spec: The model's spec; decides to which Variables NNX's arrays belong.

    Raises:
      StructureError: The tree is not one of the framework's.
    """
    if framework == "haiku":
        return haiku_tree.flatten(params, state)
    if framework == "linen":
        extra = {} if state is None else {"state": state}
        return with_kinds("linen", _flat.flatten({"params": params, **collections, **extra}))
    tree = unwrapped(params) if has_values(params) else params
    flat = _flat.flatten(tree)
    if state is not None or collections:
        raise StructureError("NNX variables are one tree; beside it there are other trees of arrays.")
    if spec is not None and spec.framework == "nnx" and spec.native is not None:
        return _by_model(flat, spec)
    return with_kinds("nnx", {f"{collection}/{path}": flat[path] for path, collection in _collections(flat).items()})


def _by_model(flat: Mapping[str, Any], spec: Spec) -> State:
    known = {path: entry for entry, path in pure_paths(spec).items()}
    unknown = [path for path in flat if path not in known]
    if unknown:
        free = [path for path in known if path not in flat]
        raise StructureError(
            "The model has no Variables for these arrays:\n" + listing(f"{p!r}.{hint(p, free)}" for p in unknown)
        )
    found = {known[path]: value for path, value in flat.items()}
    return State(found, {path: kind for path, kind in spec.entries.declared.items() if path in found})


def _collections(flat: Mapping[str, Any]) -> dict[str, str]:
    """Returns the collection of each path of an NNX pure dictionary, by Flax's own names."""
    beside: dict[str, set[str]] = {}
    for path in flat:
        module, _, leaf = path.rpartition(_flat.SEPARATOR)
        beside.setdefault(module, set()).add(leaf)
    found = {}
    for path in flat:
        module, _, leaf = path.rpartition(_flat.SEPARATOR)
        if leaf in ("mean", "var") and {"mean", "var"} <= beside[module]:
            found[path] = "batch_stats"
        elif leaf in ("key", "count") and {"key", "count"} <= beside[module]:
            found[path] = "RngKey" if leaf == "key" else "RngCount"
        else:
            found[path] = "cache" if leaf in _CACHES else "params"
    return found


def pure_paths(spec: Spec) -> dict[str, str]:
    """Returns the path in NNX's pure dictionary of each entry of a model's spec."""
    from bridges._nnx._variables import unflatten

    if not spec.entries:
        return {}
    numbers = {path: n for n, path in enumerate(spec.entries)}
    placed = _pure(unflatten(State({path: _Number(n) for path, n in numbers.items()}), spec))
    order = list(spec.entries)
    return {order[leaf.number]: path for path, leaf in _flat.flatten(placed).items()}


class _Number:
    """Stands for an entry in a tree."""

    def __init__(self, number: int):
        self.number = number


def _pure(state: Any) -> Any:
    try:
        from flax import nnx
    except ImportError as err:
        raise UnsupportedError("NNX variables need flax: pip install 'jax-bridges[flax]'.") from err
    return nnx.to_pure_dict(state)


def native(framework: str, state: State, like: Spec | None = None, values: bool = False) -> Any:
    """Returns the native variables of entries: Haiku's `(params, state)`, Linen's collections, NNX's pure dictionary.

    Args:
      framework: `'haiku'`, `'linen'`, `'nnx'`, or `'flat'` for path -> leaf.
      state: The entries.
      like: The model's spec, for the structure that paths do not say. NNX's random state may be missing.
      values: Whether each leaf of an NNX tree gets a dictionary of its own, as Orbax wants it.

    Raises:
      StructureError, EntryShapeError: The entries are not those of `like`.
    """
    known = like if like is not None and like.native is not None else None
    if framework == "haiku":
        return haiku_tree.unflatten(state, known)
    if framework == "linen":
        if known is None:
            return _flat.nest(state)
        from bridges._linen._variables import unflatten

        return _plain(unflatten(state, known))
    if framework == "flat":
        return dict(state)
    if known is None:
        tree = _flat.nest({path.partition(_flat.SEPARATOR)[2]: value for path, value in state.items()})
    else:
        tree = _nnx(state, known)
    return wrapped(tree) if values else tree


def parameters(framework: str, state: Mapping[str, Any], like: Spec | None = None) -> Any:
    """Returns the native parameters alone, as an optimizer knows them, of entries of which others are left out.

    Args:
      framework: As in `native`.
      state: The entries; those that are no parameters may be there or not.
      like: As in `native`.
    """
    mine = State({path: value for path, value in state.items() if path.startswith("params/")})
    known = like if like is not None and like.native is not None else None
    if framework == "haiku":
        return haiku_tree.unflatten(mine, (known.native[0], {}) if known else None)[0]
    if framework == "linen":
        part = Spec(mine, "linen", native={"params": known.native["params"]}) if known else None
        return native("linen", mine, part)["params"]
    if framework == "nnx" and known:
        lacking = {path: _Lacking() for path in known.entries if path not in mine}
        from bridges._nnx._variables import unflatten

        return _without_lacking(_pure(unflatten(State({**mine, **lacking}), known)))
    nested = _flat.nest(mine)
    return nested.get("params", {}) if framework == "nnx" else nested


def _plain(variables: Any) -> Any:
    """Returns Linen variables without boxes, as a file holds them."""
    try:
        from flax.core import AxisMetadata, meta, unfreeze
    except ImportError as err:
        raise UnsupportedError("Linen variables need flax: pip install 'jax-bridges[flax]'.") from err
    boxed = any(isinstance(x, AxisMetadata) for x in jax.tree.leaves(variables, is_leaf=_is_box))
    return unfreeze(meta.unbox(variables) if boxed else variables)


def _is_box(node: Any) -> bool:
    return any(base.__name__ == "AxisMetadata" for base in type(node).__mro__)


def _nnx(state: State, like: Spec) -> Any:
    from bridges._nnx._variables import unflatten

    lacking = {path: x for path, x in like.entries.items() if path not in state and _is_random(like.entries, path)}
    tree = _pure(unflatten(State({**state, **{path: _Lacking() for path in lacking}}), like))
    return _without_lacking(tree) if lacking else tree


class _Lacking:
    """Stands for an entry that the state does not have."""


def _without_lacking(tree: Any) -> Any:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    root: dict[Any, Any] = {}
    for keys, leaf in leaves:
        if isinstance(leaf, _Lacking):
            continue
        node = root
        for key in keys[:-1]:
            node = node.setdefault(key.key, {})
        node[keys[-1].key] = leaf
    return root


def _is_random(state: State, path: str) -> bool:
    kind = state.kind(path)
    return issubclass(kind if isinstance(kind, type) else type(kind), RngState)


def random_paths(spec: Spec) -> list[str]:
    """Returns the entries of a spec that are random state: keys, and how often they were drawn from."""
    return [path for path in spec.entries if _is_random(spec.entries, path)]


def plain(tree: Any) -> Any:
    """Returns the tree with plain dictionaries on its two upper levels, where Haiku may have its `FlatMapping`."""
    if not isinstance(tree, Mapping):
        return tree
    return {key: dict(below) if isinstance(below, Mapping) else below for key, below in tree.items()}


def has_values(tree: Any) -> bool:
    """Whether every leaf of a tree lies in a dictionary of its own, under the key `value`."""
    if not isinstance(tree, Mapping):
        return False
    paths = list(_flat.flatten(tree))
    return bool(paths) and all(path.endswith("/value") for path in paths)


def unwrapped(tree: Any) -> Any:
    """Returns the tree with `leaf` for `{'value': leaf}`; the inverse of `wrapped`."""
    return jax.tree.map(
        lambda node: node["value"] if _is_value(node) else node, tree, is_leaf=lambda node: _is_value(node)
    )


def _is_value(node: Any) -> bool:
    return isinstance(node, Mapping) and len(node) == 1 and "value" in node and not isinstance(node["value"], Mapping)


def wrapped(tree: Any) -> Any:
    """Returns the tree with `{'value': leaf}` for each leaf."""
    return jax.tree.map(lambda leaf: {"value": leaf}, tree)
