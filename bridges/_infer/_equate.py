"""Equate: what the target's leaves must be for a meeting of the target to be one of the source.

Elements are matched by the data that they are made of; among those of one row of data the order of axes decides, and the
orders that are possible are tried one after the other. Then each contraction's columns are matched by the keys of their
data, and every leaf element of the target takes the place of one of the source.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from bridges._infer._element_keys import masks
from bridges._infer._form import Form, Mono, Refs
from bridges._infer._keys import U, mix, total
from bridges._infer._leaves import Conflict
from bridges._infer._side import Side
from bridges._infer._source import Entry

ROWS = 48  # rows of data that are looked at to tell columns apart


def orders(target: Side, form: Form, keys: np.ndarray, source: Side, entry: Entry) -> Iterator[np.ndarray]:
    """Yields for each target element (flat) which element of the entry it is, one array for each order of axes.

    Args:
      target, source: The sides.
      form, keys: The target's meeting and the keys of its elements.
      entry: The source's.
    """
    mine = units(target, form, keys.shape)
    order = np.lexsort((np.arange(keys.size), _rank(mine), keys.ravel()))
    shape = entry.keys.shape
    theirs = units(source, entry.form, shape)
    seen = set()
    sorted_keys = keys.ravel()[order]
    for axes in _axes(theirs, shape):
        place = np.arange(entry.keys.size).reshape(shape).transpose(axes).ravel()
        other = place[np.lexsort((np.arange(place.size), _rank(theirs.ravel()[place]), entry.keys.ravel()[place]))]
        if not np.array_equal(entry.keys.ravel()[other], sorted_keys):
            return
        found = np.empty(order.size, np.int64)
        found[order] = other
        code = found.tobytes() if found.size < 1 << 16 else hash(found.tobytes())
        if code not in seen:
            seen.add(code)
            yield found


def units(side: Side, form: Form, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a number for the unit of each element, over all contractions of a form."""
    out = np.zeros(shape, U)
    with np.errstate(over="ignore"):
        for n, (at, _) in enumerate(form.dots):
            for c, here, local in side.parts(at):
                made = side.contractions[c]
                out[here] += mix((made.unit[local] + 1).astype(U), 41 + 97 * n + c)
    return out


def _rank(units: np.ndarray) -> np.ndarray:
    """Returns for each element the rank of its unit, in the order in which units come up."""
    _, first, back = np.unique(units.ravel(), return_index=True, return_inverse=True)
    rank = np.empty(first.size, np.int64)
    rank[np.argsort(first)] = np.arange(first.size)
    return rank[back.ravel()]


def _axes(numbers: np.ndarray, shape: tuple[int, ...]) -> Iterator[list[int]]:
    """Yields orders of axes: the given one, then those that permute the axes along which units differ."""
    yield list(range(len(shape)))
    start = (0,) * len(shape)
    moving = [
        a
        for a, n in enumerate(shape)
        if n > 1 and numbers[tuple(1 if i == a else 0 for i in range(len(shape)))] != numbers[start]
    ]
    if 1 < len(moving) <= 4:
        for order in itertools.permutations(moving):
            axes = list(range(len(shape)))
            for a, b in zip(moving, order, strict=True):
                axes[a] = b
            yield axes


def equate(target: Side, form: Form, source: Side, entry: Entry, found: np.ndarray) -> None:
    """Says what the target's leaves are.

    Raises:
      Conflict: They cannot be that.
    """
    flat = form.each(lambda x: np.broadcast_to(x, entry_shape(form)).ravel())
    theirs = entry.form.each(lambda x: np.broadcast_to(x, entry.keys.shape).ravel()[found])
    if (masked := masks(flat)) is not None:
        seen = ~masked
        flat, theirs = flat.each(lambda x: x[seen]), theirs.each(lambda x: x[seen])
        found = found[seen]
    n = found.size
    mine_const = np.zeros(n) if flat.const is None else flat.const
    their_const = np.zeros(n) if theirs.const is None else theirs.const
    offsets = [m for m in flat.monos if m.num is None], [m for m in theirs.monos if m.num is None]
    factors = [m for m in flat.monos if m.num is not None], [m for m in theirs.monos if m.num is not None]
    if (
        len(offsets[0]) != len(offsets[1])
        or len(factors[0]) != len(factors[1])
        or bool(form.dots) != bool(entry.form.dots)
    ):
        raise Conflict
    if not offsets[0] and not np.allclose(mine_const, their_const, rtol=1e-6, atol=1e-9):
        raise Conflict
    for k, (a, b) in enumerate(zip(*offsets, strict=True)):
        last = k == len(offsets[0]) - 1
        _factors(target, a, source, b, mine_const if last else None, their_const if last else None)
    left = list(factors[1])
    for a in factors[0]:
        match = next((b for b in left if _same_data(a, b)), None)
        if match is None:
            raise Conflict
        left.remove(match)
        _factors(target, a, source, match, None, None)
    if form.dots:
        _contractions(target, flat, source, theirs)


