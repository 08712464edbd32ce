"""What the engine would find between two models for which the plan is known: to test what is made of it."""

import numpy as np

from bridges._infer._arrays import plan_in
from bridges._infer._found import CONSTANT, VALUES, Evidence, Found, Origin, Unplaced
from bridges._infer._shipped import numbers


def found_of(plan, spec, lost=()):
    """Returns what a plan says, element by element; targets in `lost` are not placed."""
    names = tuple(plan.src)
    codes = numbers(spec, names)
    ends = np.cumsum([0, *(codes[path].size for path in names)])
    wide = plan_in(plan, np.float64)

    def forward(values):
        items = [item for item in wide if item.targets]
        return {t: x for i in items for t, x in zip(i.targets, i.forward([values(p) for p in i.sources]), strict=True)}

    zero, one = (forward(lambda p, n=n: np.full_like(codes[p], n)) for n in (0, 1))
    numbered = forward(codes.__getitem__)
    origins, used = {}, set()
    for item in wide:
        for path in set(item.targets) - set(lost):
            shift, scale = zero[path], one[path] - zero[path]
            constant = scale == 0
            code = np.where(constant, 0, (numbered[path] - shift) / np.where(constant, 1, scale)).round().astype(int)
            leaf = np.where(constant, -1, np.searchsorted(ends, code, "right") - 1)
            element = np.where(constant, 0, code - ends[leaf])
            evidence = Evidence(VALUES if item.sources else CONSTANT, error=1e-16, confirmed=2)
            origins[path] = Origin(leaf, element, scale, shift, evidence)
            used.update(names[i] for i in np.unique(leaf) if i >= 0)
    unplaced = tuple(Unplaced(path, "nobody knows", ("this", "that")) for path in lost)
    return Found(names, origins, unplaced, tuple(p for p in names if p not in used), None, 0.0, {})
