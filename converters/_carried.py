"""What goes along with variables: the states of optimizers, and parameters that a checkpoint has once more.

A running average of the parameters goes through the items of the plan as they do. An optimizer's state goes through
`Plan.optimizer_plan`, which decides on shapes alone; both become lazy leaves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from bridges.core import _flat
from bridges.core._errors import StructureError, UnsupportedError, listing
from bridges.core._spec import Spec, abstract
from bridges.core._state import State
from bridges.mapping._op import Abstract
from bridges.mapping._plan import Item, Plan
from converters import _native
from converters._contents import Contents
from converters._stream import Stream
from converters.formats import LazyLeaf


@dataclasses.dataclass(frozen=True)
class Move:
    """One step of a conversion, with the leaves that it joins.

    Attributes:
      sources, targets: Leaves of the source's and of the target's tree.
      item: What is done; its paths are those of the plan.
      back: Whether `item` goes back too.
    """

    sources: tuple[Any, ...]
    targets: tuple[Any, ...]
    item: Item
    back: bool = True


def moved(stream: Stream, items: Sequence[Item], sources: Mapping[str, Any]) -> tuple[list[Move], dict[str, Any]]:
    """Returns the moves of a plan's items, and the targets by path."""
    moves: list[Move] = []
    made: dict[str, Any] = {}
    for item in items:
        given = tuple(sources[p] for p in item.sources)
        leaves = stream.step(item.forward, given, item.stages[-1], ", ".join(item.targets)) if item.targets else []
        moves.append(Move(given, tuple(leaves), item))
        made.update(zip(item.targets, leaves, strict=True))
    return moves, made


def twins(
    stream: Stream, plan: Plan, found: Contents, to: str, spec: Spec, src_spec: Spec
) -> tuple[list[Move], dict[Any, Any]]:
    """Returns the moves and the native trees of parameters that the source has once more.

    Raises:
      StructureError: A tree does not have the parameters' entries.
    """
    moves: list[Move] = []
    trees: dict[Any, Any] = {}
    own = {path for path in found.variables if path.startswith("params/")}
    for key, tree in found.twins.items():
        entries = _native.entries(found.framework, _native.plain(tree), None, {}, src_spec)
        odd = sorted(own ^ entries.keys())
        if odd:
            raise StructureError(
                f"What is in {key!r} does not have the entries of the parameters:\n"
                + listing(map(repr, odd))
                + "\nName the part of the file that is to be converted (--part)."
            )
        wrong = [p for p in own if tuple(entries[p].shape) != tuple(found.variables[p].shape)]
        if wrong:
            raise StructureError(
                f"What is in {key!r} has other shapes than the parameters:\n" + listing(map(repr, wrong))
            )
        items = [item for item in plan.items if item.sources and all(p in own for p in item.sources)]
        more, made = moved(stream, items, entries)
        moves += more
        trees[key] = _native.parameters(to, made, spec)
    return moves, trees


