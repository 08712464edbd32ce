"""What a wrapper has learned about its calls, by what decides which way a call goes: method, static arguments, shapes.

A learned call costs one look-up here and one run of the module. Nothing here holds an array.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from flax import linen as nn

from bridges._linen._call import Call
from bridges._linen._observe import Traits
from bridges._linen._structure import Expected, Template


@dataclasses.dataclass
class Learned:
    """What is known of the calls of one signature.

    Attributes:
      expected: What `init` makes for such a call; None while it was not needed, False if it cannot be said.
      traits: What the call does; None until one was run.
      templates: How sets of entries nest.
      checked: The sets of entries that such a call was found to be fine with.
    """

    expected: Expected | Literal[False] | None = None
    traits: Traits | None = None
    templates: dict[Any, Template] = dataclasses.field(default_factory=dict)
    checked: set[Any] = dataclasses.field(default_factory=set)


class Memory:
    """What one wrapper has learned. Threads may share it: it is only added to, or begun anew when it has grown large.

    A copy of a wrapper learns for itself.
    """

    __slots__ = ("calls",)
    MOST = 512  # A call with a Python number that changes every time is a new one every time.

    def __init__(self) -> None:
        self.calls: dict[Any, Learned] = {}

    def of(self, call: Call, mutable: Any) -> Learned:
        """Returns what is known about calls such as this."""
        signature = call.signature()
        key = (signature, mutable if mutable is None or isinstance(mutable, (bool, str)) else repr(mutable))
        if len(self.calls) > self.MOST:
            self.calls = {}
        return Learned() if signature is None else self.calls.setdefault(key, Learned())

    def __reduce__(self) -> tuple[Any, ...]:
        return Memory, ()

    @classmethod
    def of_model(cls, model: nn.Module) -> Memory:
        """Returns what is known of the calls of an unbound module: equal modules share it, where that can be told.

        A host that is itself made anew at every trace would learn everything anew.
        """
        key = _key(model)
        return cls() if key is None else _shared(key)

    def fitting(self, call: Call, entries: Mapping[str, Any]) -> Expected | None:
        """Returns an expectation of the same method that these entries meet, whatever the inputs' shapes were."""
        for key, learned in list(self.calls.items()):
            expected = learned.expected
            if not expected or key[0][0] != call.method or not expected.entries.keys() <= entries.keys():
                continue
            if all(np.shape(entries[path]) == want.shape for path, want in expected.entries.items()):
                return expected
        return None


@functools.lru_cache(maxsize=512)
def _shared(key: Any) -> Memory:
    return Memory()


def _key(value: Any, depth: int = 8) -> Any:
    """Returns something that is equal for equal values, and holds no array; None if there is no such thing.

    Functions are equal if they are the same code around equal values (`nn.initializers.normal(0.1)`).
    """
    parts: list[Any] | None = None
    if isinstance(value, nn.Module):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value) if field.name != "parent"]
    elif isinstance(value, (tuple, list)):
        parts = list(value)
    elif isinstance(value, functools.partial):
        parts = [value.func, value.args, sorted(value.keywords.items())]
    elif isinstance(value, types.FunctionType):
        try:
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
        except ValueError:  # One that is not filled yet.
            return None
        named = sorted((value.__kwdefaults__ or {}).items())
        parts = [cells, value.__defaults__ or (), named, id(value.__globals__)]
    elif value is None or isinstance(value, (bool, int, float, complex, str, type, np.dtype)):
        return type(value), value
    keys = None if parts is None or not depth else [_key(part, depth - 1) for part in parts]
    if keys is None or None in keys:
        return None
    return (type(value), getattr(value, "__code__", None), *keys)
