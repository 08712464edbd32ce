"""Names of axes in NNX Variables: their metadata `out_sharding`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from bridges._nnx._leaves import Leaf, value_of
from bridges._nnx._variables import native_leaves, state_leaves
from bridges.core._errors import StructureError, hint, listing

Names = tuple[Any, ...]


def axis_names(module_or_state: Any) -> dict[str, Names]:
    """Returns the names of the axes of each Variable that has some (`nnx.with_partitioning`), by the path of its entry.

    >>> init = nnx.with_partitioning(nnx.initializers.ones, ('embed', 'mlp'), eager_sharding=False)
    >>> axis_names(nnx.Linear(2, 3, kernel_init=init, rngs=nnx.Rngs(0)))
    {'params/kernel': ('embed', 'mlp')}
    """
    found = {}
    for keys, native in native_leaves(module_or_state):
        leaf = Leaf.of(keys, native)
        if leaf.plain and leaf.metadata.get("out_sharding") is not None:
            found[leaf.path] = tuple(leaf.metadata["out_sharding"])
    return found


def with_axis_names(state: nnx.State, names: Mapping[str, Names], **metadata: Any) -> nnx.State:
    """Returns the state with the names as `out_sharding` of its Variables, for `nnx.get_partition_spec`; nothing is placed.

    Args:
      state: Of a module.
      names: Path of an entry -> one name an axis.
      **metadata: Further metadata of these Variables: `sharding_rules`, `mesh`.

    Raises:
      StructureError: A path is no Variable.
    """
    pairs, treedef = state_leaves(state)
    described = [(Leaf.of(keys, native), native) for keys, native in pairs]
    have = [leaf.path for leaf, _ in described if leaf.type is not None]
    if wrong := [f"{path!r} is no Variable.{hint(path, have)}" for path in names if path not in have]:
        raise StructureError("This state has no such Variables:\n" + listing(wrong))
    made = []
    for leaf, native in described:
        if leaf.type is not None and leaf.path in names:
            noted = {**leaf.metadata, **metadata, "out_sharding": tuple(names[leaf.path]), "eager_sharding": False}
            native = leaf.type.from_metadata(value_of(native), noted)
        made.append(native)
    return jax.tree.unflatten(treedef, made)
