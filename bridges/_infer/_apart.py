"""Apart: how far two models' outputs, or gradients, are apart, as a part of the largest number among them.

Invariant: what is no number never counts as agreement. NaN or an infinity agrees with the same at the same place only, and
where there is no number at all the result is NaN: nothing was compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bridges._infer._arrays import is_real


def apart(a: Sequence[Any], b: Sequence[Any]) -> float:
    """Returns the largest difference as a part of the largest number; infinite where shapes or kinds differ.

    Args:
      a, b: Arrays, as many of each. Those that are not real must be equal.

    >>> apart([np.array([1.0, np.nan])], [np.array([1.5, np.nan])]), apart([np.array([1.0])], [np.array([np.nan])])
    (0.5, inf)
    >>> apart([np.array([np.nan])], [np.array([np.nan])])
    nan
    """
    if [x.shape for x in a] != [x.shape for x in b]:
        return float("inf")
    gaps, tops, numbers, some = [0.0], [0.0], 0, 0
    for x, y in zip(a, b, strict=True):
        if not is_real(x):
            gaps.append(0.0 if np.array_equal(x, y) else float("inf"))
            continue
        usual = np.isfinite(x) & np.isfinite(y)
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        numbers, some = numbers + int(np.count_nonzero(usual)), some + x.size
        tops.append(float(np.max(np.abs(x[usual]), initial=0)))
        gaps.append(float(np.max(np.abs(x[usual] - y[usual]), initial=0)) if np.all(usual | same) else float("inf"))
    if max(gaps) == float("inf"):
        return float("inf")
    return float("nan") if some and not numbers else max(gaps) / (max(tops) or 1.0)
