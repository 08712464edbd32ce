"""Nodes: what a pickle says, inert. A graph of these holds names and calls, and nothing of it was looked up or made."""

from __future__ import annotations

from typing import Any


class Global:
    """A dotted name, not looked up."""

    __slots__ = ("name", "offset")

    def __init__(self, name: str, offset: int):
        self.name, self.offset = name, offset


class Call:
    """A call of whatever `fn` is, not made, and what was done to its result.

    Attributes:
      fn: A `Global`, or any other node in a damaged or hostile file.
      args: A node: the `Items` of the arguments.
      kwargs: A node, None if there were none.
      new: Whether `fn.__new__` was meant (NEWOBJ) and not `fn` (REDUCE).
      state: What BUILD gave, `MISSING` if there was none.
      items, pairs: What was appended, and set as items.
      raw: The `Payload` that followed the object, outside the pickle's own stream (joblib).
    """

    __slots__ = ("fn", "args", "kwargs", "new", "state", "items", "pairs", "raw", "offset")

    def __init__(self, fn: Any, args: Any, kwargs: Any, new: bool, offset: int):
        self.fn, self.args, self.kwargs, self.new, self.offset = fn, args, kwargs, new, offset
        self.state: Any = MISSING
        self.items: list[Any] = []
        self.pairs: list[tuple[Any, Any]] = []
        self.raw: Payload | None = None


class Items:
    """A list, tuple, set or frozenset (`kind`) of nodes."""

    __slots__ = ("kind", "items", "offset")

    def __init__(self, kind: type, items: list[Any], offset: int):
        self.kind, self.items, self.offset = kind, items, offset


class Pairs:
    """A dictionary: keys may repeat and be anything still."""

    __slots__ = ("pairs", "offset")

    def __init__(self, pairs: list[tuple[Any, Any]], offset: int):
        self.pairs, self.offset = pairs, offset


class Payload:
    """A long string of the file: `length` bytes from `offset` on, as they are or (`text`) as UTF-8."""

    __slots__ = ("offset", "length", "text")

    def __init__(self, offset: int, length: int, text: bool = False):
        self.offset, self.length, self.text = offset, length, text


MISSING = Global("", -1)


def name_of(node: Any) -> str:
    """Returns the dotted name of a node that is one, an empty text for any other."""
    return node.name if isinstance(node, Global) else ""


def state_of(call: Call) -> dict[str, Any] | None:
    """Returns the attributes that BUILD gave an object, those of slots too; None if it gave none."""
    if call.state is MISSING or call.state is None:
        return None
    found: dict[str, Any] = {}
    parts = call.state.items if isinstance(call.state, Items) else [call.state]
    for part in parts:
        if isinstance(part, Pairs):
            found.update((k, v) for k, v in part.pairs if isinstance(k, str))
    return found
