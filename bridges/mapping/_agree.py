"""Comparing hyperparameters of two layers that a mapping pairs: one normal form for what frameworks write differently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bridges.core._spec import Layer
from bridges.mapping._rule import Agree, Hyper

UNKNOWN = object()


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        value = tuple(map(_plain, value))
        return value[0] if len(value) == 1 else value
    return value


def _window(value: Any) -> Any:
    """Strides and dilations: None is 1, `(2, 2)` is 2."""
    value = 1 if value is None else _plain(value)
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _pairs(value: Any, one: Callable[[int], Any]) -> Any:
    if isinstance(value, str):
        return value.upper() if value.isidentifier() else UNKNOWN  # the name of a function of the sizes
    if isinstance(value, int):
        return (value, value)
    if not isinstance(value, (list, tuple)):
        return UNKNOWN  # a function of the sizes
    pairs = tuple(one(v) if isinstance(v, int) else tuple(v) for v in value)
    return pairs[0] if len(set(pairs)) == 1 else pairs


def _sides(value: Any) -> Any:
    """Haiku's padding: two numbers are low and high, for every dimension."""
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(v, int) for v in value):
        return tuple(value)
    return _pairs(value, lambda n: (n, n))


def _dimensions(value: Any) -> Any:
    """Flax's padding: one number a dimension, for both of its sides."""
    return _pairs(value, lambda n: (n, n))


def _channels(value: Any) -> Any:
    """Haiku's data format: whether the channels come last."""
    return value == "channels_last" or (isinstance(value, str) and value.endswith("C"))


FORMS: dict[str, Callable[[Any], Any]] = {
    "": _plain,
    "window": _window,
    "sides": _sides,
    "dimensions": _dimensions,
    "channels": _channels,
}


def normal(hyper: Hyper, layer: Layer) -> Any:
    """Returns the layer's value in the normal form, `UNKNOWN` where the layer does not tell."""
    if hyper.value is not None:
        return hyper.value
    value = layer.hyperparameters.get(hyper.name, hyper.default)
    if value is None and hyper.form != "window":
        return UNKNOWN
    value = FORMS[hyper.form](value)
    return UNKNOWN if callable(value) else value


def difference(agree: Agree, src: Layer, dst: Layer) -> tuple[Any, Any] | None:
    """Returns the two values if they are known and differ, None otherwise."""
    if agree.src is None or agree.dst is None:
        return None
    values = normal(agree.src, src), normal(agree.dst, dst)
    if UNKNOWN in values or _same(*values):
        return None
    return values


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= 1e-7 * max(abs(a), abs(b))  # one may have been through float32
    return bool(a == b)
