"""Backwards: what was found from the target to the source, turned round.

One direction is often easier than the other: a fused kernel whose parts are still unknown cannot be followed, the same
kernel as a source can. Elements are joined one to one, so that what is found one way is found the other way too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from bridges._infer._found import Evidence, Found, Origin


def turned(back: Found, src: Mapping[str, Any], dst: Mapping[str, Any]) -> dict[str, Origin]:
    """Returns the origins of the target's leaves that follow from those of the source's.

    A target leaf is among them if each of its elements is told by exactly one element of the source: what the source holds
    several times (a table that is tied only in the target) is not decided here.

    Args:
      back: What was found with the ends exchanged: origins of the source's leaves.
      src, dst: The leaves of both ends by path; only shapes are read.
    """
    paths = sorted(src)
    shapes = {p: tuple(np.shape(x)) for p, x in dst.items()}
    source = {p: np.full(int(np.prod(shape)), -1, np.int64) for p, shape in shapes.items()}
    element = {p: np.zeros(s.size, np.int64) for p, s in source.items()}
    count = {p: np.zeros(s.size, np.int64) for p, s in source.items()}
    scale = {p: np.ones(s.size) for p, s in source.items()}
    shift = {p: np.zeros(s.size) for p, s in source.items()}
    evidence: dict[str, Evidence] = {}
    for number, path in enumerate(paths):
        origin = back.origins.get(path)
        if origin is None:
            continue
        flat = [np.ravel(x) for x in (origin.source, origin.element, origin.scale, origin.shift)]
        for i in np.unique(flat[0][flat[0] >= 0]):
            here = np.flatnonzero((flat[0] == i) & (flat[2] != 0))
            name, to = back.sources[int(i)], flat[1][here]
            source[name][to], element[name][to] = number, here
            np.add.at(count[name], to, 1)
            scale[name][to] = 1 / flat[2][here]
            shift[name][to] = -flat[3][here] / flat[2][here]
            evidence.setdefault(name, _other_way(origin.evidence))
    found = {}
    for p, shape in shapes.items():
        if p in evidence and np.all(count[p] == 1):
            a, b, c, d = (x[p].reshape(shape) for x in (source, element, scale, shift))
            found[p] = Origin(a, b, c, d, evidence[p])
    return found


def _other_way(evidence: Evidence) -> Evidence:
    said = "; ".join(filter(None, (evidence.text, "found from the target to the source")))
    return dataclasses.replace(evidence, src_place=evidence.dst_place, dst_place=evidence.src_place, text=said)


def joined(found: Found, more: Mapping[str, Origin], src: Mapping[str, Any]) -> Found:
    """Returns what was found with more origins, of leaves that had none; elements that are taken are not taken twice."""
    paths = sorted(src)
    taken = {i: np.zeros(int(np.prod(np.shape(src[p]))), bool) for i, p in enumerate(paths)}
    origins = dict(found.origins)
    for origin in origins.values():
        _take(taken, origin)
    for item in found.unplaced:
        other = more.get(item.path)
        if other is not None and not _take(taken, other):
            origins[item.path] = other
    unplaced = tuple(item for item in found.unplaced if item.path not in origins)
    unused = tuple(p for i, p in enumerate(paths) if not taken[i].any())
    return dataclasses.replace(found, origins=origins, unplaced=unplaced, unused=unused)


def _take(taken: dict[int, np.ndarray], origin: Origin) -> bool:
    """Marks the source elements of an origin, if none of them is marked; returns whether one was."""
    parts = {int(i): origin.element[origin.source == i] for i in np.unique(origin.source[origin.source >= 0])}
    if any(taken[i][where].any() for i, where in parts.items()):
        return True
    for i, where in parts.items():
        taken[i][where] = True
    return False
