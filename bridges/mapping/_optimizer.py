"""Converting the state of any optax transformation along a plan, by its structure and without importing optax.

Every subtree that has the source parameters' structure becomes one of the target parameters' structure, leaf by leaf, by
the linear part of the plan's ops: moments are rearranged as the parameters are, an offset does not reach them, a scale s
divides the first moment and divides the second by s². All else (counts, schedules, hyperparameters) passes unchanged.
What cannot be carried exactly is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.tree_util import GetAttrKey, keystr

from bridges.core._errors import BridgeError, StructureError, UnsupportedError, describe, hint, listing
from bridges.core._flat import escape, flatten, under, unescape
from bridges.mapping._each import Cast
from bridges.mapping._op import Op, shapes
from bridges.mapping._plan import Item, Plan

# Field of the NamedTuple -> the power of the gradient that it holds; 0 for what is a parameter itself.
_POWER = {
    "mu": 1,
    "trace": 1,
    "ema": 1,
    "acc_grads": 1,
    "grad_avg": 1,
    "nu": 2,
    "nu_max": 2,
    "v": 2,
    "sum_of_squares": 2,
    "z": 0,
    "params0": 0,
    "init_params": 0,
}
_FACTORED = ("v_row", "v_col", "v")  # optax.FactoredState; (1,) where it does not apply


def convert(plan: Plan, opt_state: Any, src_params: Any, dst_params: Any) -> Any:
    """Returns the target's optimizer state; see `Plan.optimizer`."""
    ends = [_aligned(p, spec, end) for p, spec, end in ((src_params, plan.src, "src"), (dst_params, plan.dst, "dst"))]
    items = _items(plan, set(ends[0].values()), set(ends[1].values()))
    treedef = jax.tree.structure(dst_params)

    def fits(node: Any) -> bool:
        return _values(node, ends[0]) is not None

    leaves, outer = jax.tree_util.tree_flatten_with_path(opt_state, is_leaf=fits)
    converted = []
    for keys, node in leaves:
        values = _values(node, ends[0])
        where = keystr(keys)
        if values is None:
            converted.append(_passed(node, where))
            continue
        field = next((key.name for key in reversed(keys) if isinstance(key, GetAttrKey)), "")
        out: dict[str, Any] = {}
        for item in items:
            out.update(zip(item.targets, _moments(item, [values[p] for p in item.sources], field, where), strict=True))
        converted.append(jax.tree.unflatten(treedef, [out[path] for path in ends[1].values()]))
    return jax.tree.unflatten(outer, converted)


def _is_masked(node: Any) -> bool:
    return isinstance(node, tuple) and len(node) == 0 and type(node).__name__ == "MaskedNode"


def _aligned(params: Any, spec: Mapping[str, Any], end: str) -> dict[str, str]:
    """Returns the tree's own leaf paths -> the plan's paths, in the tree's order.

    Raises:
      StructureError: A leaf is not in the plan, or has another shape there.
    """
    flat = flatten(params)

    def opened(path: str) -> str:
        *parents, leaf = path.split("/")
        return "/".join([escape(s) for p in parents for s in unescape(p).split("/")] + [leaf])

    best: list[str] | None = None
    for prefix in ("", "params/"):
        for form in (str, opened):
            paths = {path: prefix + form(path) for path in flat}
            lacking = [path for path in paths.values() if path not in spec]
            if not lacking and len(set(paths.values())) == len(paths):
                wrong = [
                    f"{p!r}: got {describe(flat[own])}, planned {describe(spec[p])}"
                    for own, p in paths.items()
                    if tuple(np.shape(flat[own])) != tuple(spec[p].shape)
                ]
                if wrong:
                    raise StructureError(f"{end}_params are not the plan's:\n" + listing(wrong))
                return paths
            best = lacking if best is None or len(lacking) < len(best) else best
    lines = [f"{path!r}.{hint(path, spec)}" for path in best or ()]
    raise StructureError(f"These leaves of {end}_params are not entries of the plan:\n" + listing(lines))


