"""Evaluation: how a model is called so that it does not train, with the inputs that both models are given.

Models say it in different ways: an argument (`is_training`, `train`, `deterministic`, `use_running_average`), an attribute
that `eval()` sets (NNX), a flag of the running context (`bridges.Module`). What the caller passes is left as it is; what is
left open is set for evaluation. So one call serves two models of which one takes a flag and the other takes none.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from bridges._infer._model import Model
from bridges.core._training import TRAINING

_ATTRIBUTES = ("is_training", "training")  # beside what NNX's own eval() sets


def evaluated(model: Model) -> Model:
    """Returns the model in evaluation mode, as far as the model itself holds the mode (NNX)."""
    if model.framework != "nnx":
        return model
    from flax import nnx

    def change(module: Any) -> Any:
        heads = [module] if isinstance(module, nnx.Module) else [m for _, m in nnx.iter_modules(module, graph=True)]
        for head in heads:
            type(head).eval(head)  # a submodule may be called eval
            type(head).set_attributes(head, raise_if_not_found=False, graph=True, **dict.fromkeys(_ATTRIBUTES, False))
        return module

    made = model.model
    if isinstance(made, nnx.Pytree):
        return Model("nnx", change(nnx.clone(made, graph=True)), model.name)

    from bridges._nnx._maker import Maker

    def with_rngs(rngs: nnx.Rngs) -> Any:
        return change(made(rngs=rngs))

    return Model("nnx", with_rngs if Maker(made).takes_rngs else lambda: change(made()), model.name)


def call_of(model: Model, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments of a call in evaluation: those that the model takes, and flags that are left open.

    Keyword arguments that the model does not take are left out, and so are flags behind its positional arguments.
    """
    signature = signature_of(model)
    args, kwargs = tuple(args), dict(kwargs)
    if signature is None:
        return args, kwargs
    parameters = signature.parameters
    kinds = inspect.Parameter
    if not any(p.kind is kinds.VAR_KEYWORD for p in parameters.values()):
        kwargs = {name: value for name, value in kwargs.items() if name in parameters}
    if not any(p.kind is kinds.VAR_POSITIONAL for p in parameters.values()):
        count = sum(p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD) for p in parameters.values())
        while len(args) > count and isinstance(args[-1], bool):
            args = args[:-1]
    try:
        bound = signature.bind_partial(*args, **kwargs).arguments
    except TypeError:  # the call itself will say what is wrong with its arguments
        return args, kwargs
    for name, training in TRAINING.items():
        parameter = parameters.get(name)
        if parameter is None or name in bound or parameter.kind is kinds.POSITIONAL_ONLY or _fixed(model, name):
            continue
        kwargs[name] = not training
    return args, kwargs


def signature_of(model: Model) -> inspect.Signature | None:
    """Returns the signature of a call of the model with its inputs, None where it cannot be told."""
    try:
        return _SIGNATURES[model.framework](model.model)
    except (AttributeError, TypeError, ValueError):
        return None


def _haiku(model: Any) -> inspect.Signature:
    inner = model
    while isinstance(inner, functools.partial):
        inner = inner.func
    if isinstance(inner, type):
        return _without_first(inner.__call__)
    return inspect.signature(getattr(getattr(model, "init", None), "_original_fn", None) or model)


def _nnx(model: Any) -> inspect.Signature:
    from flax import nnx

    if isinstance(model, nnx.Pytree):
        return _without_first(type(model).__call__)
    from bridges._nnx._maker import Maker

    found: list[type] = []
    jax.eval_shape(lambda: found.append(type(Maker(model).watched()[0])))
    return _without_first(found[-1].__call__)


def _without_first(fn: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(fn)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


_SIGNATURES: dict[str, Callable[[Any], inspect.Signature]] = {
    "haiku": _haiku,
    "linen": lambda model: _without_first(type(model).__call__),
    "nnx": _nnx,
    "core": inspect.signature,
    "function": lambda model: _without_first(model.apply),
}


def _fixed(model: Model, name: str) -> bool:
    """Whether a Linen module has this as a field that is set: it refuses to be told twice."""
    return model.framework == "linen" and getattr(model.model, name, None) is not None
