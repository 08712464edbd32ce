"""Shardings of a plan's targets: those of its sources, carried through the ops of each item.

Invariant: a sharding that `target_shardings` returns divides every axis evenly, so that each process holds its part of
each array and no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from bridges.core._errors import UnsupportedError, hint, listing
from bridges.mapping._axes import carried
from bridges.mapping._plan import Item, Plan


def parts_of(mesh: Mesh | AbstractMesh, label: Any) -> int:
    """Returns into how many parts an entry of a `PartitionSpec` divides an axis."""
    names = label if isinstance(label, tuple) else () if label is None else (label,)
    return math.prod(mesh.shape[name] for name in names)


def target_shardings(plan: Plan, sources: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sharding of each of a plan's targets.

    Args:
      plan: The plan.
      sources: The sharding of each source.
      given: Shardings of targets that are wanted otherwise, or that cannot be carried.

    Raises:
      UnsupportedError: A sharding has no form after an item's ops, or sources of one item lie on different meshes, and
        none is given; all are listed. Or `given` names what is no target.
    """
    found: dict[str, Any] = dict(given)
    wrong = [f"{path!r} is no target of the plan.{hint(path, plan.dst)}" for path in given if path not in plan.dst]
    for item in plan:
        if all(path in found for path in item.targets):
            continue
        made, lost = _of_item(item, [sources[path] for path in item.sources], sources)
        open_targets = [path for path in item.targets if path not in found]
        if lost:
            wrong += [f"{', '.join(map(repr, open_targets))}: {reason}" for reason in lost]
        else:
            found.update({path: made[item.targets.index(path)] for path in open_targets})
    if wrong:
        raise UnsupportedError(
            "The shardings of the source cannot be carried to every target:\n"
            + listing(wrong)
            + "\nPass shardings={path: jax.sharding.NamedSharding(mesh, PartitionSpec(…))} for these."
        )
    return found


def _of_item(item: Item, shardings: Sequence[Any], all_of_them: Mapping[str, Any]) -> tuple[list[Any], list[str]]:
    """Returns the shardings of an item's targets, and what has no form there."""
    meshes = {sharding.mesh: None for sharding in shardings if isinstance(sharding, NamedSharding)}
    if not item.sources:  # a constant: everywhere, on the mesh of the others
        mesh = next((s.mesh for s in all_of_them.values() if isinstance(s, NamedSharding)), None)
        if mesh is None:
            return [], ["it is filled with a constant, and no mesh is known"]
        return [NamedSharding(mesh, PartitionSpec())] * len(item.targets), []
    if any(not isinstance(sharding, NamedSharding) for sharding in shardings):
        return [], [f"a source has a {type(s).__name__}" for s in shardings if not isinstance(s, NamedSharding)]
    if len(meshes) > 1:
        return [], ["its sources lie on different meshes"]
    mesh = next(iter(meshes))
    way = carried(item, [tuple(s.spec) for s in shardings], lambda label: parts_of(mesh, label))
    return [NamedSharding(mesh, PartitionSpec(*labels)) for labels in way.labels], list(way.lost)
