"""Function: a model that is a plain function of its parameters, with a tree that says what these are.

Hand-written JAX and libraries whose models are pytrees (Equinox) need no adapter: the paths of their entries are those of
the tree, with no collection in front. What is no array in the tree (an activation function, a rate) stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from bridges.core import _flat
from bridges.core._errors import FieldError, StructureError, hint, listing
from bridges.core._spec import Spec
from bridges.core._state import State


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """A model `apply(params, *inputs) -> output`, with its parameters.

    Args:
      apply: The function.
      params: Any pytree: its arrays (or `jax.ShapeDtypeStruct`) are the model's entries. For an Equinox model that is the
        model itself: `Function(lambda model, x: jax.vmap(model)(x), model)`.

    Raises:
      FieldError: `apply` cannot be called, or the tree has no array.

    >>> model = Function(lambda params, x: x @ params['w'], {'w': np.ones((2, 3), np.float32)})
    >>> model.spec().entries['w']
    ShapeDtypeStruct(shape=(2, 3), dtype=float32)
    """

    apply: Callable[..., Any]
    params: Any

    def __post_init__(self) -> None:
        if not callable(self.apply):
            raise FieldError(f"Function(apply, params): {type(self.apply).__name__} is no function.")
        if not self.flatten():
            raise FieldError("Function(apply, params): the tree of parameters has no array.")

    @property
    def __name__(self) -> str:
        """The function's name."""
        return str(getattr(self.apply, "__name__", type(self.apply).__name__))

    def flatten(self, params: Any = None) -> State:
        """Returns the arrays of a tree like `params` by path; of `params` itself, if none is given."""
        flat = _flat.flatten(self.params if params is None else params)
        return State({path: leaf for path, leaf in flat.items() if _is_array(leaf)})

    def unflatten(self, state: Mapping[str, Any]) -> Any:
        """Returns the tree with the arrays of a state; `flatten` backwards.

        Raises:
          StructureError: Entries are missing, or there are others.
        """
        have = self.flatten()
        missing = [f"missing {path!r}.{hint(path, state)}" for path in have if path not in state]
        extra = [f"unexpected {path!r}" for path in state if path not in have]
        if missing or extra:
            raise StructureError(f"The entries are not those of {self.__name__}:\n" + listing(missing + extra))
        leaves, treedef = jax.tree.flatten(self.params)
        paths = list(_flat.flatten(self.params))
        return jax.tree.unflatten(treedef, [state.get(path, leaf) for path, leaf in zip(paths, leaves, strict=True)])

    def spec(self) -> Spec:
        """Returns what the entries look like."""
        return Spec.of(self.flatten())


def _is_array(x: Any) -> bool:
    numbers = getattr(getattr(x, "dtype", None), "kind", "") not in "OSUMm" or isinstance(x, jax.Array)
    return numbers and isinstance(x, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))
