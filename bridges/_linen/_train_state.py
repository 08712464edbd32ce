"""A `flax.training.train_state.TrainState` from converted variables and optimizer state.

The way back needs nothing: `state.params` and `state.opt_state` are native trees, which `plan.optimizer` takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bridges._linen._variables import unflatten
from bridges.core import _flat
from bridges.core._errors import StructureError, hint, listing
from bridges.core._state import State


def train_state(like: Any, variables: Mapping[str, Any], opt_state: Any, step: Any = None) -> Any:
    """Returns `like` with other variables and another optimizer state, both of exactly its structure.

    Args:
      like: A `TrainState`, or a subclass with fields for further collections (`batch_stats`); fresh from `create`.
      variables: The model's variables, as Linen has them or flat. `params` go to the field of that name, other
        collections to fields of theirs; collections in `like.params` itself (fp8) stay there.
      opt_state: What `like.tx.init` gives over these parameters, such as `plan.optimizer` returns.
      step: How many updates were made; if not given, that of `like`.

    Raises:
      StructureError: A structure is not that of `like`, or a collection has no field.
      EntryShapeError: Shapes differ.

    >>> import jax, jax.numpy as jnp, optax
    >>> from flax import linen as nn
    >>> from flax.training.train_state import TrainState
    >>> model, x = nn.Dense(3), jnp.ones((1, 2))
    >>> fresh = TrainState.create(
    ...   apply_fn=model.apply, params=model.init(jax.random.key(0), x)['params'], tx=optax.adam(0.1))
    >>> trained = jax.tree.map(lambda x: x + 1, fresh)
    >>> state = train_state(fresh, {'params': trained.params}, trained.opt_state, step=7)
    >>> state.params['bias'].tolist(), int(state.opt_state[0].count), state.step
    ([1.0, 1.0, 1.0], 1, 7)
    """
    native = unflatten(variables) if isinstance(variables, State) else variables
    nested = isinstance(like.params, Mapping) and "params" in like.params and len(like.params) > 1
    inside = set(like.params) if nested else {"params"}
    missing = sorted(inside - set(native))
    if missing:
        raise StructureError(f"The variables have no {', '.join(missing)}; they have {', '.join(native)}.")
    params = {name: native[name] for name in inside} if nested else native["params"]
    fields = {field.name for field in dataclasses.fields(like)} - {"step", "apply_fn", "params", "tx", "opt_state"}
    others = {name: value for name, value in native.items() if name not in inside}
    lines = [f"{name!r}.{hint(name, fields)}" for name in others if name not in fields]
    if lines:
        raise StructureError(
            f"{type(like).__name__} has no fields for these collections:\n"
            + listing(lines)
            + "\nAdd them in a subclass (class State(TrainState): batch_stats: Any), or leave them out of the variables."
        )
    changes = {"params": params, "opt_state": opt_state, **others}
    given = {name: _flat.flatten(value) for name, value in changes.items()}
    filled = {
        name: _flat.unflatten(flat, getattr(like, name)) if getattr(like, name) is not None else changes[name]
        for name, flat in given.items()
    }
    return like.replace(step=like.step if step is None else step, **filled)
