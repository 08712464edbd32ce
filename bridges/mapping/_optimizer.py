"""Planning the state of any optax transformation along a plan of its parameters, before an array is read.

Every subtree that has the source parameters' structure becomes one of the target parameters' structure, leaf by leaf, by
the linear part of the plan's ops: moments are rearranged as the parameters are, an offset does not reach them, a sign
reaches what is odd in the gradient. All else (counts, schedules, hyperparameters) passes unchanged.

Invariant: what cannot be carried exactly is refused by name, everything at once. It judges by the state alone: what a
transformation does without keeping a state is not seen here; `assumes` says what is taken for granted, `_proof` runs it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey, SequenceKey

from bridges.core import _flat
from bridges.core._errors import StructureError, UnsupportedError, describe, listing
from bridges.mapping import _moments
from bridges.mapping._each import Add, Cast, Flip, Reshape, Scale
from bridges.mapping._moments import AXISWISE, FLAG, LEAFWISE, PER_LEAF, POSITIONED, VALUE, WHOLE, Field
from bridges.mapping._op import Abstract, Op, shapes
from bridges.mapping._optimizer_plan import Noticed, OptimizerPlan, Ravelled, Step
from bridges.mapping._plan import Item, Plan
from bridges.mapping._state_tree import aligned, flatten, is_masked, is_variable, matched, owner

_PROVE = "Pass tx=, the transformation itself, to have it tried"
_RENAMES = "only a renaming carries it"


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """Stands for a leaf of the source's state while the structure is looked at."""

    path: str
    abstract: Any  # the leaf itself where it is no array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(np.shape(self.abstract))

    @property
    def dtype(self) -> Any:
        return getattr(self.abstract, "dtype", None)


@dataclasses.dataclass(frozen=True, eq=False)
class _Slot:
    """Stands for a leaf of the target's state until the whole tree says what it is called."""

    abstract: Any


def _abstract(leaf: Any) -> Any:
    return Abstract(tuple(leaf.shape), leaf.dtype) if hasattr(leaf, "shape") and hasattr(leaf, "dtype") else leaf


