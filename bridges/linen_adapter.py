"""Flax Linen: native variables to entries and back, and the same five verbs as every adapter."""

from __future__ import annotations

from typing import Any

from flax import linen as nn

from bridges._linen._call import Call
from bridges._linen._spec import spec as spec
from bridges._linen._variables import Box as Box
from bridges._linen._variables import flatten as flatten
from bridges._linen._variables import unflatten as unflatten
from bridges.core._state import State


def init(model: nn.Module, rngs: Any, *args: Any, method: Any = None, **kwargs: Any) -> State:
    """Returns the state that `model.init` creates: exactly the native values.

    Args:
      model: A Linen module instance.
      rngs: A key, or keys by stream, as for `model.init`.
      *args, **kwargs: The model's inputs.
      method: The method to initialise by, as in `model.init`.
    """
    return flatten(Call(model, method, args, kwargs).init(rngs)[1])
