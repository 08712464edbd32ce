"""Tails: what becomes of a value later, as a hash; it orders candidates and decides nothing."""

from __future__ import annotations

from bridges._infer._graph import Graph
from bridges._infer._layout import MOVED

DEPTH = 6
_SAME = {
    "square": "mul",
    "integer_pow": "mul",
    "sub": "add",
    "add_any": "add",
    "rsqrt": "sqrt",
    "div": "mul",
    "neg": "mul",
}
# what different frameworks write in different ways
_SKIPPED = {*MOVED, "split", "pjit"} - {"concatenate", "stack", "select_n", "gather", "dynamic_update_slice"}


class Tails:
    """The tails of a graph's values."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self._known: dict[tuple[int, int], int] = {}

    def of(self, v: int, depth: int = DEPTH) -> int:
        """Returns the hash of what follows a value, some operations deep; moving elements and offsets do not count."""
        key = v, depth
        if key not in self._known:
            self._known[key] = 0  # no cycles, but a bound
            found = set()
            for i in self._graph.readers.get(v, ()):
                step = self._graph.steps[i]
                name = _SAME.get(step.name, step.name)
                if step.name in _SKIPPED or (name in ("add", "mul") and self._aside(v, step.ins)):
                    found.update((0, self.of(out, depth)) for out in step.outs)
                elif depth > 0:
                    found.update((hash(name), self.of(out, depth - 1)) for out in step.outs)
                else:
                    found.add((hash(name), 0))
            if v in self._graph.outs:
                found.add((1, self._graph.outs.index(v)))
            flat = {x for a, b in found for x in ([b] if a == 0 else [hash((a, b))])}
            self._known[key] = hash(tuple(sorted(flat)))
        return self._known[key]

    def _aside(self, v: int, ins: tuple[int, ...]) -> bool:
        return all(u == v or not self._graph.data[u] for u in ins)

    def alike(self, v: int, other: Tails, w: int) -> int:
        """Returns how many operations deep two values have one tail; -1 for none."""
        for depth in range(DEPTH, -1, -1):
            if self.of(v, depth) == other.of(w, depth):
                return depth
        return -1
