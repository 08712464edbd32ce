"""Shipped: which modules the layer conventions join in exactly the way that was found.

A line of `[modules]` says more than rules can: both ways, the running statistics, the optimizer's moments, the verdict. So
where the convention of a layer brings every element where it was found to be, the line is written and not the rules.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from bridges._infer._arrays import plan_in
from bridges._infer._decode import Joint
from bridges._infer._found import Origin
from bridges.core._errors import BridgeError, MappingError
from bridges.core._flat import under
from bridges.core._spec import Spec
from bridges.core._state import State
from bridges.mapping._conventions import conventions, frameworks
from bridges.mapping._mapping import Mapping as Rules
from bridges.mapping._plan import Plan

_QUOTED = re.compile(r"'([^']*)'")
_DIFFERS = re.compile(r" has \w+ ?=| has \w+ .* has | pass \w+=")


@dataclasses.dataclass(frozen=True)
class Shipped:
    """What conventions say of two models.

    Attributes:
      pairs: Modules, source and target, each with the entries of both ends that it covers.
      notes: In which hyperparameters layers differ, although they compute the same here.
    """

    pairs: tuple[tuple[str, str, frozenset[str], frozenset[str]], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sources(self) -> frozenset[str]:
        return frozenset[str]().union(*(pair[2] for pair in self.pairs))

    @property
    def targets(self) -> frozenset[str]:
        return frozenset[str]().union(*(pair[3] for pair in self.pairs))

    def without(self, text: str) -> Shipped:
        """Returns the pairs that an error's text does not speak of."""
        named = set(_QUOTED.findall(text))
        return Shipped(tuple(p for p in self.pairs if named.isdisjoint({*p[:2], *p[2], *p[3]})), self.notes)


