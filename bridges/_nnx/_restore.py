"""What a checkpoint file gives for an NNX module -> the `nnx.State` that it stands for, strictly.

Orbax, msgpack and pickles of NNX states come back as nested dictionaries by attribute path, in which a Variable is its value
or, as Orbax writes it, a dictionary with the one key `value`. `flax.nnx.update` takes such a tree whatever is missing,
unknown or misshapen in it. Here all that does not fit is one error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from bridges._nnx._leaves import Leaf, check_apart, value_of
from bridges._nnx._variables import native_leaves, state_leaves
from bridges.core import _flat
from bridges.core._errors import StructureError, describe
from bridges.core._spec import Spec
from bridges.core._state import State

_VALUE = _flat.SEPARATOR + "value"


def restore(tree: Mapping[str, Any], like: Any) -> nnx.State:
    """Returns the `nnx.State` of a checkpoint, ready for `nnx.merge` or `nnx.update`; no initialiser runs.

    Args:
      tree: Nested dictionaries by attribute path, of arrays or Variables: what Orbax, `converters.load` or
        `nnx.to_pure_dict` give for the `nnx.State` of such a module.
      like: The module, its `nnx.State`, or the `Spec` of it; of `nnx.eval_shape`, or with values, which are not looked
        at. Native keys, Variable types and metadata are its own.

    Raises:
      StructureError: Entries are missing or unknown; all are listed, by their paths in the tree.
      EntryShapeError: Shapes differ; all are listed.

    >>> module = nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    >>> tree = {'kernel': np.ones((2, 3), np.float32), 'bias': {'value': np.zeros(3, np.float32)}}
    >>> nnx.update(module, restore(tree, module))
    >>> module(np.ones((1, 2), np.float32)).tolist()
    [[2.0, 2.0, 2.0]]
    """
    if not isinstance(tree, Mapping):
        raise StructureError(f"Nested dictionaries are wanted, got {describe(tree)}.")
    native = like.native if isinstance(like, Spec) else like
    if not isinstance(native, nnx.State):
        native = nnx.from_flat_state(native_leaves(native))
    pairs, treedef = state_leaves(native)
    leaves = [Leaf.of(keys, leaf) for keys, leaf in pairs]
    check_apart(leaves)
    wanted = {_below(path): want for leaf in leaves for path, want in leaf.entries.items()}
    given = _flat.flatten(tree, is_leaf=lambda node: isinstance(node, nnx.Variable))
    found = {_named(path, wanted): value_of(value) for path, value in given.items()}
    found = {path: _as_array(value, wanted.get(path)) for path, value in found.items()}
    filled = _flat.unflatten(found, State(wanted))
    entries = {path: filled[_below(path)] for leaf in leaves for path in leaf.entries}
    values = [leaf.value(entries) for leaf in leaves]
    made = [v if leaf.type is None else old.replace(v) for leaf, (_, old), v in zip(leaves, pairs, values, strict=True)]
    return jax.tree.unflatten(treedef, made)


def _below(path: str) -> str:
    """Returns the path of an entry without its collection."""
    return path.partition(_flat.SEPARATOR)[2]


def _named(path: str, wanted: Mapping[str, Any]) -> str:
    short = path.removesuffix(_VALUE)
    return short if path not in wanted and short in wanted else path


def _as_array(value: Any, want: Any) -> Any:
    """Returns raw key data as a key, where one is wanted, and a number of Python as the array of the dtype that is wanted.

    `TrainState.create` counts steps from a Python 0, and files keep it so; a Variable with such a number has no `[...]`.
    """
    if want is None:
        return value
    if jax.dtypes.issubdtype(want.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(value) if getattr(value, "dtype", None) == np.uint32 else value
    if not isinstance(value, (bool, int, float, complex)) or isinstance(value, np.generic):
        return value
    array = np.asarray(value)
    fitting = array.astype(want.dtype)
    return fitting if fitting == array else array
