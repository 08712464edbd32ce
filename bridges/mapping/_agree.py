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


def _last(value: Any) -> Any:
    """The axis of the channels: True for the last; False for the second, where there are more."""
    value = _plain(value)
    return {-1: True, 1: False}.get(value, value) if isinstance(value, int) else value


def _given(value: Any) -> bool:
    """Whether there is one at all, whatever it is."""
    return value is not None and value is not False


def _none(value: Any) -> bool:
    """Whether there is nothing, or an empty collection (of Flax's frozen dictionaries only the text is known)."""
    return value is None or value in ((), {}, "FrozenDict({})")


def _one(value: Any) -> bool:
    """Whether a single axis is meant."""
    return isinstance(_plain(value), int)


def _all_but_batch(value: Any) -> bool:
    """Haiku's axes to normalise in groups: whether they are all but the first.

    A call replaces the slice by numbers that leave out the axis of the groups: the last but one, or the second.
    """
    if not isinstance(value, (list, tuple)) or not value:
        return bool(value == slice(1, None))
    axes, end = sorted(value), max(value)
    return axes in ([*range(1, end - 1), end], list(range(2, end + 1)))


def _function(value: Any) -> Any:
    """The bare name of a function."""
    return value.rpartition(".")[2] if isinstance(value, str) else UNKNOWN


FORMS: dict[str, Callable[[Any], Any]] = {
    "": _plain,
    "window": _window,
    "sides": _sides,
    "dimensions": _dimensions,
    "channels": _channels,
    "last": _last,
    "given": _given,
    "none": _none,
    "one": _one,
    "all but batch": _all_but_batch,
    "function": _function,
}


def normal(hyper: Hyper, layer: Layer) -> Any:
    """Returns the layer's value in the normal form, `UNKNOWN` where the layer does not tell."""
    if hyper.value is not None:
        return hyper.value
    value = layer.hyperparameters.get(hyper.name, hyper.default)
    if value is None and hyper.form not in ("window", "given", "none"):
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
