"""Flax NNX: modules to entries and back, the verbs of every adapter, and NNX modules as parts of the host.

Entries are called `<collection>/<attribute path>` in a state of their own, and
`<module path>/<collection>/<attribute path>` in a running model. The collection follows from the Variable type, under the
names that Flax has for both (`nnx.Param` is in `params`, as in Linen); so do kinds, which hold the Variable's metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridges._nnx._call import Call
from bridges._nnx._kinds import variable_type as variable_type
from bridges._nnx._maker import Maker, as_rngs
from bridges._nnx._memory import Memory
from bridges._nnx._names import axis_names as axis_names
from bridges._nnx._names import with_axis_names as with_axis_names
from bridges._nnx._optimizer import optimizer_state as optimizer_state
from bridges._nnx._restore import restore as restore
from bridges._nnx._run import perform
from bridges._nnx._spec import constructor
from bridges._nnx._spec import spec as spec
from bridges._nnx._to_nnx import ToNNX as ToNNX
from bridges._nnx._variables import flatten as flatten
from bridges._nnx._variables import unflatten as unflatten
from bridges._nnx._wrapper import FromNNX as FromNNX
from bridges._nnx._wrapper import NNXModule as NNXModule
from bridges.core._context import Context
from bridges.core._errors import SeedError
from bridges.core._frame import Frame, enter
from bridges.core._state import State


def init(model: Any, rngs: Any, *args: Any, **kwargs: Any) -> State:
    """Returns the state of a new module: exactly the native values.

    Args:
      model: A class, a function that returns a module, a `functools.partial` of one, or an instance (whose values are
        returned).
      rngs: What the parameter `rngs` of the class or function is given, where it is open: `nnx.Rngs` (which are not
        advanced), or what these are made of, an integer, a key, or a dictionary of these by stream.
      *args, **kwargs: Arguments of the class or function; or the model's inputs, as in `spec`.

    Raises:
      SeedError: The class or function takes `rngs`, and they are None or lack a stream.

    >>> from flax import nnx
    >>> state = init(nnx.Linear, nnx.Rngs(0), 2, 3)
    >>> (state['params/kernel'] == nnx.Linear(2, 3, rngs=nnx.Rngs(0)).kernel[...]).all().item()
    True
    """
    maker = constructor(model, args, kwargs)
    if maker.takes_rngs and rngs is None:
        raise SeedError(f"{maker.name} takes random streams, and rngs is None: pass nnx.Rngs(0), an integer or a key.")
    return flatten(maker.make(as_rngs(rngs) if maker.takes_rngs else None))


def apply(
    model: Any, state: Mapping[str, Any], *args: Any, rngs: Any = None, method: Any = None, **kwargs: Any
) -> tuple[Any, State]:
    """Returns the output of a call and the state after it, always in this order.

    Args:
      model: A module instance, of which only the structure and the attributes that hold no arrays count, and which is
        never changed; or a class or function that needs no arguments but `rngs`.
      state: What `init` or `flatten` returned, or a plain dictionary of the same paths.
      *args: The model's inputs.
      rngs: Random streams for this call: `nnx.Rngs`, an integer, a key, or a dictionary of these by stream. They are
        handed to a method that takes `rngs`; otherwise the module's own streams are given keys from them, as by
        `nnx.reseed`. If not given, the module draws from the streams in its state.
      method: The method to call: a name, that of a submodule, a dotted path of these, or a function of the module.
      **kwargs: The model's inputs.

    Returns:
      The output and the whole state: what was not modified is that of the argument.

    Raises:
      MissingEntryError, EntryShapeError, StructureError: The entries are not those of the model; all are listed.
      UnsupportedError: The call removes a Variable, or changes an attribute that holds no array.
      CreateError: It creates a Variable that is no `nnx.Intermediate`.
      FieldError: There is no such method.

    >>> import numpy as np
    >>> from flax import nnx
    >>> model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    >>> state = flatten(model)
    >>> y, new = apply(model, state, np.ones((4, 3), np.float32))
    >>> float(state['batch_stats/mean'][0]), round(float(new['batch_stats/mean'][0]), 3), float(model.mean[0])
    (0.0, 0.01, 0.0)
    """
    ctx = Context(state if isinstance(state, State) else State(state))
    with enter(Frame(ctx, None)):
        out = perform(ctx, "", Memory(Maker(model)), Call(method, args, kwargs, rngs))
    return out, ctx.snapshot()
