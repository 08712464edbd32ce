"""Growing: the context of a call that may add collections which the caller named, as `Module.apply(mutable=…)` of Linen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bridges.core._context import Context
from bridges.core._flat import SEPARATOR, under
from bridges.core._kind import Kind


class Growing(Context):
    """A context in which entries may be created below some paths, and nowhere else.

    Args:
      entries: As for `Context`.
      below: The paths.
      **options: As for `Context`.
    """

    __slots__ = ("below",)

    def __init__(self, entries: Mapping[str, Any], below: Iterable[str], **options: Any):
        super().__init__(entries, **options)
        self.below = tuple(below)

    def write(self, path: str, value: Any, kind: Kind | None = None) -> Any:
        if path in self or self.create or not any(under(path, prefix) for prefix in self.below):
            return super().write(path, value, kind)
        self.create = True
        try:
            return super().write(path, value, kind)
        finally:
            self.create = False


def collections_named(mutable: Any, present: Iterable[str]) -> list[str]:
    """Returns the collections that `mutable=` names and that have no entry.

    Args:
      mutable: What `Module.apply` takes. A filter (True, `DenyList`) names none.
      present: Paths of entries, each below its collection.
    """
    names = [mutable] if isinstance(mutable, str) else mutable if isinstance(mutable, (list, tuple, set)) else ()
    there = {path.partition(SEPARATOR)[0] for path in present}
    return [name for name in names if name not in there and name != "params"]
