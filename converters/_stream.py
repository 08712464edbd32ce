"""Stream: the targets of a plan as lazy leaves, each computed from its lazily read sources when a writer asks for it.

A step with several targets (a fused kernel that is split) is computed once while its targets are asked for close to one
another: what is left of its outputs is kept, up to a few megabytes for several steps, and without a limit for the last
one alone. Nothing else is kept.

Invariant: the leaves' values do not depend on the order, or on how often, they are read.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence
from typing import Any

from bridges.core._errors import describe
from converters.formats import LazyLeaf, read_leaf

_KEPT = 32 << 20  # bytes of outputs of steps other than the last


class Stream:
    """Steps of which each target becomes a lazy leaf."""

    def __init__(self) -> None:
        self._held: collections.OrderedDict[int, dict[int, Any]] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._count = 0

    def step(
        self,
        forward: Callable[[Sequence[Any]], Sequence[Any]],
        sources: Sequence[Any],
        outs: Sequence[Any],
        where: str = "",
    ) -> list[LazyLeaf]:
        """Returns the targets of one step.

        Args:
          forward: From the sources' arrays to the targets'.
          sources: Leaves, lazy or not.
          outs: What the targets are, with a shape and a dtype each.
          where: What an error calls the step.
        """
        number = self._count = self._count + 1

        def reader(i: int) -> Callable[[], Any]:
            return lambda: self._read(number, i, len(outs), lambda: forward([read_leaf(s) for s in sources]))

        return [LazyLeaf(out.shape, out.dtype, reader(i), f"{where} ({describe(out)})") for i, out in enumerate(outs)]

    def _read(self, number: int, i: int, count: int, compute: Callable[[], Sequence[Any]]) -> Any:
        with self._lock:
            held = self._held.get(number)
            if held is None or i not in held:
                self._make_room(number)
                made = list(compute())
                if count == 1:
                    return made[0]
                held = self._held[number] = dict(enumerate(made))
            self._held.move_to_end(number)
            value = held.pop(i)
            if not held:
                del self._held[number]
            return value

    def _make_room(self, number: int) -> None:
        self._held.pop(number, None)
        sizes = {n: sum(_nbytes(x) for x in held.values()) for n, held in self._held.items()}
        while self._held and sum(sizes.values()) > _KEPT:
            gone, _ = self._held.popitem(last=False)
            del sizes[gone]


def _nbytes(x: Any) -> int:
    base = getattr(x, "base", None)  # a view keeps all of its base alive
    return int(getattr(base if base is not None and hasattr(base, "nbytes") else x, "nbytes", 0))
