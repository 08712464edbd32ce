"""The proof that a converted optimizer state goes on as the source's: ten updates are run at both ends and compared.

The loss is a function of the source's parameters, and at the target the same function behind the plan run backwards, so
that gradients are right by construction. Sizes of parameters and gradients grow along every axis: two halves of a leaf
never look alike, and what takes a norm of the wrong piece shows.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges.core._errors import BridgeError, StructureError, UnsupportedError, describe, listing
from bridges.mapping._optimizer import parameter_items
from bridges.mapping._plan import Item, Plan
from bridges.mapping._state_tree import aligned, flatten, is_variable, value_of

STEPS = 10
_ENDS = ("source", "target")
_TOLERANCE = 1e-3  # of the way that a leaf goes: rounding gives 1e-6, a norm of half a leaf several per cent


def prove(plan: Plan, txs: Sequence[Any], states: Sequence[Any], params: Sequence[Any]) -> None:
    """Returns if the next ten updates at both ends are the same.

    Args:
      plan: From source to target.
      txs: The transformation at the source and at the target.
      states: Their states, before the ten updates.
      params: The two parameter trees; only the source's values are read.

    Raises:
      UnsupportedError: They differ, where and by how much; or an update cannot be run.
      StructureError: A transformation's own state has another structure.
    """
    ends = [aligned(p, spec, end) for p, spec, end in zip(params, (plan.src, plan.dst), ("src", "dst"), strict=True)]
    items = parameter_items(plan, set(ends[0].values()), set(ends[1].values()))
    treedefs = [jax.tree.structure(p, is_leaf=is_variable) for p in params]

    def tree(end: int, flat: Mapping[str, Any]) -> Any:
        return jax.tree.unflatten(treedefs[end], [flat[path] for path in ends[end].values()])

    def flat(end: int, native: Any) -> dict[str, Any]:
        return dict(zip(ends[end].values(), jax.tree.leaves(native), strict=True))

    start = {
        p: _sloped(jnp.asarray(value_of(x))) for p, x in zip(ends[0].values(), flatten(params[0]).values(), strict=True)
    }
    at = [tree(0, start), tree(1, _run(items, start))]
    states = [jax.tree.map(lambda x: jnp.asarray(value_of(x)), s, is_leaf=is_variable) for s in states]

    def loss(source: Mapping[str, Any], i: Any) -> Any:
        return sum(
            jnp.sum(_slope(x) * jnp.sin(3 * x + i + n)).astype(jnp.float32)
            for n, x in enumerate(source[p] for p in sorted(source))
            if jnp.issubdtype(x.dtype, jnp.floating)
        )

    def at_source(native: Any, i: Any) -> Any:
        return loss(flat(0, native), i)

    def at_target(native: Any, i: Any) -> Any:
        return loss(_back(items, flat(1, native)), i)

    ran = []
    for tx, native, state, function, end in zip(
        txs, at, states, (at_source, at_target), ("source", "target"), strict=True
    ):
        try:
            wanted = jax.eval_shape(tx.init, native)
            _check_structure(wanted, state, end)
            ran.append(_train(tx, native, state, function))
        except BridgeError:
            raise
        except Exception as err:
            raise UnsupportedError(f"tx could not be run at the {end}: {type(err).__name__}: {err}") from err
    wrong = []
    wanted = _run(items, flat(0, ran[0]))
    for path, got in flat(1, ran[1]).items():
        want, old = np.asarray(wanted[path], np.float64), np.asarray(flat(1, at[1])[path], np.float64)
        way = np.abs(want - old).max(initial=0)
        unit = float(jnp.finfo(got.dtype).eps) if jnp.issubdtype(got.dtype, jnp.floating) else 0.0
        off = np.abs(np.asarray(got, np.float64) - want).max(initial=0)
        if not off <= max(_TOLERANCE, 8 * unit) * way + STEPS * unit * np.abs(want).max(initial=0):
            wrong.append(f"{path!r}: off by {off / (way or 1):.1%} of its way")
    if wrong:
        raise UnsupportedError(
            f"After {STEPS} updates of tx at both ends, from this state, these parameters differ:\n"
            + listing(wrong)
            + "\nThis"
            " transformation treats the target's leaves otherwise (norms of whole leaves, decay of shifted weights, noise,"
            " labels by shape). Start its state anew, or keep the parameters' shapes."
        )


def _slope(x: Any) -> Any:
    out = jnp.ones((), x.dtype)
    for axis, n in enumerate(x.shape):
        ramp = jnp.linspace(0.5, 2.0, n).astype(x.dtype) if n > 1 else jnp.ones(n, x.dtype)
        out = out * ramp.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return out


def _sloped(x: Any) -> Any:
    return x * _slope(x) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _run(items: Sequence[Item], source: Mapping[str, Any]) -> dict[str, Any]:
    return {
        p: x
        for item in items
        for p, x in zip(item.targets, item.forward([source[s] for s in item.sources]), strict=True)
    }


def _back(items: Sequence[Item], target: Mapping[str, Any]) -> dict[str, Any]:
    return {
        p: x
        for item in items
        for p, x in zip(item.sources, item.inverse([target[t] for t in item.targets]), strict=True)
    }


def _check_structure(wanted: Any, state: Any, end: str) -> None:
    want_tree, got_tree = jax.tree.structure(wanted), jax.tree.structure(state)
    if want_tree != got_tree:  # type: ignore[operator]
        raise StructureError(f"tx makes another state at the {end}: {want_tree}, not {got_tree}.")
    pairs = zip(flatten(wanted).items(), jax.tree.leaves(state), strict=True)
    wrong = [
        f"{path!r}: tx has {describe(want)}, not {describe(got)}"
        for (path, want), got in pairs
        if want.shape != got.shape
    ]
    if wrong:
        raise StructureError(f"tx makes another state at the {end}:\n" + listing(wrong))


def _train(tx: Any, params: Any, state: Any, loss: Any) -> Any:
    """Returns the parameters after the updates; line searches and the like are given the loss under optax's names."""

    @jax.jit
    def step(params: Any, state: Any, i: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, i)

        def value_fn(params: Any, obj_fn: Any = None, grad_fn: Any = None) -> Any:
            return loss(params, i)  # line searches hand on whatever else was given, to parameters of these names

        given = {
            "value": value, "grad": grads, "value_fn": value_fn, "obj_fn": value_fn,
            "grad_fn": lambda params, _: jax.grad(loss)(params, i),
        }  # fmt: skip
        updates, state = tx.update(grads, state, params, **_accepted(tx.update, given))
        return jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates), state

    for i in range(STEPS):
        params, state = step(params, state, jnp.float32(i))
    return params


def _accepted(update: Any, extra: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(update).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return extra
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in extra.items() if name in names}