def entry_shape(form: Form) -> tuple[int, ...]:
    """Returns the shape of a form's parts."""
    shapes = [at.shape for at, _ in form.dots] + [n.shape for _, n in form.atoms]
    shapes += [r.ref.shape for m in form.monos for r in m.refs]
    return np.broadcast_shapes(*shapes)


def _same_data(a: Mono, b: Mono) -> bool:
    if a.gid is None or b.gid is None:
        return False
    used = a.refs[0].ref >= 0
    return bool(np.array_equal(a.gid[used], b.gid[used])) and len(a.refs) == len(b.refs)


def _factors(target: Side, a: Mono, source: Side, b: Mono, add_a: Any, add_b: Any) -> None:
    if len(a.refs) != len(b.refs):
        raise Conflict
    if len(a.refs) == 1:
        x, y = a.refs[0], b.refs[0]
        _leaves(target, x if add_a is None else x.by(1.0, add_a), source, y if add_b is None else y.by(1.0, add_b))
        return
    mark = target.leaves.mark()
    for order in itertools.permutations(b.refs):
        try:
            for x, y in zip(a.refs, order, strict=True):
                _leaves(target, x, source, y)
            return
        except Conflict:
            target.leaves.undo(mark)
    raise Conflict


def _leaves(target: Side, x: Refs, source: Side, y: Refs) -> None:
    """Says that leaf elements of the target are those of the source, both one-dimensional."""
    here = x.ref >= 0
    if np.any(~here):
        want = np.where(y.ref[~here] >= 0, np.nan, y.shift[~here])
        if not np.allclose(x.shift[~here], want, rtol=1e-6, atol=1e-9):
            raise Conflict
    if not here.any():
        return
    ref, source_ref = x.ref[here], y.ref[here]
    if np.any(x.scale[here] == 0) or np.any((ref >= target.leaves.count) != (source_ref >= source.leaves.count)):
        raise Conflict
    scale = np.where(source_ref >= 0, y.scale[here] / x.scale[here], 1.0)
    shift = (y.shift[here] - x.shift[here]) / x.scale[here]
    shift = np.where(np.abs(shift) < 1e-12, 0.0, shift)
    num = np.where(source_ref >= 0, source.leaves.num[np.maximum(source_ref, 0)] * scale, 0.0) + shift
    target.leaves.assign(ref, source_ref, scale, shift, num)


