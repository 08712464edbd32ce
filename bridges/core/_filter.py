"""Filters: which entries of a state are meant, by kind, path or value."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bridges.core._errors import FilterError
from bridges.core._flat import under
from bridges.core._kind import Kind, Variable, kind_type

Filter = Any  # Kind | ... | bool | str | Callable[[str, Any], bool] | tuple[Filter, ...] | Not | PathMatches


class Not:
    """A filter that matches what the given filters do not match."""

    def __init__(self, *filters: Filter):
        self.matches = predicate(filters)

    def __call__(self, path: str, value: Any, kind: Kind) -> bool:
        return not self.matches(path, value, kind)


class PathMatches:
    """A filter that matches the whole path against a regular expression.

    >>> from bridges.core import State
    >>> State({'net/w': 1, 'net/b': 2}).filter(PathMatches(r'.*/w'))
    State({'net/w': 1})
    """

    def __init__(self, pattern: str):
        self.pattern = re.compile(pattern)

    def __call__(self, path: str, value: Any, kind: Kind) -> bool:
        return self.pattern.fullmatch(path) is not None


class _IsArray:
    """A filter that matches NumPy and JAX arrays (tracers included)."""

    def __call__(self, path: str, value: Any, kind: Kind) -> bool:
        return isinstance(value, (np.ndarray, np.generic, jax.Array))

    def __repr__(self) -> str:
        return "bridges.arrays"


arrays = _IsArray()


def predicate(filters: Filter) -> Callable[[str, Any, Kind], bool]:
    if isinstance(filters, (tuple, list)):
        parts = [predicate(f) for f in filters]
        return lambda path, value, kind: any(part(path, value, kind) for part in parts)
    if filters is ... or filters is True:
        return lambda path, value, kind: True
    if filters is False or filters is None:
        return lambda path, value, kind: False
    if isinstance(filters, (Not, PathMatches, _IsArray)):
        return filters
    if isinstance(filters, type) and issubclass(filters, Variable):
        return lambda path, value, kind: issubclass(kind_type(kind), filters)
    if isinstance(filters, Variable):
        return lambda path, value, kind: kind == filters
    if isinstance(filters, str):
        return lambda path, value, kind: under(path, filters)
    if callable(filters):
        return lambda path, value, kind: bool(filters(path, value))
    raise FilterError(
        f"{filters!r} is not a filter. A filter is a kind (bridges.Param), ..., a path or prefix, a predicate"
        " (path, value) -> bool, bridges.Not(…), bridges.PathMatches(regex), bridges.arrays, or a tuple of these."
    )
