"""Element keys: which data each element of a meeting of leaves and data is made of, whatever the leaves are.

Two meetings with equal keys may be one; the leaves are then what makes them equal. Sums of keys do not depend on order, so
that layout plays no part.

Invariant: what masks hide from a softmax has one key, whatever it was made of.
"""

from __future__ import annotations

import numpy as np

from bridges._infer._form import Form
from bridges._infer._keys import U, mix, of_number
from bridges._infer._side import Side

_OFFSET = mix(np.array(77, U), 5)
_MASKED = U(0x5DEECE66D1234567)
_HIDDEN = -1e8


def masks(form: Form) -> np.ndarray | None:
    """Returns which elements a large negative number hides from a softmax: whatever is added to it, they are alike."""
    added = [m.refs[0].shift for m in form.monos if m.num is None and len(m.refs) == 1]
    added += [] if form.const is None else [form.const]
    hidden = [x <= _HIDDEN for x in added if np.any(x <= _HIDDEN)]
    return np.logical_or.reduce(np.broadcast_arrays(*hidden)) if hidden else None


def element_keys(side: Side, form: Form, shape: tuple[int, ...]) -> np.ndarray:
    """Returns for each element which data it is made of, as a sum of keys: uint64 [shape]."""
    out = np.zeros(shape, U)
    with np.errstate(over="ignore"):
        for at, scale in form.dots:
            keys = row_keys_at(side, at)
            if np.any(scale != 1):
                keys = np.where((scale != 1) & (keys != 0), mix(keys + of_number(scale), 23), keys)
            out = out + keys
        for gid, _ in form.atoms:
            out = out + mix(gid, 7)
        for mono in form.monos:
            count = sum((r.ref >= 0).astype(U) for r in mono.refs)
            if mono.num is None:
                out = out + np.where(count > 0, _OFFSET, U(0))
            else:
                assert mono.gid is not None
                out = out + np.where(count > 0, mix(mono.gid, 31), U(0))
    if (masked := masks(form)) is not None:
        out = np.where(masked, _MASKED, out)
    return np.broadcast_to(out, shape)


def row_keys_at(side: Side, at: np.ndarray) -> np.ndarray:
    """Returns the keys of the rows of contraction outputs by global number; 0 for none."""
    out = np.zeros(at.shape, U)
    for c, here, local in side.parts(at):
        made = side.contractions[c]
        out[here] = made.keys[made.row[local]]
    return out
