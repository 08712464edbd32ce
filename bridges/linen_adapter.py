"""Flax Linen: native variables to entries and back, the verbs of every adapter, and Linen modules as parts of the host.

Entries are called `<collection>/<native path>` in a state of their own, and `<module path>/<collection>/<native path>`
in a running model. Their kinds follow the collection (`params` -> `Param`, `batch_stats` -> `BatchStat`, …); partitioning
metadata is kept beside the arrays, as metadata of the kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from bridges._linen._call import Call
from bridges._linen._keys import Keys
from bridges._linen._memory import Memory
from bridges._linen._names import axis_names as axis_names
from bridges._linen._names import with_axis_names as with_axis_names
from bridges._linen._run import perform
from bridges._linen._spec import spec as spec
from bridges._linen._to_linen import ToLinen as ToLinen
from bridges._linen._train_state import train_state as train_state
from bridges._linen._variables import Box as Box
from bridges._linen._variables import flatten as flatten
from bridges._linen._variables import unflatten as unflatten
from bridges._linen._wrapper import FlaxModule as FlaxModule
from bridges._linen._wrapper import FromFlax as FromFlax
from bridges._linen._wrapper import FromLinen as FromLinen
from bridges._linen._wrapper import LinenModule as LinenModule
from bridges.core._context import Context
from bridges.core._frame import Frame, enter
from bridges.core._state import State


def init(model: nn.Module, rngs: Any, *args: Any, method: Any = None, **kwargs: Any) -> State:
    """Returns the state that `model.init` creates: exactly the native values.

    Args:
      model: A Linen module instance.
      rngs: A key, or keys by stream, as for `model.init`; an integer stands for `jax.random.key` of it.
      *args: The model's inputs.
      method: The method to initialise by, as in `model.init`.
      **kwargs: The model's inputs.

    Raises:
      SeedError: `rngs` has no key for a stream that the model draws from.
    """
    keys = Keys(rngs)
    with keys.explained():
        return flatten(Call(model, method, args, kwargs).init(keys.initial())[1])


def apply(
    model: nn.Module,
    state: Mapping[str, Any],
    *args: Any,
    rngs: Any = None,
    method: Any = None,
    mutable: Any = None,
    **kwargs: Any,
) -> tuple[Any, State]:
    """Returns the output of a call and the state after it, always in this order.

    Args:
      model: A Linen module instance.
      state: What `init` or `flatten` returned, or a plain dictionary of the same paths.
      *args: The model's inputs.
      rngs: A key, or keys by stream, as for `model.apply`.
      method: The method to call, as in `model.apply`.
      mutable: Collections that may be modified, as in `model.apply`. If not given, they are those that the call modifies
        when none was made mutable for it; and what is sown is recorded.
      **kwargs: The model's inputs.

    Returns:
      The output and the whole state: what was not modified is that of the argument.

    Raises:
      MissingEntryError, EntryShapeError, StructureError: The entries are not those of the model; all are listed.
      SeedError: The model draws from a stream that `rngs` has no key for.
      PermissionsError: It modifies a collection that `mutable` leaves out.

    >>> import jax, numpy as np
    >>> x = np.ones((4, 3), np.float32)
    >>> model = nn.BatchNorm(use_running_average=False)
    >>> state = init(model, jax.random.key(0), x)
    >>> y, new = apply(model, state, x)
    >>> float(state['batch_stats/mean'][0]), round(float(new['batch_stats/mean'][0]), 3)
    (0.0, 0.01)
    """
    ctx = Context(state if isinstance(state, State) else State(state))
    with enter(Frame(ctx, None)):
        out = perform(ctx, "", Memory(), Call(model, method, args, kwargs), Keys(rngs), mutable)
    return out, ctx.snapshot()
