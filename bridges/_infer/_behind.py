"""Behind: the leaves that a value of leaves alone is made of, once it is known which elements of the source it has.

`rsqrt(var + eps)` is not a leaf; a leaf that stands for it is placed, and here the leaves behind it are. Leaves behind the
value that was found in the source are tried in their place until the target's own operations give the same numbers.

Invariant: a leaf is placed only if the value, computed anew from it, has the numbers that were found.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from bridges._infer._leaves import Conflict, Pseudo
from bridges._infer._side import Side
from bridges._infer._source import evaluate


def place_behind(target: Side, source: Side) -> None:
    """Finds the leaves behind values of leaves alone that have become known.

    Raises:
      Conflict: No leaves give these values.
    """
    for pseudo in target.leaves.pseudos:
        refs = pseudo.refs.ravel()
        if pseudo.solved or not target.leaves.known[refs].all():
            continue
        _behind(target, source, pseudo)
        target.leaves.solved(pseudo)


def _behind(target: Side, source: Side, pseudo: Pseudo) -> None:
    refs = pseudo.refs.ravel()
    theirs = target.leaves.source[refs]
    wanted = target.leaves.num[refs]
    unknown = [
        p for p in sorted(target.graph.leaves[pseudo.value]) if not target.leaves.known[target.leaves.refs(p)].all()
    ]
    other = next(
        (
            q
            for q in source.leaves.pseudos
            if q.refs.size and q.refs.flat[0] <= theirs.min() and theirs.max() <= q.refs.flat[-1]
        ),
        None,
    )
    if not unknown:
        if not _gives(target, pseudo, {}, wanted):
            raise Conflict
        return
    if other is None:
        raise Conflict
    moved = theirs - other.refs.flat[0]  # which element of theirs each of mine is
    names = sorted(source.graph.leaves[other.value])
    for chosen in itertools.permutations(names, len(unknown)):
        options = [_arranged(target, source, p, q, pseudo, moved) for p, q in zip(unknown, chosen, strict=True)]
        for arranged in itertools.product(*options):
            given = {}
            for p, source_ref in zip(unknown, arranged, strict=True):
                given[p] = source.leaves.num[source_ref].reshape(target.leaves.shapes[p])
            if _gives(target, pseudo, given, wanted):
                for p, source_ref in zip(unknown, arranged, strict=True):
                    n = source_ref.size
                    target.leaves.assign(
                        target.leaves.refs(p).ravel(), source_ref, np.ones(n), np.zeros(n), given[p].ravel()
                    )
                return
    raise Conflict


def _arranged(target: Side, source: Side, path: str, other: str, pseudo: Pseudo, moved: np.ndarray) -> list[np.ndarray]:
    """Returns ways in which a target leaf may be a source leaf: by the values' elements, or by axes."""
    mine, theirs = target.leaves.refs(path), source.leaves.refs(other)
    if mine.size != theirs.size:
        return []
    found = []
    if mine.size == moved.size and np.array_equal(np.sort(moved), np.arange(moved.size)):
        found.append(theirs.ravel()[moved])
    found.append(theirs.ravel())
    sizes = [n for n in mine.shape if n != 1]
    squeezed = theirs.squeeze()
    if 1 < len(sizes) <= 4:
        for order in itertools.permutations(range(squeezed.ndim)):
            if [squeezed.shape[a] for a in order] == sizes:
                found.append(squeezed.transpose(order).ravel())
    unique = {x.tobytes(): x for x in found}
    return list(unique.values())


def _gives(target: Side, pseudo: Pseudo, given: dict[str, np.ndarray], wanted: np.ndarray) -> bool:
    have: dict[int, Any] = {}
    for path in target.graph.leaves[pseudo.value]:
        refs = target.leaves.refs(path)
        have[target.graph.variables[path]] = given.get(path, target.leaves.num[refs])
    num = evaluate(target.graph, pseudo.value, have)
    with np.errstate(all="ignore"):
        num = np.ravel(1 / num if pseudo.reciprocal else num)
    return num.size == wanted.size and bool(np.allclose(num, wanted, rtol=1e-6, atol=1e-9 * np.abs(wanted).max()))