def _items(plan: Plan, src: set[str], dst: set[str]) -> list[Item]:
    """Returns the items between the two parameter sets."""
    items: list[Item] = []
    problems: list[str] = []
    reached: set[str] = set()
    for item in plan.items:
        inside = [p for p in item.sources if p in src]
        if not item.sources and any(p in dst for p in item.targets):
            raise UnsupportedError(
                f"{', '.join(item.targets)} is filled with a constant, so the source's optimizer has no state for it:"
                " leave it out of dst_params, or start its optimizer state anew."
            )
        if not inside:
            continue
        if len(inside) < len(item.sources):
            problems.append(f"only {inside} of {list(item.sources)} are in src_params")
        problems += [f"{p!r}, made of {item.sources}, is not in dst_params" for p in item.targets if p not in dst]
        reached.update(item.targets)
        items += [item] if item.targets else []
    problems += [f"{p!r} in dst_params comes from nothing in src_params" for p in sorted(dst - reached)]
    if problems:
        raise StructureError("src_params and dst_params are not what the plan joins:\n" + listing(problems))
    return items


def _values(node: Any, aligned: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the plan's path -> leaf if the node has the source parameters' structure, MaskedNodes in places allowed."""
    if not isinstance(node, (Mapping, list, tuple)) and jax.tree_util.all_leaves([node]):
        return None
    if _is_masked(node):
        return None
    try:
        flat = flatten(node, is_leaf=_is_masked)
    except BridgeError:
        return None
    if flat.keys() == aligned.keys():
        return {aligned[path]: leaf for path, leaf in flat.items()}
    masked = {path: leaf for path, leaf in flat.items() if _is_masked(leaf)}
    if not masked or not all(path in aligned for path in flat.keys() - masked.keys()):
        return None
    out = {}
    for path, target in aligned.items():
        leaf = flat.get(path, next((node for above, node in masked.items() if under(path, above)), None))
        if leaf is None:
            return None
        out[target] = leaf
    return out if all(any(under(path, m) for path in aligned) for m in masked) else None


def _moments(item: Item, values: list[Any], field: str, where: str) -> list[Any]:
    masked = [_is_masked(v) for v in values]
    name = f"The optimizer state {where} of {', '.join(item.sources)}"
    if all(masked):
        return [values[0]] * len(item.targets)
    if any(masked):
        raise UnsupportedError(f"{name}: some of these entries are masked and some are not, but they become one.")
    if not item.ops:
        return values
    if [np.shape(v) for v in values] != [x.shape for x in item.stages[0]]:
        if field in _FACTORED[:2] and all(np.shape(v) == (1,) for v in values):
            return values[:1] * len(item.targets)
        kind = "factored" if field in _FACTORED else f"of shape {[np.shape(v) for v in values]}"
        raise UnsupportedError(
            f"{name} is {kind}, and the plan changes the parameter by {', '.join(map(str, item.ops))}: there is no exact"
            " counterpart. Start this part of the optimizer state anew, or keep the parameter's shape."
        )
    if field in _FACTORED and _could_factor(item):
        raise UnsupportedError(
            f"{name} is not factored, but for {shapes(item.stages[-1])} it may be: there is no exact counterpart."
        )
    for op, outs in zip(item.ops, item.stages[1:], strict=True):
        values = _moment(op, values, list(outs), field, name)
    return values


def _moment(op: Op, values: list[Any], outs: list[Any], field: str, name: str) -> list[Any]:
    if isinstance(op, Cast):
        return op.apply(values, outs) if field not in _POWER else values  # a moment may have a dtype of its own
    try:
        first = op.moment(1)
    except UnsupportedError as err:
        raise UnsupportedError(f"{name}: {err}.") from err
    if first is op:
        return op.apply(values, outs)
    if field not in _POWER:
        known = ", ".join(_POWER)
        raise UnsupportedError(
            f"{name}: the parameter goes through {op}, and it is not known whether {field or 'this'!r} follows it as a"
            f" gradient, a squared gradient or a parameter. Known are {known}."
        )
    power = _POWER[field]
    changed = op.moment(power) if power else op
    return values if changed is None else changed.apply(values, outs)


def _could_factor(item: Item) -> bool:
    """Whether optax, which factors by the second largest axis, may treat the target otherwise than the source."""

    def second(xs: Iterable[Any]) -> int:
        return max(sorted(x.shape)[-2] if len(x.shape) > 1 else 0 for x in xs)

    return second(item.stages[-1]) > second(item.stages[0])


def _passed(leaf: Any, where: str) -> Any:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or np.ndim(leaf) == 0 or not jax.dtypes.issubdtype(dtype, np.inexact):
        return leaf
    raise UnsupportedError(
        f"The optimizer state {where}, {describe(leaf)}, is not in the structure of src_params, so it is not known what it"
        " belongs to. Pass the very parameters that the optimizer was initialised with."
    )