def _contractions(target: Side, flat: Form, source: Side, theirs: Form) -> None:
    """Says what the kernels are; both forms are one-dimensional and aligned."""
    their_row = np.full((len(theirs.dots), flat.dots[0][0].size), -1, np.int64)
    owner = their_row.copy()
    their_unit = their_row.copy()
    for d, (at, _) in enumerate(theirs.dots):
        for c, here, local in source.parts(at):
            owner[d, here] = c
            their_row[d, here] = source.contractions[c].row[local]
            their_unit[d, here] = source.contractions[c].unit[local]
    for at, scale in flat.dots:
        for c, here, local in target.parts(at):
            made = target.contractions[c]
            elements = np.flatnonzero(here)
            row, unit = made.row[local], made.unit[local]
            _, first = np.unique(unit, return_index=True)
            spread = [made.group[unit]] + list(owner[:, elements])
            for d in range(len(theirs.dots)):  # groups of the source
                groups = np.full(elements.size, -1, np.int64)
                for o in np.unique(owner[d, elements]):
                    if o >= 0:
                        inside = owner[d, elements] == o
                        groups[inside] = source.contractions[o].group[their_unit[d, elements[inside]]]
                spread.append(groups)
            wide = made.width > 1 or any(
                source.contractions[o].width > 1
                for d in range(len(theirs.dots))
                for o in np.unique(owner[d, elements])
                if o >= 0
            )
            if not wide and len(theirs.dots) == 1:
                label = owner[0, elements]
            else:
                _, label = np.unique(np.stack(spread), axis=1, return_inverse=True)
                label = label.ravel()
            units_label = label[first]
            for g in np.unique(units_label):
                chosen = first[units_label == g]
                members = np.flatnonzero((label == g) & (unit == unit[chosen[0]]))
                members = members[_different(row[members])]
                _kernel(
                    target, c, unit[chosen], row[members], scale[elements[chosen]], source,
                    [
                        (int(owner[d, elements[chosen[0]]]), their_unit[d, elements[chosen]],
                         their_row[d, elements[members]], theirs.dots[d][1][elements[chosen]])
                        for d in range(len(theirs.dots)) if owner[d, elements[chosen[0]]] >= 0
                    ],
                )  # fmt: skip


def _different(rows: np.ndarray) -> np.ndarray:
    """Returns positions of up to ROWS different rows, spread over all."""
    first = np.sort(np.unique(rows, return_index=True)[1])
    return first if first.size <= ROWS else first[np.linspace(0, first.size - 1, ROWS).astype(np.int64)]


def _kernel(
    target: Side, c: int, unit: np.ndarray, row: np.ndarray, scale: np.ndarray, source: Side,
    theirs: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]],
) -> None:  # fmt: skip
    """Says what some units of a kernel are, which meet the same rows: by the keys of its columns."""
    made, refs = target.contractions[c], target.leaves.kernels[c]
    salts = np.arange(1, row.size + 1)
    if made.width == 1 and len(theirs) == 1 and source.contractions[theirs[0][0]].width == 1:
        mine, other = np.zeros(1, np.int64), np.zeros(1, np.int64)
    else:
        columns = _columns(made.rows(row), salts)
        their_columns = np.concatenate([_columns(source.contractions[o].rows(r), salts) for o, _, r, _ in theirs])
        mine, other = _paired(columns, their_columns)
    kernel = made.kernel[unit][:, mine].ravel()  # [units, columns]
    x = Refs(refs.ref[kernel], refs.scale[kernel], refs.shift[kernel])
    x = x.by(np.repeat(scale, mine.size), 0.0)
    width, parts_of = 0, []
    for o, u, _, s in theirs:
        k = source.contractions[o].kernel[u]
        r = source.leaves.kernels[o]
        parts_of.append([r.ref[k], r.scale[k] * s[:, None], r.shift[k] * s[:, None]])
        width += k.shape[1]
    y = Refs(*(np.concatenate([p[f] for p in parts_of], 1)[:, other].ravel() for f in range(3)))
    _leaves(target, x, source, y)


def _columns(rows: np.ndarray, salts: np.ndarray) -> np.ndarray:
    """Returns keys of columns [K] of rows [n, K], row by row."""
    keys = mix(rows, 51)
    with np.errstate(over="ignore"):
        return np.asarray(total(np.where(keys == 0, U(0), mix(keys + salts.astype(U)[:, None], 53)), 0))


def _paired(mine: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the columns that are the same, side by side; equal ones in their order.

    Theirs may have columns that another contraction of mine has.
    """
    a, b = np.argsort(mine, kind="stable"), np.argsort(theirs, kind="stable")
    a, b = a[mine[a] != 0], b[theirs[b] != 0]
    keys, first = mine[a], np.searchsorted(theirs[b], mine[a], "left")
    nth = np.arange(keys.size) - np.searchsorted(keys, keys, "left")
    place = first + nth
    if np.any(place >= b.size) or not np.array_equal(theirs[b][np.minimum(place, b.size - 1)], keys):
        raise Conflict
    return a, b[place]
