"""Plain data, as TOML and JSON have it, of what is frozen and hashable here; and that a table has no unknown key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bridges.core._errors import MappingError, hint


def frozen(value: Any) -> Any:
    """Returns a constant as plain hashable data: arrays and lists become nested tuples."""
    if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__array__"):
        array = np.asarray(value)
        value = (array if array.dtype.kind in "biu" else array.astype(np.float64)).tolist()
    return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value


def thawed(value: Any) -> Any:
    """Returns the constant with lists for tuples, as TOML and JSON want it."""
    return [thawed(v) for v in value] if isinstance(value, tuple) else value


def check_keys(what: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises a MappingError for a key that is not known."""
    if not isinstance(given, Mapping):
        raise MappingError(f"{what} is a table, not {given!r}.")
    for key in given:
        if key not in known:
            raise MappingError(f"{what} has no key {key!r}.{hint(key, known)} It has {', '.join(known)}.")