@dataclasses.dataclass
class _Planner:
    """Collects steps and problems on one walk over a state."""

    items: list[Item]
    ends: list[dict[str, str]]
    plan: Plan
    proven: bool
    steps: list[tuple[Step, list[_Slot]]] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    # One leaf to one or several places, as it is.

    def passed(self, subtree: Any, places: int = 1) -> list[Any]:
        leaves, treedef = jax.tree.flatten(subtree)
        slots = [[_Slot(leaf.abstract) for _ in range(places)] for leaf in leaves]
        self.steps += [(Step((leaf.path,), ("",) * places), s) for leaf, s in zip(leaves, slots, strict=True)]
        return [jax.tree.unflatten(treedef, [s[i] for s in slots]) for i in range(places)]

    def refused(self, places: int, text: str) -> list[Any]:
        self.problems.append(text)
        return [_Slot(None)] * places

    # A node that has the parameters' structure.

    def node(self, values: Mapping[str, Any], cls: str, field: str, where: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for item in self.items:
            found = self.moments(item, [values[p] for p in item.sources], cls, field, where)
            out.update(zip(item.targets, found, strict=True))
        return out

    def moments(self, item: Item, values: list[Any], cls: str, field: str, where: str) -> list[Any]:
        name, places = f"The optimizer state {where} of {', '.join(item.sources)}", len(item.targets)
        by = f"the plan changes the parameter by {', '.join(map(str, item.ops))}"
        if not item.ops:
            return [new for value in values for new in self.passed(value)]
        masked, matrices = [is_masked(v) for v in values], any(len(x.shape) == 2 for x in _both_ends(item))
        if all(masked):
            if cls == "MuonState" and matrices and _moves(item) and not self.proven:
                return self.refused(
                    places, f"{name} is masked, but {by}: Muon chooses matrices by their axes. {_PROVE}."
                )
            return [values[0]] * places
        if any(masked):
            return self.refused(
                places, f"{name}: some of these entries are masked and some are not, but they become one."
            )
        fact = _moments.field_of(cls, field)
        role = fact.role if fact else ""
        if role == FLAG:
            slots = [_Slot(values[0].abstract) for _ in range(places)]
            self.steps.append((Noticed(tuple(v.path for v in values), ("",) * places), slots))
            return list(slots)
        if cls in LEAFWISE and _cuts(item) and not self.proven:
            return self.refused(places, f"{name}: {by}, and {LEAFWISE[cls]}. {_PROVE}.")
        if not _cuts(item) and _untouched(item, fact):
            return self.passed(values[0])
        if cls in AXISWISE and _moves(item):
            if cls == "GaLoreState" and not matrices and np.shape(values[0]) == (0, 0):
                return self.passed(values[0])
            if cls != "MuonState":
                return self.refused(places, f"{name}: {by}, and {AXISWISE[cls]}: {_RENAMES}.")
            if not self.proven:
                return self.refused(places, f"{name}: {by}, and {AXISWISE[cls]}. {_PROVE}.")
        if role == PER_LEAF:
            if _cuts(item):
                return self.refused(places, f"{name}: {by}, and {LEAFWISE[cls]}: there is no exact counterpart.")
            return self.passed(values[0], places)
        return self.arrays(item, values, fact, cls, field, name, by)

    def arrays(
        self, item: Item, values: list[Any], fact: Field | None, cls: str, field: str, name: str, by: str
    ) -> list[Any]:
        places, forms = len(item.targets), [jax.tree.flatten(v) for v in values]
        if len({str(treedef) for _, treedef in forms}) > 1:
            return self.refused(places, f"{name}: these entries become one and differ in structure.")
        done: list[list[Any]] = []
        for leaves in zip(*(leaves for leaves, _ in forms), strict=True):
            wanted = [tuple(x.shape) for x in item.stages[0]]
            history = bool(fact and fact.history)
            got = [leaf.shape[1:] if history else leaf.shape for leaf in leaves]
            if got != wanted:
                if field in ("v_row", "v_col") and all(leaf.shape == (1,) for leaf in leaves):
                    done.append(self.passed(leaves[0], places))
                    continue
                factored = field in ("v", "v_row", "v_col")
                kind = "factored" if factored else f"of shape {[leaf.shape for leaf in leaves]}"
                why = "there is no exact counterpart" if _reshapes(item) else _RENAMES
                text = f"{name} is {kind}, and {by}: {why}. Start this part of the optimizer state anew, or keep the"
                return self.refused(places, f"{text} parameter's shape.")
            if (cls == "FactoredState" or (not cls and field == "v")) and _could_factor(item):
                text = f"{name} is not factored, but for {shapes(item.stages[-1])} it may be"
                return self.refused(places, f"{text}: there is no exact counterpart.")
            try:
                step = _step(item, fact, leaves, field, history)
            except UnsupportedError as err:
                return self.refused(places, f"{name}: {err}")
            slots = [_Slot(x) for x in _results(step, leaves, item, places)]
            self.steps.append((step, slots))
            done.append(list(slots))
        return [jax.tree.unflatten(forms[0][1], [d[i] for d in done]) for i in range(places)]

    # A leaf that lies in no such node.

    def single(self, leaf: _Leaf, cls: str, field: str, where: str, whole: bool) -> Any:
        fact, name = _moments.field_of(cls, field), f"The optimizer state {where}, {describe(leaf)},"
        if _moments.is_key(leaf, field):
            if not self.keeps_order():
                self.refused(
                    1, f"{name} draws noise leaf by leaf in the order of the tree, which the plan changes. {_ANEW}."
                )
            return self.passed(leaf)[0]
        history = bool(fact and fact.history)
        shape = leaf.shape[1:] if history else leaf.shape
        if leaf.dtype is None or len(leaf.shape) == 0 or (fact and fact.role == WHOLE):
            return self.passed(leaf)[0]
        if cls == "FactoredState" and field in ("v_row", "v_col") and leaf.shape == (1,):
            return self.passed(leaf)[0]
        before = tuple((p, tuple(self.plan.src[p].shape)) for p in self.ends[0].values())
        if not whole or len(shape) != 1 or shape[0] != sum(int(np.prod(shape)) for _, shape in before):
            text = (
                "is not in the structure of src_params, so it is not known what it belongs to. Pass the very parameters"
            )
            return self.refused(1, f"{name} {text} that the optimizer was initialised with.")[0]
        parts = []
        for item in self.items:
            mine = [_Leaf(p, Abstract(self.plan.src[p].shape, leaf.dtype)) for p in item.sources]
            try:
                step = _step(item, fact, mine, field, False) if item.ops else Step(item.sources, item.targets)
            except UnsupportedError as err:
                return self.refused(1, f"{name} {', '.join(item.sources)}: {err}")[0]
            parts.append(dataclasses.replace(step, sources=item.sources, targets=item.targets))
        after = tuple(self.ends[1].values())
        size = sum(int(np.prod(self.plan.dst[p].shape)) for p in after)
        slot = _Slot(Abstract((*leaf.shape[:-1], size), leaf.dtype))
        self.steps.append((Ravelled((leaf.path,), ("",), (), (), history, before, tuple(parts), after), [slot]))
        return slot

    def keeps_order(self) -> bool:
        """Whether the leaves are the same in the same order at both ends, but for their names."""
        becomes = {p: t for item in self.items if not item.ops for p, t in zip(item.sources, item.targets, strict=True)}
        return [becomes.get(p) for p in self.ends[0].values()] == list(self.ends[1].values())


_ANEW = "Start this part anew, and convert the others of a chain by themselves"


def plan_state(plan: Plan, opt_state: Any, src_params: Any, dst_params: Any, *, proven: bool = False) -> OptimizerPlan:
    """Returns the plan of an optimizer's state; see `Plan.optimizer_plan`.

    Args:
      plan, opt_state, src_params, dst_params: As there.
      proven: What only a trial can tell is let through, since one follows.
    """
    ends = [aligned(p, spec, end) for p, spec, end in ((src_params, plan.src, "src"), (dst_params, plan.dst, "dst"))]
    items = parameter_items(plan, set(ends[0].values()), set(ends[1].values()))
    leaves, treedef = jax.tree.flatten(opt_state, is_leaf=is_variable)
    paths = list(flatten(opt_state))
    tree = jax.tree.unflatten(treedef, [_Leaf(p, _abstract(x)) for p, x in zip(paths, leaves, strict=True)])
    classes: set[str] = set()

    def fits(node: Any) -> bool:
        classes.add(_moments.class_name(node))
        return matched(node, ends[0]) is not None

    nodes, outer = jax.tree_util.tree_flatten_with_path(tree, is_leaf=fits)
    planner = _Planner(items, ends, plan, proven)
    planner.problems += [] if proven else _felt(items, classes)
    dst_tree = jax.tree.structure(dst_params, is_leaf=is_variable)
    converted = []
    for keys, node in nodes:
        where, (cls, field) = jax.tree_util.keystr(keys), owner(tree, keys, _moments.class_name)
        values = matched(node, ends[0])
        fact = _moments.field_of(cls, field)
        if values is None:
            converted.append(planner.single(node, cls, field, where, _is_field(keys)))
        elif fact is not None and fact.role == WHOLE:
            converted += planner.passed(node)
        else:
            out = planner.node(values, cls, field, where)
            converted.append(jax.tree.unflatten(dst_tree, [out[path] for path in ends[1].values()]))
    if planner.problems:
        raise UnsupportedError(_told(planner.problems))
    new = jax.tree.unflatten(outer, converted)
    names = {id(slot): path for path, slot in _flat.flatten(new).items()}
    steps = (dataclasses.replace(step, targets=tuple(names[id(s)] for s in slots)) for step, slots in planner.steps)
    like = jax.tree.map(lambda slot: slot.abstract, new)
    src = {path: _abstract(leaf) for path, leaf in zip(paths, leaves, strict=True)}
    return OptimizerPlan(tuple(steps), src, like, tuple(_assumed(items)))


def _is_field(keys: tuple[Any, ...]) -> bool:
    """Whether a leaf is the whole of a state's field, or of a list there."""
    named = [key for key in keys if not isinstance(key, SequenceKey)]
    return bool(named) and isinstance(named[-1], GetAttrKey)


def _told(problems: Sequence[str]) -> str:
    problems = list(dict.fromkeys(problems))
    return problems[0] if len(problems) == 1 else "This optimizer state cannot be carried:\n" + listing(problems)


def parameter_items(plan: Plan, src: set[str], dst: set[str]) -> list[Item]:
    """Returns the items between the two parameter sets.

    Raises:
      StructureError: The plan does not join the sets.
      UnsupportedError: The target has parameters that the source never trained.
    """
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


def _both_ends(item: Item) -> tuple[Abstract, ...]:
    return (*item.stages[0], *item.stages[-1])


def _cuts(item: Item) -> bool:
    return len(item.sources) != 1 or len(item.targets) != 1


def _moves(item: Item) -> bool:
    """Whether axes, or what is one leaf, change."""
    return _cuts(item) or any(not isinstance(op, (Scale, Add, Cast, Flip)) for op in item.ops)


def _reshapes(item: Item) -> bool:
    return _cuts(item) or any(isinstance(op, Reshape) for op in item.ops)


def _untouched(item: Item, fact: Field | None) -> bool:
    """Whether no op reaches such a field: whatever is kept there stays as it is."""
    return (
        fact is not None
        and fact.role != VALUE
        and all(isinstance(op, Add) or (op.moment(1) is not op and op.moment(fact.power) is None) for op in item.ops)
    )


def _could_factor(item: Item) -> bool:
    """Whether optax, which factors by the second largest axis, may treat the target otherwise than the source."""

    def second(xs: Iterable[Any]) -> int:
        return max(sorted(x.shape)[-2] if len(x.shape) > 1 else 0 for x in xs)

    return second(item.stages[-1]) > second(item.stages[0])


def _felt(items: Sequence[Item], classes: set[str]) -> list[str]:
    """Returns what no state can make good: a change of units, and an offset where the values themselves count."""
    found = []
    for item in items:
        for op in item.ops:
            if isinstance(op, Scale) and abs(op.value) != 1:
                text = f"{', '.join(item.sources)} goes through {op}, and an optimizer's steps do not scale along unless it"
                found.append(f"{text} normalises by the size of the parameter. {_PROVE}.")
            for cls in sorted(classes & POSITIONED.keys()) if isinstance(op, Add) and op.value else ():
                found.append(f"{', '.join(item.sources)} goes through {op}, and {POSITIONED[cls]} ({cls}). {_PROVE}.")
    return found


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:2]) + f" and {len(paths) - 2} more" * (len(paths) > 2)


