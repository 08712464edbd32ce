"""NNX modules and states <-> entries of a `State`: one pair of functions, bit for bit.

Invariant: `unflatten(flatten(module), module)` is `nnx.state(module)`: native keys (strings, integers, tuples), Variable
types and their metadata come from the `like`, values from the entries. A Variable that is shared is one entry, under the
first of its paths, as in `nnx.state`.

What it does not do: it never casts or copies an array, and it does not guess at Variable types: a pure dictionary is
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from bridges._nnx._leaves import Leaf, check_apart
from bridges.core import _flat
from bridges.core._errors import StructureError, describe
from bridges.core._kind import RngState, kind_type
from bridges.core._spec import Spec
from bridges.core._state import State


def native_leaves(tree: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """Returns (keys, leaf) of every Variable and array of a module or an `nnx.State`.

    Raises:
      StructureError: It is neither, or keys of one dictionary do not sort.
    """
    if isinstance(tree, nnx.FlatState):
        return list(tree)
    try:
        if isinstance(tree, nnx.State):
            return state_leaves(tree)[0]
        flat = list(nnx.flatten(tree, graph=True)[1]) if not isinstance(tree, Mapping) or _holds_nnx(tree) else []
    except (TypeError, ValueError) as err:
        raise StructureError(
            f"This {type(tree).__name__} cannot be flattened: {err}. Keys of one dictionary must sort: make them all"
            " strings or all integers."
        ) from err
    if not isinstance(tree, nnx.Pytree) and not any(keys and isinstance(leaf, nnx.Variable) for keys, leaf in flat):
        raise StructureError(
            f"An NNX module or nnx.State is wanted, got {describe(tree)}. A pure dictionary does not say which Variables"
            " its arrays belong to: pass the module or nnx.state(module)."
        )
    return flat


def _holds_nnx(tree: Any) -> bool:
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, (nnx.Pytree, nnx.Variable)))
    return any(isinstance(leaf, (nnx.Pytree, nnx.Variable)) for leaf in leaves)


def state_leaves(state: Any) -> tuple[list[tuple[tuple[Any, ...], Any]], Any]:
    items, treedef = jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return [(tuple(_key(key) for key in keys), leaf) for keys, leaf in items], treedef


def _key(key: Any) -> Any:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return str(key)


def flatten(module_or_state: Any) -> State:
    """Returns the state of an NNX module: paths `<collection>/<attribute path>`, arrays as they are.

    Args:
      module_or_state: An `nnx.Module` (or any other `nnx.Pytree`: an optimizer, `nnx.Rngs`), or the `nnx.State` of one.
        Values may be arrays or `jax.ShapeDtypeStruct`.

    Returns:
      A `State`. The collection follows from the Variable type, under the names that Flax has for both: `nnx.Param` ->
      `params`, `nnx.BatchStat` -> `batch_stats`, `nnx.Cache` -> `cache`, `nnx.Intermediate` -> `intermediates`,
      `nnx.RngKey` -> `RngKey`, a type of the user's own -> its name; arrays that are no Variables -> `arrays`. Kinds
      follow the base class, and hold the collection, where it is another than the base class's, and the Variable's
      metadata: `Param(out_sharding=('in', 'out'))`, `RngState(collection='RngKey', tag='dropout')`.

    Raises:
      StructureError: It is neither a module nor a state, or keys of one dictionary do not sort.
      CollisionError: Two leaves have one path.

    >>> state = flatten(nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))))
    >>> for path in state: print(path, state.kind(path))
    RngCount/layers/1/rngs/count RngState(collection='RngCount', tag='default')
    RngKey/layers/1/rngs/key RngState(collection='RngKey', tag='default')
    params/layers/0/bias <class '...Param'>
    params/layers/0/kernel <class '...Param'>
    """
    if isinstance(module_or_state, State):
        return module_or_state
    leaves = [(Leaf.of(keys, leaf), leaf) for keys, leaf in native_leaves(module_or_state)]
    check_apart(leaf for leaf, _ in leaves)
    entries = {path: value for leaf, native in leaves for path, value in leaf.values(native).items()}
    return State(entries, {path: leaf.kind for leaf, _ in leaves for path in leaf.entries})


def unflatten(state: Mapping[str, Any], like: Any) -> nnx.State:
    """Returns the `nnx.State` of entries; the inverse of `flatten`, ready for `nnx.update` or `nnx.merge`.

    Args:
      state: A `State` or plain dictionary of paths.
      like: What says which native keys and Variables the paths stand for: the module, its `nnx.State`, or the `Spec`
        that `spec` returned. It is not changed.

    Raises:
      StructureError: Entries are missing or unknown; all are listed. Or `like` is none of these.
      EntryShapeError: Shapes differ; all are listed.

    >>> import numpy as np
    >>> module = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    >>> state = flatten(module)
    >>> state['params/layers/0/bias'] = np.arange(3.0, dtype=np.float32)
    >>> nnx.update(module, unflatten(state, module))
    >>> module.layers[0].bias[...].tolist()
    [0.0, 1.0, 2.0]
    """
    native = like.native if isinstance(like, Spec) else like
    if not isinstance(native, nnx.State):
        native = nnx.from_flat_state(native_leaves(native))
    pairs, treedef = state_leaves(native)
    leaves = [(Leaf.of(keys, leaf), leaf) for keys, leaf in pairs]
    check_apart(leaf for leaf, _ in leaves)
    wanted = State({path: want for leaf, _ in leaves for path, want in leaf.entries.items()})
    try:
        filled = _flat.unflatten(state, wanted)
    except StructureError as err:
        lacking = [path for path in wanted if path not in state]
        kinds = flatten(native).declared
        if lacking and all(path in kinds and issubclass(kind_type(kinds[path]), RngState) for path in lacking):
            raise StructureError(
                f"{err}\nThat is random state (dropout), which no conversion carries: keep the model's own,"
                " nnx_adapter.unflatten(nnx_adapter.flatten(model) | new, model)."
            ) from err
        raise
    return jax.tree.unflatten(treedef, [_filled(leaf, old, leaf.value(filled)) for leaf, old in leaves])


def _filled(leaf: Leaf, old: Any, value: Any) -> Any:
    return value if leaf.type is None else old.replace(value)