def optimizers(
    stream: Stream, plan: Plan, found: Contents, to: str, spec: Spec, tx: Any = None, tuples: bool = True
) -> tuple[list[Move], dict[Any, Any], list[str]]:
    """Returns the moves, the native states by the source's field, and notes for the user.

    Args:
      stream: Where the steps run.
      plan: The plan of the variables.
      found: What the source holds.
      to: The target's framework.
      spec: Its spec.
      tx: The optax transformation, for the containers of its state where the file has dictionaries in their place.
      tuples: Whether the target's format keeps containers.

    Raises:
      StructureError: The state is not the transformation's.
      UnsupportedError: It cannot be carried.
    """
    moves: list[Move] = []
    states: dict[Any, Any] = {}
    notes: list[str] = []
    src_params = found.params
    if found.framework == "nnx":  # the optimizer knows the parameters only
        src_params = _native.parameters("nnx", found.variables)
    if to == "flat":  # what becomes of parameters, whatever it is called there
        trained = {t for item in plan.items if any(p.startswith("params/") for p in item.sources) for t in item.targets}
        dst_params: Any = State({path: x for path, x in plan.dst.items() if path in trained})
    else:
        dst_params = _native.parameters(to, State({p: x for p, x in plan.dst.items()}), spec)
    for key, state in found.optimizers.items():
        if tx is not None:
            state = _typed(state, tx, src_params, str(key))
        bare = not isinstance(state, tuple)  # every state of optax is a tuple; msgpack and Orbax keep none
        try:
            steps = plan.optimizer_plan(state, src_params, dst_params)
        except UnsupportedError as err:
            raise UnsupportedError(f"{err}\n{_BARE}." if bare else str(err)) from err
        flat = _flat.flatten(state)
        made: dict[str, Any] = {}
        for step in steps.items:
            given = tuple(flat[p] for p in step.sources)
            ins = tuple(map(abstract, given))
            exact_copy = not step.ops and type(step).__name__ == "Step"
            if exact_copy and len(given) == 1:
                leaves = [given[0], *([_again(given[0])] * (len(step.targets) - 1))]
                item = Item(step.sources, step.targets[:1], (), (ins,))
                moves.append(Move(given, (leaves[0],), item))
            else:
                outs = _outs(step, steps.like)
                leaves = list(stream.step(step.forward, given, outs, f"optimizer state {', '.join(step.targets)}"))
                plainly = type(step).__name__ == "Step" and not step.history
                stages = _staged(step, ins, outs) if plainly and step.ops else (ins,)
                ops = step.ops if plainly else ()
                moves.append(Move(given, tuple(leaves), Item(step.sources, step.targets, ops, stages), plainly))
            made.update(zip(step.targets, leaves, strict=True))
        new = steps.unflatten(made)
        if to == "nnx":  # nnx.state has dictionaries for sequences and named tuples, and no empty ones
            new = _flat.nest(_flat.flatten(new))
        elif bare and tuples:
            notes.append(f"{_BARE}; without them optax cannot use it")
        states[key] = new
        notes += [f"Taken for granted of the optimizer: {text}" for text in steps.assumes]
    return moves, states, notes


_BARE = (
    "The state of the optimizer is in dictionaries, as the file has it: the optax transformation that it is of,"
    " --optimizer adamw or --optimizer train.py:optimizer (tx=), gives it its own containers"
)


def _typed(state: Any, tx: Any, params: Any, key: str) -> Any:
    """Returns an optimizer's state in the containers that its transformation gives it."""
    like = jax.eval_shape(tx.init, jax.tree.map(abstract, params))
    try:
        return _flat.unflatten(_flat.flatten(state), like)
    except StructureError as err:
        lines = str(err).splitlines()
        more = [f"  … and {len(lines) - 5} lines more"] if len(lines) > 5 else []
        raise StructureError(
            f"The state of the optimizer at {key!r} is not of the given transformation (--optimizer, tx=). "
            + "\n".join(lines[:5] + more)
        ) from err


def _staged(step: Any, ins: tuple[Abstract, ...], outs: Sequence[Abstract]) -> tuple[tuple[Abstract, ...], ...]:
    """Returns what there is before and after each op: a step has the parameter's dtypes, moments may have another one."""
    stages, dtype = [ins], ins[0].dtype
    for op, stage in zip(step.ops, step.stages, strict=True):
        dtype = outs[0].dtype if op.name == "cast" else dtype
        stages.append(tuple(Abstract(tuple(x.shape), dtype) for x in stage))
    return (*stages[:-1], tuple(outs))


def _outs(step: Any, like: Any) -> list[Abstract]:
    wanted = _flat.flatten(like)
    return [Abstract(tuple(wanted[p].shape), wanted[p].dtype) for p in step.targets]


def _again(leaf: Any) -> LazyLeaf:
    return LazyLeaf(leaf.shape, leaf.dtype, lambda: leaf.read() if isinstance(leaf, LazyLeaf) else leaf.__array__())