def _assumed(items: Sequence[Item]) -> list[str]:
    moved = next((item for item in items if _moves(item)), None)
    shifted = next((item for item in items for op in item.ops if isinstance(op, Add) and op.value), None)
    found = []
    if moved:
        found.append(
            "it has no part that keeps no state and looks at whole leaves or at axes (trust ratios of lamb and lars,"
            f" clipping by block or unit, masks by shape), since shapes change: {_some(moved.sources)}"
        )
    if shifted:
        found.append(f"no weight decay or projection reaches what is shifted: {_some(shifted.sources)}")
    return found


def _step(item: Item, fact: Field | None, leaves: Sequence[_Leaf], field: str, history: bool) -> Step:
    """Returns the step for one array of each source.

    Raises:
      UnsupportedError: An op is more than a rearrangement, and it is not known how the field follows it.
    """
    own = [leaf.dtype for leaf in leaves]
    native = own == [x.dtype for x in item.stages[0]]
    ops, stages = [], []
    for op, outs in zip(item.ops, item.stages[1:], strict=True):
        if isinstance(op, Cast):
            if not native:
                continue  # a moment may have a dtype of its own
            changed: Op | None = op
        else:
            first = op.moment(1)
            if first is not op and fact is None:
                raise UnsupportedError(
                    f"the parameter goes through {op}, and it is not known whether {field or 'this'!r} follows it as a"
                    " gradient, a squared gradient or a parameter. The states of optax are known by their classes."
                )
            changed = (
                first if first is op else op if fact and fact.role == VALUE else op.moment(fact.power if fact else 1)
            )
        if changed is not None:
            ops.append(changed)
            stages.append(tuple(outs))
    return Step(tuple(leaf.path for leaf in leaves), ("",) * len(item.targets), tuple(ops), tuple(stages), history)


def _results(step: Step, leaves: Sequence[_Leaf], item: Item, places: int) -> list[Abstract]:
    cast = any(isinstance(op, Cast) for op in step.ops)
    # Not `result_type`, which makes float64 float32 where JAX is in its mode of 32 bits; the arrays are NumPy's.
    dtype = functools.reduce(jnp.promote_types, [leaf.dtype for leaf in leaves])
    lead = leaves[0].shape[:1] if step.history else ()
    outs = item.stages[-1]
    return [Abstract((*lead, *x.shape), x.dtype if cast else dtype) for x in outs[:places]]


def convert(plan: Plan, opt_state: Any, src_params: Any, dst_params: Any, tx: Any = None, dst_tx: Any = None) -> Any:
    """Returns the target's optimizer state; see `Plan.optimizer`."""
    made = plan_state(plan, opt_state, src_params, dst_params, proven=tx is not None)
    new = made.forward(opt_state)
    if tx is not None:
        from bridges.mapping._proof import prove

        prove(plan, (tx, tx if dst_tx is None else dst_tx), (opt_state, new), (src_params, dst_params))
    return new
