"""What a wrapper has learned about its calls, by what decides which way a call goes: method, static arguments, shapes.

A learned call costs one look-up here and one run of the module. Nothing here holds an array.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

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

    def fitting(self, call: Call, entries: Mapping[str, Any]) -> Expected | None:
        """Returns an expectation of the same method that these entries meet, whatever the inputs' shapes were."""
        for key, learned in list(self.calls.items()):
            expected = learned.expected
            if not expected or key[0][0] != call.method or not expected.entries.keys() <= entries.keys():
                continue
            if all(np.shape(entries[path]) == want.shape for path, want in expected.entries.items()):
                return expected
        return None
