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
    """The tails of a graph's values.

    Args:
      graph: The graph.
      sided: Whether the first operand of a matrix product is another than the second.
    """

    def __init__(self, graph: Graph, sided: bool = False):
        self._graph = graph
        self._sided = sided
        self._known: dict[tuple[int, int], frozenset[int]] = {}

    def of(self, v: int, depth: int = DEPTH) -> frozenset[int]:
        """Returns hashes of what follows a value, some operations deep; moving elements and offsets do not count."""
        stack = [(v, depth)]
        while stack:
            key = stack[-1]
            if key in self._known:
                stack.pop()
                continue
            needed, found = self._next(*key)
            lacking = [k for k in needed if k not in self._known]
            if lacking:
                stack += lacking
                continue
            whole = set(found)
            for (w, d), name in needed.items():
                if name is None:
                    whole |= self._known[w, d]
                else:
                    whole.add(hash((name, tuple(sorted(self._known[w, d])))))
            self._known[key] = frozenset(whole)
        return self._known[v, depth]

    def _next(self, v: int, depth: int) -> tuple[dict[tuple[int, int], str | None], set[int]]:
        """The values that follow, with the operation that makes them (None: one that does not count)."""
        needed: dict[tuple[int, int], str | None] = {}
        found = {self._graph.outs.index(v)} if v in self._graph.outs else set()
        for i in self._graph.readers.get(v, ()):
            step = self._graph.steps[i]
            name = _SAME.get(step.name, step.name)
            if self._sided and name == "dot_general":
                name += "01"[step.ins[0] == v]
            if step.name in _SKIPPED or (name in ("add", "mul") and self._aside(v, step.ins)):
                needed.update(dict.fromkeys([(out, depth) for out in step.outs]))
            elif depth > 0:
                needed.update(dict.fromkeys([(out, depth - 1) for out in step.outs], name))
            else:
                found.add(hash(name))
        return needed, found

    def _aside(self, v: int, ins: tuple[int, ...]) -> bool:
        return all(u == v or not self._graph.data[u] for u in ins)

    def alike(self, v: int, other: Tails, w: int) -> int:
        """Returns how many operations deep two values have one tail; -1 for none."""
        for depth in range(DEPTH, -1, -1):
            if self.of(v, depth) == other.of(w, depth):
                return depth
        return -1