def numbers(spec: Spec, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the entries with a number of its own for every element, in float64."""
    out, at = {}, 0
    for path in names:
        shape = spec.entries[path].shape
        size = int(np.prod(shape))
        out[path] = np.arange(at, at + size, dtype=np.float64).reshape(shape)
        at += size
    return out


def agrees(plan: Plan, codes: Mapping[str, np.ndarray], origins: Mapping[str, Origin], names: Sequence[str]) -> bool:
    """Whether a plan brings the elements of these targets to where they were found."""
    leaves = [codes[path] for path in names]
    for item in plan_in(plan, np.float64):
        if not any(path in origins for path in item.targets):
            continue
        if any(path not in codes for path in item.sources):
            return False
        for path, got in zip(item.targets, item.forward([codes[p] for p in item.sources]), strict=True):
            if path in origins and not np.allclose(got, origins[path].value(leaves), rtol=1e-12, atol=1e-9):
                return False
    return True


def part_of(spec: Spec, paths: Iterable[str], module: str | None = None) -> Spec:
    """Returns the spec of these entries only, with the layers of one module only."""
    inside = {m: layer for m, layer in spec.layers.items() if module is None or under(m, module)}
    stacks = {m: stack for m, stack in spec.stacks.items() if module is None or under(m, module)}
    entries = State({path: spec.entries[path] for path in paths}, spec.entries.declared)
    called = tuple(m for m in spec.called if m in inside)
    return dataclasses.replace(spec, entries=entries, layers=inside, stacks=stacks, called=called, uses={})


def shipped(
    src: Spec, dst: Spec, joints: Sequence[Joint], origins: Mapping[str, Origin], names: Sequence[str]
) -> Shipped:
    """Returns the pairs of layers whose conventions say what was found.

    Args:
      src, dst: The specs.
      joints: What was found.
      origins: The same, by element.
      names: What `Origin.source` indexes.
    """
    if not {src.framework, dst.framework} <= set(frameworks()) or not src.layers or not dst.layers:
        return Shipped()
    rules = conventions(src.framework, dst.framework)
    codes = numbers(src, names)
    rows = [row for part in rules.parts for row in part.layers if not row.refuse]
    types = {t for row in rows for t in row.src}, {t for row in rows for t in row.dst}
    targets: dict[str, set[str]] = {}
    for joint in joints:
        for path in joint.sources:
            targets.setdefault(path, set()).update(joint.targets)
    inside = _Inside(src), _Inside(dst)
    pairs: list[tuple[str, str, frozenset[str], frozenset[str]]] = []
    covered: tuple[set[str], set[str]] = set(), set()
    notes: list[str] = []
    for module in sorted(src.layers, key=lambda m: m.count("/") if m else -1):
        mine = inside[0].of(module)
        if src.layers[module].type not in types[0] or not mine or not covered[0].isdisjoint(mine):
            continue
        goals = set[str]().union(*(targets.get(path, set()) for path in mine))
        there = _above(goals, dst, types[1])
        if not goals or there is None:
            continue
        theirs = inside[1].of(there)
        if not goals <= set(theirs) or not covered[1].isdisjoint(theirs):
            continue
        try:
            plan = (Rules.of(modules={module: there}) | rules).plan(
                part_of(src, mine, module), part_of(dst, theirs, there)
            )
        except MappingError as err:
            notes += [line.strip(" -") for line in str(err).splitlines() if _DIFFERS.search(line)]
            continue
        except BridgeError:
            continue
        if agrees(plan, codes, {p: origins[p] for p in theirs if p in origins}, names):
            pairs.append((module, there, frozenset(mine), frozenset(theirs)))
            covered[0].update(mine)
            covered[1].update(theirs)
    alike: dict[str, list[str]] = {}
    for note in notes:
        alike.setdefault(_QUOTED.sub("''", note), []).append(note)
    more = " (and {} more layers like it)"
    return Shipped(
        tuple(pairs), tuple(some[0] + more.format(len(some) - 1) * (len(some) > 1) for some in alike.values())
    )


def whole(src: Spec, dst: Spec, origins: Mapping[str, Origin], names: Sequence[str]) -> Shipped:
    """Returns all pairs, if the conventions place every module by themselves as it was found, stacks included; else none."""
    if not {src.framework, dst.framework} <= set(frameworks()) or not src.layers or not dst.layers:
        return Shipped()
    try:
        plan = conventions(src.framework, dst.framework).plan(src, dst)
    except BridgeError:
        return Shipped()
    known = {_owner(path) for path in origins}
    grounded = {md for _, md, _ in plan.placements if any(under(owner, md) for owner in known)}
    free = {_owner(path) for path in plan.dst if path not in origins}
    if any(not any(under(owner, md) for md in grounded) for owner in free):
        return Shipped()  # a module of which nothing was found would be placed by its looks alone
    if not agrees(plan, numbers(src, names), origins, names):
        return Shipped()
    everything = frozenset(plan.src), frozenset(plan.dst)
    pairs = [pair for row in plan.placements for pair in copies(row[0], row[1], src, dst)]
    return Shipped(tuple((*pair, *everything) for pair in pairs))


def _owner(path: str) -> str:
    return path.partition("/")[2].rpartition("/")[0]


def copies(src: str, dst: str, *specs: Spec) -> list[tuple[str, str]]:
    """Returns the pairs of copies of a module of one stack and a module of another, which a plan shows as one pair."""
    found = []
    for path, spec in zip((src, dst), specs, strict=True):
        above = next((m for m in sorted(spec.stacks, key=len) if under(path, m)), None)
        if above is None or "[" in path:
            return [(src, dst)]
        sizes = [stack.size for stack in spec.stacks[above]]
        found.append((above, path[len(above) :].lstrip("/"), sizes))
    if found[0][2] != found[1][2]:
        return [(src, dst)]
    copies = ["/".join(f"[{n}]" for n in numbers) for numbers in itertools.product(*map(range, found[0][2]))]
    ends = [["/".join(filter(None, (above, copy, inside))) for copy in copies] for above, inside, _ in found]
    return list(zip(ends[0], ends[1], strict=True))


class _Inside:
    """The entries of each module and of those below it."""

    def __init__(self, spec: Spec):
        self._found: dict[str, list[str]] = {}
        for path in spec.entries:
            owner = _owner(path)
            while True:
                self._found.setdefault(owner, []).append(path)
                if not owner:
                    break
                owner = owner.rpartition("/")[0]

    def of(self, module: str) -> list[str]:
        return self._found.get(module, [])


def _above(paths: Iterable[str], spec: Spec, types: set[str]) -> str | None:
    """Returns the lowest module of one of these types that holds all of these entries."""
    owners = [_owner(path).split("/") for path in paths]
    if not owners:
        return None
    common = owners[0]
    for owner in owners[1:]:
        n = next(
            (k for k, (a, b) in enumerate(zip(common, owner, strict=False)) if a != b), min(len(common), len(owner))
        )
        common = common[:n]
    for n in range(len(common), -1, -1):
        module = "/".join(common[:n])
        if module in spec.layers and spec.layers[module].type in types:
            return module
    return None
