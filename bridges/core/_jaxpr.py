"""Tracing a function once and running what was traced: the few things that JAX offers outside its main namespace.

`jax.extend.core` is public but may change between releases; everything that this project takes from it is in this file,
and `tests/core/test_jaxpr.py` pins what is relied on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.interpreters import partial_eval

from bridges.core._errors import BridgeError


def trace_state() -> Any:
    """Returns a value that is equal for two calls exactly when both run under the same JAX trace."""
    return jex.get_opaque_trace_state()


def tracing() -> bool:
    """Whether operations are staged out by a JAX transformation, and not run one by one as they come."""
    return type(jex.find_top_trace(())).__name__ != "EvalTrace"


_LIFTED = {
    "jit": "jit", "pjit": "jit", "scan": "scan", "cond": "cond", "switch": "switch", "while_body": "while_loop",
    "while_cond": "while_loop", "fori_loop": "fori_loop", "checkpoint / remat": "checkpoint", "LinearizeTrace": "grad",
    "JVPTrace": "grad", "BatchTrace": "vmap",
}  # fmt: skip


def running_transformation() -> str:
    """Returns which lifted function takes the place of the JAX transformation that runs now; empty if it has none."""
    current = jex.find_top_trace(())
    traced = getattr(getattr(getattr(current, "frame", None), "debug_info", None), "traced_for", "")
    return _LIFTED.get(traced) or _LIFTED.get(type(current).__name__, "")


@dataclasses.dataclass(frozen=True)
class Traced:
    """A function traced once to a jaxpr.

    Attributes:
      closed: The closed jaxpr. Tracers that the function closed over are among its constants.
      in_tree: The structure of the arguments.
      shape: The output tree with `jax.ShapeDtypeStruct` leaves.
    """

    closed: Any
    in_tree: Any
    shape: Any

    def __call__(self, *args: Any) -> Any:
        """Runs the traced operations on arguments of the traced structure; never runs the Python function again."""
        leaves, tree = jax.tree.flatten(args)
        if tree != self.in_tree:
            raise BridgeError(
                f"A traced function was called with another structure than it was traced with: got {tree}, wanted"
                f" {self.in_tree}. Return and pass values of one structure in every iteration or branch."
            )
        out = jex.jaxpr_as_fun(self.closed)(*leaves)
        return jax.tree.unflatten(jax.tree.structure(self.shape), out)

    def needed(self) -> Traced:
        """Returns the same function without the operations that no output depends on."""
        jaxpr = self.closed.jaxpr
        wanted = {var for var in jaxpr.outvars if not isinstance(var, jex.Literal)}
        kept = []
        for eqn in reversed(jaxpr.eqns):
            if any(var in wanted for var in eqn.outvars):
                kept.append(eqn)
                wanted.update(var for var in eqn.invars if not isinstance(var, jex.Literal))
        pruned = jaxpr.replace(eqns=kept[::-1])
        return dataclasses.replace(self, closed=jex.ClosedJaxpr(pruned, self.closed.consts))


def trace(fn: Callable[..., Any], *args: Any) -> Traced:
    """Traces `fn(*args)` once, with every leaf of `args` abstract."""
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    return Traced(closed, jax.tree.structure(args), shape)


def depends(fn: Callable[..., Any], *args: Any) -> bool:
    """Returns whether any output of `fn(*args)` is computed from an argument, which may pass through loops unused."""
    closed = jax.make_jaxpr(fn)(*args)
    _, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return any(used)


def inner(eqn: Any) -> list[tuple[Any, slice, slice, slice, slice]]:
    """Returns the jaxprs inside an equation, none where it has none whose inputs are known to be the equation's.

    Each comes with the slice of the equation's inputs that are its own, the slice of these that it carries from one
    iteration to the next, the slice of its outputs that are the equation's, and the slice of the equation's inputs that a
    scan reads from the last to the first.
    """
    none, all_ = slice(0, 0), slice(None)
    params, count = eqn.params, len(eqn.invars)
    name = eqn.primitive.name
    if name == "while":
        first, body = params["cond_nconsts"], params["body_nconsts"]
        return [(_open(params["body_jaxpr"]), slice(first, None), slice(body, None), all_, none)]
    if name == "scan":
        constants, carry = scan_counts(params)
        carried = slice(constants, constants + carry)
        back = slice(carried.stop, None) if params["reverse"] else none
        return [(_open(params["jaxpr"]), all_, carried, all_, back)]
    if name == "cond":
        return [(_open(branch), slice(1, None), none, all_, none) for branch in params["branches"]]
    bodies = [_open(value) for value in params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")]
    return [
        (body, all_, none, all_, none)
        for body in bodies[:1]
        if len(body.invars) == count and len(body.outvars) == len(eqn.outvars)
    ]


def scan_counts(params: Any) -> tuple[int, int]:
    """Returns how many of a scan's inputs are constants, and how many after them are its carry.

    `num_consts` and `num_carry` in jax 0.10; from 0.12 on the lengths of three flat trees, constants, carry and slices
    (jax/_src/lax/control_flow/loops.py).
    """
    if "ft_in" in params:
        constants, carry, _ = params["ft_in"].elts
        return len(constants), len(carry)
    return params["num_consts"], params["num_carry"]


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _bodies(eqn: Any) -> Iterator[Any]:
    """Yields every jaxpr among the parameters of an equation."""
    for value in eqn.params.values():
        for body in value if isinstance(value, (tuple, list)) else (value,):
            body = _open(body)
            if hasattr(body, "eqns"):
                yield body


def count(jaxpr: Any) -> int:
    """Returns how many operations a jaxpr and those inside it have, loops counted once."""
    return sum(1 + sum(map(count, _bodies(eqn))) for eqn in jaxpr.eqns)


def distinct(jaxpr: Any) -> int:
    """Returns how many of these operations differ in what they are or in the shapes and dtypes that they are given."""
    return len(_signatures(jaxpr))


def _signatures(jaxpr: Any) -> set[Any]:
    own = {(eqn.primitive.name, *(var.aval for var in eqn.invars)) for eqn in jaxpr.eqns}
    return own.union(*(_signatures(body) for eqn in jaxpr.eqns for body in _bodies(eqn)))


def narrower(jaxpr: Any, itemsize: int) -> str:
    """Returns a floating dtype below the item size in which something is computed; empty if there is none."""
    for eqn in jaxpr.eqns:
        for var in eqn.outvars:
            if _is_narrower(var.aval, itemsize):
                return str(var.aval.dtype)
        for body in _bodies(eqn):
            if found := narrower(body, itemsize):
                return found
    return ""


def _is_narrower(aval: Any, itemsize: int) -> bool:
    dtype = getattr(aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < itemsize and aval.shape != ()
