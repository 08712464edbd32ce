"""Filters: which entries of a state are meant, by kind, path, module or value.

A filter answers for one entry. Where several are given, as to `State.partition`, an entry goes to the first that matches.
What looks like a filter and would match something else than was meant (a kind or a filter of Flax, a filter behind `...`)
is an error.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from bridges.core._errors import FilterError
from bridges.core._flat import SEPARATOR, under
from bridges.core._kind import Kind, Variable, kind_type

# Kind | type of array | ... | bool | None | str | Module | Callable[[str, Any], bool] | tuple[Filter, ...] | Not | All | …
Filter = Any
Matches = Callable[[str, Any, Kind], bool]


class Located:
    """Something with a path in the state, such as a module: as a filter it stands for the entries at or below it."""

    path: Any


class _Own:
    """Base of the filters defined here: equal, and with one hash, where their arguments are."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __call__(self, path: str, value: Any, kind: Kind) -> bool:
        """Whether the entry is meant."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.arguments == other.arguments

    def __hash__(self) -> int:
        return hash((type(self), self.arguments))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.arguments))})"


class Not(_Own):
    """A filter that matches what none of the given filters matches."""

    def __init__(self, *filters: Filter):
        super().__init__(*filters)
        self.matches = predicate(filters)

    def __call__(self, path: str, value: Any, kind: Kind) -> bool:
        return not self.matches(path, value, kind)


class All(_Own):
    """A filter that matches what every one of the given filters matches; a tuple of filters is any of them.

    >>> from bridges.core import Param, State
    >>> State({'net/w': 1.0, 'net/lora/a': 1.0}, {'net/lora/a': Param}).filter(All(Param, PathContains('lora')))
    State({'net/lora/a': 1.0})
    """

    def __init__(self, *filters: Filter):
        super().__init__(*filters)
        self.matches = [predicate(f) for f in filters]

    def __call__(self, path: str, value: Any, kind: Kind) -> bool:
        return all(matches(path, value, kind) for matches in self.matches)


class PathMatches(_Own):
    """A filter that matches the whole path against a regular expression.

    >>> from bridges.core import State
    >>> State({'net/w': 1, 'net/b': 2}).filter(PathMatches(r'.*/w'))
    State({'net/w': 1})
    """

    def __init__(self, pattern: str):
        super().__init__(pattern)
        try:
            self.pattern = re.compile(pattern)
        except (re.error, TypeError) as err:
            raise FilterError(f"PathMatches({pattern!r}) is no regular expression: {err}.") from err

    def __call__(self, path: str, value: Any, kind: Kind) -> bool:
        return self.pattern.fullmatch(path) is not None


class PathContains(_Own):
    """A filter that matches paths with a segment, or several in a row, given as they stand in a path.

    >>> from bridges.core import State
    >>> State({'net/w': 1, 'net/wide/b': 2, 'w/b': 3}).filter(PathContains('w'))
    State({'net/w': 1, 'w/b': 3})
    """

    def __init__(self, segments: str | int):
        super().__init__(str(segments))

    def __call__(self, path: str, value: Any, kind: Kind) -> bool:
        return f"{SEPARATOR}{self.arguments[0]}{SEPARATOR}" in f"{SEPARATOR}{path}{SEPARATOR}"


class _IsArray(_Own):
    """A filter that matches NumPy and JAX arrays (tracers included)."""

    def __call__(self, path: str, value: Any, kind: Kind) -> bool:
        return isinstance(value, (np.ndarray, np.generic, jax.Array))

    def __repr__(self) -> str:
        return "bridges.arrays"


arrays = _IsArray()
_ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)


def is_filter(given: Any) -> bool:
    """Whether this can be nothing but a filter: a kind, or one of those defined here."""
    return isinstance(given, (_Own, Variable)) or (isinstance(given, type) and issubclass(given, Variable))


def predicates(filters: Sequence[Filter]) -> list[Matches]:
    """Returns the filters as functions of path, value and kind.

    Raises:
      FilterError: One is no filter, or stands behind `...` and could match nothing.
    """
    for i, found in enumerate(filters):
        after = [f for f in filters[i + 1 :] if f is not ... and f is not True]
        if (found is ... or found is True) and after:
            raise FilterError(f"{after[0]!r} stands behind {found!r}, which leaves nothing: put {found!r} last.")
    return [predicate(f) for f in filters]


def predicate(filters: Filter) -> Matches:
    """Returns a filter as a function of path, value and kind.

    Raises:
      FilterError: It is no filter.
    """
    if isinstance(filters, (tuple, list)):
        parts = [predicate(f) for f in filters]
        return lambda path, value, kind: any(part(path, value, kind) for part in parts)
    if filters is ... or filters is True:
        return lambda path, value, kind: True
    if filters is False or filters is None:
        return lambda path, value, kind: False
    if isinstance(filters, _Own):
        return filters
    if isinstance(filters, type):
        return _of_type(filters)
    if isinstance(filters, Variable):
        return lambda path, value, kind: kind == filters
    if isinstance(filters, Located):
        return _under(filters.path)
    if isinstance(filters, str):
        return _under(filters)
    if type(filters).__module__.startswith("flax."):
        raise FilterError(
            f"{filters!r} is Flax's filter, which sees paths as tuples and other kinds. Write bridges.Not, bridges.All, a"
            " tuple for Any, bridges.PathContains; a string is a path here, and a kind stands for a tag."
        )
    if callable(filters):
        _check_arguments(filters)
        return lambda path, value, kind: bool(filters(path, value))
    raise FilterError(
        f"{filters!r} is not a filter. A filter is a kind (bridges.Param), ..., a path or prefix, a module, a predicate"
        " (path, value) -> bool, bridges.Not(…), bridges.All(…), bridges.PathMatches(regex), bridges.PathContains(name),"
        " bridges.arrays, or a tuple of these."
    )


def _under(prefix: str) -> Matches:
    return lambda path, value, kind: under(path, prefix)


def _of_type(cls: type) -> Matches:
    if issubclass(cls, Variable):
        return lambda path, value, kind: issubclass(kind_type(kind), cls)
    if issubclass(cls, _ARRAYS):
        return lambda path, value, kind: isinstance(value, cls)
    same = [ours for ours in _kinds(Variable) if ours.__name__ == cls.__name__]
    raise FilterError(
        f"{cls.__module__}.{cls.__qualname__} is no kind of entry and no type of array."
        + (f" {same[0].__module__.split('.')[0]}.{cls.__name__} is one." if same else "")
        + " A kind is a subclass of bridges.Variable; by its values an entry is chosen with a predicate"
        " (path, value) -> bool."
    )


def _kinds(cls: type[Variable]) -> list[type[Variable]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _kinds(child))]


def _check_arguments(fn: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # A callable without one, such as a built-in.
        return
    try:
        signature.bind("path", None)
    except TypeError as err:
        raise FilterError(
            f"The predicate {fn!r} takes {signature}, and is called with the path, a string, and the value: {err}."
        ) from err
