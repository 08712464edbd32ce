"""Numbers: what a step gives, computed in float64 whatever the model's own precision is.

The common operations are done by NumPy, which compiles nothing; the others by JAX, operation by operation. Real numbers of
all widths are float64 here: a cast to float32 or bfloat16 in the model is no difference between two networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges._infer._graph import Step

_UNARY: dict[str, Callable[[Any], Any]] = {
    "neg": np.negative, "exp": np.exp, "log": np.log, "log1p": np.log1p, "expm1": np.expm1, "tanh": np.tanh,
    "sin": np.sin, "cos": np.cos, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "square": np.square,
    "abs": np.abs, "sign": np.sign, "floor": np.floor, "ceil": np.ceil, "exp2": np.exp2, "is_finite": np.isfinite,
    "copy": lambda x: x, "copy_p": lambda x: x, "stop_gradient": lambda x: x, "reduce_precision": lambda x: x,
    "optimization_barrier": lambda x: x, "sharding_constraint": lambda x: x,
}  # fmt: skip
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum, "min": np.minimum,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "pow": np.power, "atan2": np.arctan2,
}  # fmt: skip
_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "reduce_sum": np.sum, "reduce_max": np.max, "reduce_min": np.min, "reduce_prod": np.prod, "reduce_or": np.any,
    "reduce_and": np.all,
}  # fmt: skip
ELEMENTWISE = {
    *_UNARY, *_BINARY, "div", "logistic", "integer_pow", "erf", "erfc", "convert_element_type", "rem", "clamp", "erf_inv",
    "not", "and", "or", "xor", "nextafter", "round", "cbrt", "tan", "sinh", "cosh", "lgamma",
}  # fmt: skip


def host(x: Any) -> Any:
    """Returns an array of NumPy, float64 if it is real, complex128 if it is complex; random keys as they are."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    x = np.asarray(x)
    if x.dtype == np.complex64:
        return x.astype(np.complex128)
    return x.astype(np.float64) if jnp.issubdtype(x.dtype, np.floating) else x


def numbers(step: Step, ins: Sequence[Any]) -> list[Any]:
    """Returns the arrays that a step makes of these.

    Args:
      step: The step.
      ins: Arrays of NumPy, real ones float64.
    """
    with np.errstate(all="ignore"):
        found = _quick(step, ins)
    return [host(x) for x in (_slow(step, ins) if found is None else found)]


def _quick(step: Step, ins: Sequence[Any]) -> list[Any] | None:
    name, params = step.name, step.params
    if any(not isinstance(x, np.ndarray) for x in ins) or step.primitive is None:
        return None
    if name == "optimization_barrier":
        return list(ins)
    if name in _UNARY:
        return [_UNARY[name](ins[0])]
    if name in _BINARY and all(x.dtype.kind in "fiub" for x in ins):
        if name == "max":
            return [np.maximum(*ins)]
        return [_BINARY[name](*ins)]
    if name == "div" and ins[0].dtype.kind == "f":
        return [ins[0] / ins[1]]
    if name == "logistic":
        return [1 / (1 + np.exp(-ins[0]))]
    if name == "integer_pow" and ins[0].dtype.kind == "f":
        return [ins[0] ** params["y"]]
    if name in _REDUCTIONS:
        return [np.asarray(_REDUCTIONS[name](ins[0], axis=tuple(params["axes"]))).astype(ins[0].dtype)]
    if name == "convert_element_type":
        wanted = params["new_dtype"]
        return [ins[0].astype(np.float64 if jnp.issubdtype(wanted, np.floating) else wanted)]
    if name == "dot_general" and ins[0].dtype.kind == "f" and ins[1].dtype.kind == "f":
        return [_dot(ins[0], ins[1], params["dimension_numbers"])]
    if name == "reshape" and params.get("dimensions") is None:
        return [ins[0].reshape(params["new_sizes"])]
    if name == "transpose":
        return [ins[0].transpose(params["permutation"])]
    if name == "squeeze":
        return [ins[0].reshape([n for i, n in enumerate(ins[0].shape) if i not in params["dimensions"]])]
    if name == "broadcast_in_dim" and len(ins) == 1:
        shape = [1] * len(params["shape"])
        for n, axis in zip(ins[0].shape, params["broadcast_dimensions"], strict=True):
            shape[axis] = n
        return [np.broadcast_to(ins[0].reshape(shape), params["shape"])]
    if name == "concatenate":
        return [np.concatenate(ins, params["dimension"])]
    if name == "slice":
        strides = params["strides"] or (1,) * ins[0].ndim
        spans = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
        return [ins[0][tuple(slice(*span) for span in spans)]]
    if name == "select_n" and len(ins) == 3:  # what says which may have become numbers
        return [np.where(np.asarray(ins[0]).astype(bool), ins[2], ins[1])]
    if name == "iota":
        return None
    return None


def _dot(a: np.ndarray, b: np.ndarray, numbers: Any) -> np.ndarray:
    a, b = (operand(x, kept, batch, 0) for x, kept, batch in zip((a, b), numbers[0], numbers[1], strict=True))
    (a, batch, free_a), (b, _, free_b) = a, b
    return (a @ b.transpose(0, 2, 1)).reshape(*batch, *free_a, *free_b)


def operand(x: np.ndarray, contracted: Sequence[int], batch: Sequence[int], _: int = 0) -> Any:
    """Returns an operand of a dot as [batch, free, contracted], and the sizes of its batch axes and free axes."""
    free = [i for i in range(x.ndim) if i not in contracted and i not in batch]
    sizes = [[x.shape[i] for i in axes] for axes in (batch, free, contracted)]
    moved = x.transpose([*batch, *free, *contracted]).reshape([int(np.prod(s)) for s in sizes])
    return moved, sizes[0], sizes[1]


def _slow(step: Step, ins: Sequence[Any]) -> list[Any]:
    if step.primitive is None:  # a slice or stack of an unrolled scan
        if step.name == "stack":
            return [np.stack(ins)] if isinstance(ins[0], np.ndarray) else step.run(*ins)
        return step.run(*ins)
    params = dict(step.params)
    if params.get("preferred_element_type") is not None and jnp.issubdtype(
        params["preferred_element_type"], np.floating
    ):
        params["preferred_element_type"] = np.dtype(np.float64)
    if step.name == "convert_element_type" and jnp.issubdtype(params["new_dtype"], np.floating):
        params["new_dtype"] = np.dtype(np.float64)
    if step.name == "iota" and jnp.issubdtype(params["dtype"], np.floating):
        params["dtype"] = np.dtype(np.float64)
    if any(np.iscomplexobj(x) for x in ins if isinstance(x, np.ndarray)):  # in the model, cast before
        ins = [x.astype(np.complex128) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in ins]
    with jax.enable_x64(True):
        if step.primitive.multiple_results or step.name == "bitcast_convert_type":
            return step.run(*ins)
        return step.with_params(params)(*ins)
