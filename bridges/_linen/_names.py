"""Names of axes in Linen variables: read off their boxes, and put around plain arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from bridges._linen._variables import Box, entry_of, flatten, is_leaf, leaves
from bridges.core import _flat
from bridges.core._errors import StructureError, hint, listing

Names = tuple[Any, ...]


def axis_names(variables: Any) -> dict[str, Names]:
    """Returns the names of the axes of each entry that has a box with names (`nn.with_partitioning` and its like).

    Args:
      variables: What `module.init` returns, or a `State` of it.

    >>> import numpy as np
    >>> axis_names({'params': {'kernel': nn.Partitioned(np.ones((2, 3)), ('embed', 'mlp')), 'bias': np.ones(3)}})
    {'params/kernel': ('embed', 'mlp')}
    """
    found = {}
    for path, kind in flatten(variables).kinds.items():
        box = None if isinstance(kind, type) else kind.metadata.get("box")
        names = getattr(box.empty, "names", None) if isinstance(box, Box) else None
        if names is not None:
            found[path] = tuple(names)
    return found


def with_axis_names(
    variables: Mapping[str, Any], names: Mapping[str, Names], box: Any = nn.Partitioned, **fields: Any
) -> Any:
    """Returns the variables with boxes around the named entries, for `nn.get_partition_spec` and a sharded `init`.

    Args:
      variables: Nested variables; boxes that they have are kept where no name is given, else replaced.
      names: Path -> one name an axis, as `axis_names` gives them.
      box: `nn.Partitioned`, or `nn.LogicallyPartitioned` for names that rules translate.
      **fields: Further fields of the box: `mesh`, `rules`.

    Raises:
      StructureError: A path is no entry.
    """
    have = leaves(variables)
    if wrong := [f"{path!r} is no entry.{hint(path, have)}" for path in names if path not in have]:
        raise StructureError("These variables have no such entries:\n" + listing(wrong))
    made = {
        path: box(entry_of(leaf)[0], tuple(names[path]), **fields) if path in names else leaf
        for path, leaf in have.items()
    }
    _, treedef = jax.tree.flatten(variables, is_leaf=is_leaf)
    return jax.tree.unflatten(treedef, [made[path] for path in _flat.flatten(dict(variables), is_leaf)])
