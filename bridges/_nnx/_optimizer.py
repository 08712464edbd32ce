"""The state of an `nnx.Optimizer` from a native optax state; the way back is `optimizer.opt_state` itself.

An `nnx.Optimizer` keeps what `tx.init(nnx.state(model, wrt))` gives, every array in a Variable of its own, and a count of
steps. `plan.optimizer` takes that as it is and gives plain arrays, which are put back into such Variables here.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from bridges._nnx._variables import state_leaves
from bridges.core import _flat
from bridges.core._errors import StructureError, describe
from bridges.core._state import State
from bridges.mapping._state_tree import flatten, value_of


def optimizer_state(opt_state: Any, like: nnx.Optimizer, step: Any = None) -> nnx.State:
    """Returns the `nnx.State` with which `nnx.update` loads an optimizer.

    Args:
      opt_state: What the optimizer's `tx.init` gives over the model's parameters, such as `plan.optimizer` returns with
        `nnx.state(model, optimizer.wrt)` as the target's parameters. Its containers may be dictionaries.
      like: The optimizer. It is not changed.
      step: How many updates were made; if not given, the optimizer's own count stays.

    Raises:
      StructureError: This is not a state of the optimizer's transformation over its parameters; every leaf is listed.
      EntryShapeError: Shapes differ; all are listed.

    >>> import jax.numpy as jnp, optax
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
    >>> trained = jax.tree.map(jnp.ones_like, nnx.as_pure(optimizer.opt_state))
    >>> nnx.update(optimizer, optimizer_state(trained, optimizer, step=7))
    >>> optimizer.opt_state[0].trace['bias'][...].tolist(), int(optimizer.step[...])
    ([1.0, 1.0, 1.0], 7)
    """
    if not isinstance(like, nnx.Optimizer):
        raise StructureError(f"An nnx.Optimizer is wanted as like, got {describe(like)}.")
    state = nnx.state(like)
    kept = nnx.State({key: state[key] for key in ("opt_state", "step") if key in state})
    pairs, treedef = state_leaves(kept)
    wanted = {_flat.join(map(str, keys)): leaf for keys, leaf in pairs}
    given = {f"opt_state/{path}": value_of(leaf) for path, leaf in flatten(opt_state).items()}
    given["step"] = value_of(wanted["step"]) if step is None else jax.numpy.asarray(step, wanted["step"].dtype)
    filled = _flat.unflatten(given, State({path: value_of(leaf) for path, leaf in wanted.items()}))
    return jax.tree.unflatten(treedef, [leaf.replace(filled[path]) for path, leaf in wanted.items()])
