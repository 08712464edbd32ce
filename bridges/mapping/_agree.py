"""Comparing hyperparameters of two layers that a mapping pairs: one normal form for what frameworks write differently."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from bridges.core._spec import Layer
from bridges.mapping._hyper import Agree, Hyper

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


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """What a padding that is given by name depends on, beside the input: one number a dimension each."""

    sizes: tuple[int, ...]
    dilations: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, names: tuple[str, ...], layer: Layer) -> _Kernel | None:
        """Returns the kernel of a layer, given the names of its size, dilation and stride; None if it does not tell."""
        size, dilation, stride = (layer.hyperparameters.get(name) for name in names or ("", "", ""))
        if not isinstance(size, (int, list, tuple)):
            return None
        sizes = (size,) if isinstance(size, int) else tuple(size)
        rest = [_each(1 if value is None else value, len(sizes)) for value in (dilation, stride)]
        return cls(sizes, *rest)

    def pairs(self, name: str) -> Any:
        """Returns the padding of this name as pairs; the name itself where the size of the input decides."""
        reach = [(k - 1) * d for k, d in zip(self.sizes, self.dilations, strict=True)]
        if name == "VALID":
            return tuple((0, 0) for _ in reach)
        if name == "CAUSAL" and len(reach) == 1:
            return ((reach[0], 0),)
        if name == "SAME" and set(self.strides) == {1}:
            return tuple((n // 2, n - n // 2) for n in reach)
        return name

    def cuts(self, name: str) -> Any:
        """As `pairs`, for a transposed convolution (`jax.lax.conv_transpose`, jax 0.10.2): the input decides nothing."""
        if name not in ("SAME", "VALID"):
            return name
        found = []
        for size, dilation, stride in zip(self.sizes, self.dilations, self.strides, strict=True):
            reach = (size - 1) * dilation
            if name == "VALID":
                found.append((reach, stride - 1 + max(reach + 1 - stride, 0)))
            else:
                low = reach if stride > reach else (reach + stride) // 2
                found.append((low, reach + stride - 1 - low))
        return tuple(found)


def _each(value: Any, count: int) -> tuple[int, ...]:
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * count if len(value) == 1 else value


def _padding(value: Any, kernel: _Kernel | None, two: bool, transposed: bool) -> Any:
    """Returns pairs, one a dimension; without a kernel, one for all where they are alike.

    Args:
      value: A name, a number, or a sequence of numbers or pairs.
      kernel: What the name means in pairs depends on it.
      two: Two numbers are the low and the high side of every dimension (Haiku), else one number a dimension (Flax).
      transposed: Whether the convolution is a transposed one.
    """
    if isinstance(value, str):
        if not value.isidentifier():
            return UNKNOWN  # the name of a function of the sizes
        name = value.upper()
        return name if kernel is None else kernel.cuts(name) if transposed else kernel.pairs(name)
    if isinstance(value, int):
        value = (value,)
    elif not isinstance(value, (list, tuple)):
        return UNKNOWN  # a function of the sizes
    elif two and len(value) == 2 and all(isinstance(v, int) for v in value):
        value = (tuple(value),)
    pairs = tuple((v, v) if isinstance(v, int) else tuple(v) for v in value)
    if kernel is None:
        return pairs[0] if len(set(pairs)) == 1 else pairs
    return pairs * len(kernel.sizes) if len(pairs) == 1 else pairs


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


def _trailing(value: Any) -> Any:
    """The axes that are contracted, in any order: True for the last ones, as by a matrix product.

    Axes counted from the front may be the last of the input, unless the very first, that of the batch, is among them.
    """
    value = _plain(value)
    axes = sorted(value) if isinstance(value, tuple) else [value]
    if axes[0] > 0:
        return UNKNOWN
    return axes == list(range(-len(axes), 0)) or tuple(axes)


def _einsum(value: Any) -> Any:
    """An equation with its letters named in the order in which they come."""
    if not isinstance(value, str):
        return UNKNOWN
    letters = list(dict.fromkeys(c for c in value if c.isalpha()))
    return "".join(chr(ord("a") + letters.index(c)) if c.isalpha() else c for c in value if not c.isspace())


def _size(value: Any) -> Any:
    """A number, 0 where there is none."""
    return value or 0


def _function(value: Any) -> Any:
    """The bare name of a function."""
    return value.rpartition(".")[2] if isinstance(value, str) else UNKNOWN


FORMS: dict[str, Callable[[Any], Any]] = {
    "": _plain,
    "window": _window,
    "channels": _channels,
    "last": _last,
    "given": _given,
    "none": _none,
    "one": _one,
    "all but batch": _all_but_batch,
    "trailing": _trailing,
    "einsum": _einsum,
    "size": _size,
    "function": _function,
}


# How padding is written -> whether two numbers are two sides, and whether the convolution is a transposed one.
PADDINGS = {
    "sides": (True, False),
    "dimensions": (False, False),
    "sides, transposed": (True, True),
    "dimensions, transposed": (False, True),
}


def normal(hyper: Hyper, layer: Layer) -> Any:
    """Returns the layer's value in the normal form, `UNKNOWN` where the layer does not tell."""
    if hyper.value is not None:
        return hyper.value
    value = layer.hyperparameters.get(hyper.name, hyper.default)
    if value is None and hyper.form not in ("window", "given", "none", "size"):
        return UNKNOWN
    if hyper.form in PADDINGS:
        value = _padding(value, _Kernel.of(hyper.window, layer), *PADDINGS[hyper.form])
    else:
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
    if isinstance(a, tuple) and isinstance(b, tuple) and 1 in (len(a), len(b)):
        return set(a) == set(b)  # one pair for all dimensions
    return bool(a == b)
