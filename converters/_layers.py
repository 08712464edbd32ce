"""Layers: what a step of a graph is called, by the variables that meet the data there.

A module path has no collection. A layer of the target and one of the source belong together where the plan placed them, or
where an item of the plan joins their variables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from bridges._infer._graph import Graph
from bridges.core._flat import under
from bridges.mapping._plan import Plan


@dataclasses.dataclass(frozen=True)
class Place:
    """Where something is in the target, and what that is in the source.

    Attributes:
      layer: The target's module path; '' is the model itself.
      src_layer: The source's module path.
      paths: The target's variables of the layer.
      src_paths: The source's.
      where: In words.
    """

    layer: str
    src_layer: str
    paths: tuple[str, ...]
    src_paths: tuple[str, ...]
    where: str


def module_of(path: str) -> str:
    """Returns the module path of a variable.

    >>> module_of('params/encoder/Dense_0/kernel'), module_of('params/w'), module_of('w')
    ('encoder/Dense_0', '', '')
    """
    return "/".join(path.split("/")[1:-1])


def common(paths: Iterable[str]) -> str:
    """Returns the longest module path that all module paths are at or below.

    >>> common(['cell/ii', 'cell/hi']), common(['a', 'b'])
    ('cell', '')
    """
    parts = [p.split("/") if p else [] for p in paths]
    shared: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return "/".join(shared)


class Layers:
    """Names of layers, read off a plan; without a plan, off the variables' paths."""

    def __init__(self, plan: Plan | None, paths: Iterable[str]):
        self.plan = plan
        self.paths = tuple(paths)
        self._item = {t: item for item in plan or () for t in item.targets}
        placed = plan.placements if plan else ()
        self._placed = sorted(((dst, src) for src, dst, _ in placed), key=lambda pair: -len(pair[0]))

    def sources(self, path: str) -> tuple[str, ...]:
        """Returns the source's variables that a variable of the target is made of."""
        item = self._item.get(path)
        return item.sources if item else ()

    def layer(self, path: str) -> str:
        """Returns the target's layer that a variable belongs to."""
        module = module_of(path)
        for dst, _ in self._placed:
            if under(module, dst) and (dst or module == ""):
                return dst
        item = self._item.get(path)
        return common(map(module_of, item.targets)) if item else module

    def place(self, layer: str, where: str = "") -> Place:
        """Returns the place of a layer of the target."""
        mine = tuple(p for p in self.paths if self.layer(p) == layer)
        theirs = tuple(dict.fromkeys(s for p in mine for s in self.sources(p)))
        placed = next((src for dst, src in self._placed if dst == layer), None)
        src = placed if placed is not None else common(map(module_of, theirs)) if theirs else ""
        return Place(layer, src, mine, theirs, where or f"in {shown(layer)}")


def shown(layer: str) -> str:
    return repr(layer) if layer else "the model itself"


def locate(graph: Graph, layers: Layers, at: int, carriers: set[int]) -> tuple[Place, Place | None]:
    """Returns the place of a step, and the next one where the step lies between two layers.

    Args:
      graph: The target's graph.
      layers: Names.
      at: The step.
      carriers: Values that carry the difference.
    """

    def of(i: int) -> str | None:
        own = sorted(graph.own(i))
        return layers.layer(own[0]) if own else None

    mine = of(at)
    if mine is not None:
        return layers.place(mine), None
    scope = graph.steps[at].scope
    owners = [i for i in range(len(graph.steps)) if graph.own(i)]
    if scope:
        near = sorted((i for i in owners if graph.steps[i].scope == scope), key=lambda i: abs(i - at))
        if near and (found := of(near[0])) is not None:
            return layers.place(found), None
    before = next((of(i) for i in reversed(owners) if i < at), None)
    after = next((of(i) for i in owners if i > at and any(v in carriers for v in graph.steps[i].ins)), None)
    if before is None and after is None:
        return layers.place("", "in a part without variables"), None
    if before is None or after is None:
        name = after if before is None else before
        return layers.place(name or "", f"{'before' if before is None else 'after'} {shown(name or '')}"), None
    if before == after:
        return layers.place(before), None
    where = f"between {shown(before)} and {shown(after)}"
    return layers.place(before, where), layers.place(after)


def before(graph: Graph, layers: Layers, at: int, place: Place) -> Place:
    """Returns the place between the layer that comes before a step and the given one; the given one if it is the first."""
    for i in reversed(range(at)):
        own = sorted(graph.own(i))
        if own and (layer := layers.layer(own[0])) != place.layer:
            return layers.place(layer, f"between {shown(layer)} and {shown(place.layer)}")
    return place


def read(graph: Graph) -> frozenset[str]:
    """Returns the variables that some output depends on."""
    return frozenset[str]().union(*[graph.leaves[v] for v in graph.outs])
