"""Plan: every leaf of two ends, joined; run forwards, backwards, one item at a time, printed, or kept as JSON.

Invariant: each entry of either end is in exactly one item. Where `verdict` is 'exact',
`plan.inverse(plan.forward(state))` is `state` bit for bit, and the reverse.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges.core._errors import (
    EntryShapeError,
    MappingError,
    StructureError,
    UnsupportedError,
    describe,
    hint,
    listing,
)
from bridges.core._kind import BatchStat, Cache, Intermediate, Kind, Param, RngState, Variable, kind_type
from bridges.core._state import State
from bridges.mapping._data import frozen, thawed
from bridges.mapping._op import Abstract, Op
from bridges.mapping._ops import recorded_op
from bridges.mapping._resolve import resolve

if TYPE_CHECKING:
    from bridges.mapping._axes import AxisNames
    from bridges.mapping._optimizer_plan import OptimizerPlan

EXACT, ROUNDING = "exact", "exact to rounding"
EVALUATION, NOT_EXACT = "exact for evaluation only", "not exact"
_WORST = (EXACT, ROUNDING, EVALUATION, NOT_EXACT)
_KINDS = {kind.__name__: kind for kind in (Variable, Param, BatchStat, Cache, Intermediate, RngState)}
KEY_DTYPES = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}


@dataclasses.dataclass(frozen=True)
class Item:
    """One step of a plan: its sources become its targets.

    Attributes:
      sources: Paths at the source; none for a fill.
      targets: Paths at the target; none for a drop.
      ops: From sources to targets.
      stages: Shapes and dtypes before, between and after the ops.
      how: Why this item is in the plan.
      value: What a fill writes, and what going back over a drop writes.
      reason: What a drop loses.
      resume: What continued training does otherwise.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    ops: tuple[Op, ...]
    stages: tuple[tuple[Abstract, ...], ...]
    how: str = ""
    value: Any = None
    reason: str = ""
    resume: str = ""

    def forward(self, arrays: Sequence[Any]) -> list[Any]:
        """Returns the targets' arrays for those of the sources."""
        if not self.sources:
            return self._written(self.stages[-1], self.targets)
        xs = [_array(x) for x in arrays]
        if not self.targets:
            return []
        if not self.ops:
            return xs
        with self._named():
            for op, outs in zip(self.ops, self.stages[1:], strict=True):
                xs = op.apply(xs, list(outs))
        return xs

    def inverse(self, arrays: Sequence[Any]) -> list[Any]:
        """Returns the sources' arrays for those of the targets.

        Raises:
          UnsupportedError: The item drops its sources and does not say what to write in their place.
        """
        if not self.targets:
            return self._written(self.stages[0], self.sources)
        xs = [_array(x) for x in arrays]
        if not self.sources:
            return []
        if not self.ops:
            return xs
        with self._named():
            for op, outs in zip(reversed(self.ops), self.stages[-2::-1], strict=True):
                xs = op.inverse.apply(xs, list(outs))
        return xs

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except UnsupportedError as err:
            raise UnsupportedError(f"{', '.join(self.sources)} -> {', '.join(self.targets)}: {err}") from err

    def _written(self, outs: Sequence[Abstract], paths: Sequence[str]) -> list[Any]:
        if self.value is None:
            raise UnsupportedError(
                f"{', '.join(paths)} was dropped, so the way back has no value for it. Give the drop a `value`, or plan"
                " from the other end with a `fill`."
            )
        return [constant(self.value, out) for out in outs]

    @functools.cached_property
    def losses(self) -> tuple[tuple[str, str], ...]:
        """What the way forward does not keep: pairs of a verdict and the reason for it."""
        if self.resume:
            return ((EVALUATION, self.resume),)
        if not self.targets:
            if self.reason:
                return ((EVALUATION, self.reason),)
            return ((NOT_EXACT, f"{', '.join(self.sources)} is dropped"),)
        if not self.sources:
            return ((NOT_EXACT, f"{', '.join(self.targets)} is filled with a constant"),) if not self.reason else ()
        found = []
        for op, ins, outs in zip(self.ops, self.stages, self.stages[1:], strict=False):
            loss = op.loss(list(ins), list(outs))
            if loss and self.reason:
                found.append((EVALUATION, self.reason))
            elif loss:
                found.append(
                    (ROUNDING if loss.startswith("rounding") else NOT_EXACT, f"{', '.join(self.targets)}: {loss}")
                )
        return tuple(found)

    @property
    def verdict(self) -> str:
        """The worst of its losses."""
        return max((v for v, _ in self.losses), key=_WORST.index, default=EXACT)

    def to_dict(self) -> dict[str, Any]:
        """Returns the item as plain data, without shapes."""
        out: dict[str, Any] = {"sources": list(self.sources), "targets": list(self.targets)}
        if self.ops:
            out["ops"] = [op.to_dict() for op in self.ops]
        out.update(
            {k: thawed(v) for k in ("how", "value", "reason", "resume") if (v := getattr(self, k)) not in ("", None)}
        )
        return out


def constant(value: Any, out: Abstract) -> np.ndarray:
    """Returns a new array of the constant, spread over the shape of `out`.

    Raises:
      MappingError: The constant does not fit the shape, or is no value of the dtype.
    """
    try:
        array = np.asarray(thawed(value))
        if array.dtype.kind not in "biufc":
            raise ValueError("it is not a number")
        cast = array.astype(out.dtype)
        if not jax.dtypes.issubdtype(out.dtype, np.inexact) and not np.array_equal(cast, array):
            raise ValueError(f"it is not a value of {out.dtype}")
        return np.broadcast_to(cast, out.shape).copy()
    except (ValueError, TypeError) as err:
        raise MappingError(f"the constant {value!r} cannot fill {describe(out)}: {err}") from err


def _array(x: Any) -> Any:
    return x if hasattr(x, "shape") and hasattr(x, "dtype") else np.asarray(x)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A conversion between two specs, decided to the last leaf.

    Attributes:
      items: The steps; each is on its own, in any order, so that a converter can stream.
      src: Abstract entries of the source, with kinds.
      dst: Abstract entries of the target, with kinds.
      placements: `(source module, target module, why)` for each pair of layers.
      notes: Pairs of a verdict and a reason that no item has (differences that were accepted).
      src_random: Entries of the source's random state that are not converted; `forward` takes a state with or without them.
      dst_random: The same at the target: they are not among what `forward` returns.
    """

    items: tuple[Item, ...]
    src: State
    dst: State
    placements: tuple[tuple[str, str, str], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    src_random: tuple[str, ...] = ()
    dst_random: tuple[str, ...] = ()

    def forward(self, state: Mapping[str, Any]) -> State:
        """Returns the target's state; its kinds are the target spec's.

        Args:
          state: The source's entries, exactly those of `src`. NumPy arrays stay NumPy; tracers work too.

        Raises:
          StructureError: Entries are missing, or there are others.
          EntryShapeError: A shape or dtype is not the planned one.
          UnsupportedError: Entries that are tied at the target have different values.
        """
        _check(state, self.src, "source", self.src_random)
        ways = ((item.targets, functools.partial(item.forward, [state[p] for p in item.sources])) for item in self)
        return State(_run(ways), self.dst.declared)

    def inverse(self, state: Mapping[str, Any]) -> State:
        """Returns the source's state for the target's: the same plan run backwards.

        Raises:
          StructureError, EntryShapeError: As `forward`.
          UnsupportedError: A dropped entry has no value to be written, or entries that are tied at the source have
            different values.
        """
        _check(state, self.dst, "target", self.dst_random)
        ways = ((item.sources, functools.partial(item.inverse, [state[p] for p in item.targets])) for item in self)
        return State(_run(ways), self.src.declared)

    def optimizer(self, opt_state: Any, src_params: Any, dst_params: Any, tx: Any = None, *, dst_tx: Any = None) -> Any:
        """Returns the native optax state of the target for that of the source.

        All refusals come before an array is read. Only the state is seen: what a transformation does to a whole leaf
        without keeping a state (trust ratios, clipping by block) is not, unless `tx` is given.

        Args:
          opt_state: The state of any optax transformation over `src_params`; that of an `nnx.Optimizer` is its
            `opt_state`, that of a `TrainState` too. NNX Variables are replaced by their arrays.
          src_params: The source's native parameter tree (or `State`, or `nnx.state(model, nnx.Param)`), as given to
            `tx.init`.
          dst_params: The target's; only structure, shapes and dtypes are read.
          tx: The transformation itself: ten updates are then run at both ends from the converted state, and compared.
          dst_tx: The target's, where it is written otherwise (labels or masks that name parameters).

        Raises:
          StructureError: The leaves of a tree are not the plan's entries; or the state is not one of `tx`.
          UnsupportedError: Part of the state cannot be carried; it is named, with the reason. Or the updates differ.
        """
        from bridges.mapping._optimizer import convert

        return convert(self, opt_state, src_params, dst_params, tx, dst_tx)

    def optimizer_plan(self, opt_state: Any, src_params: Any, dst_params: Any) -> OptimizerPlan:
        """Returns how each leaf of an optimizer state becomes one of the target's; no array is read.

        Args:
          opt_state: As in `optimizer`; its leaves need a shape and a dtype only.
          src_params, dst_params: As there.

        Raises:
          StructureError, UnsupportedError: As there.
        """
        from bridges.mapping._optimizer import plan_state

        return plan_state(self, opt_state, src_params, dst_params)

    def axis_names(self, names: Mapping[str, tuple[Any, ...]]) -> AxisNames:
        """Returns the names of the target's axes (Linen's `names`, NNX's `out_sharding`) for those of the source.

        Args:
          names: Path at the source -> one name an axis; what the adapters' `axis_names` give.

        Returns:
          `names` by path at the target, and `lost`: which names could not follow an op, in words.

        Raises:
          MappingError: A path is no source, or has fewer axes than names.
        """
        from bridges.mapping._axes import names_at_target

        return names_at_target(self, names)

    def axis_names_back(self, names: Mapping[str, tuple[Any, ...]]) -> AxisNames:
        """Returns the names of the source's axes for those of the target: `axis_names` the other way."""
        from bridges.mapping._axes import names_at_source

        return names_at_source(self, names)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    @functools.cached_property
    def losses(self) -> tuple[tuple[str, str], ...]:
        """Pairs of a verdict and a reason, each once."""
        return tuple(dict.fromkeys([*self.notes, *(loss for item in self.items for loss in item.losses)]))

    @property
    def verdict(self) -> str:
        """'exact', 'exact to rounding', 'exact for evaluation only' or 'not exact'; `reasons` says why."""
        return max((v for v, _ in self.losses), key=_WORST.index, default=EXACT)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is not 'exact'."""
        return tuple(reason for verdict, reason in self.losses if verdict != EXACT)

    def __str__(self) -> str:
        from bridges.mapping._table import text

        return text(self)

    def to_json(self, indent: int | None = None) -> str:
        """Returns the plan as JSON text. Kinds are kept by name; metadata of kinds is not."""
        return json.dumps(
            {
                "bridges_plan": 1,
                "src": _entries(self.src),
                "dst": _entries(self.dst),
                "items": [item.to_dict() for item in self.items],
                "placements": self.placements,
                "notes": self.notes,
                "random": [self.src_random, self.dst_random],
            },
            indent=indent,
        )

    @classmethod
    def from_json(cls, text: str, kinds: Mapping[str, Kind] | None = None) -> Plan:
        """Returns the plan of a JSON text.

        Args:
          text: From `to_json`.
          kinds: Your own `Variable` subclasses, by name.

        Raises:
          MappingError: The text is not a plan of this version, or a kind is unknown.
        """
        try:
            given = json.loads(text)
        except ValueError as err:
            raise MappingError(f"This is not JSON: {err}") from err
        if not isinstance(given, dict) or given.get("bridges_plan") != 1:
            raise MappingError("This JSON is not a plan of version 1 (the key bridges_plan is missing or different).")
        src, dst = (_state(given[end], {**_KINDS, **(kinds or {})}) for end in ("src", "dst"))
        items = []
        for row in given["items"]:
            sources, targets = tuple(row["sources"]), tuple(row["targets"])
            ops = tuple(map(recorded_op, row.get("ops", ())))
            ends = [src[p] for p in sources], [dst[p] for p in targets]
            stages = resolve(ops, *ends) if sources and targets else tuple(map(tuple, ends))
            texts = {key: row.get(key, "") for key in ("how", "reason", "resume")}
            items.append(Item(sources, targets, ops, stages, value=frozen(row.get("value")), **texts))
        placements, notes, random = (tuple(map(tuple, given[key])) for key in ("placements", "notes", "random"))
        return cls(tuple(items), src, dst, placements, notes, *random)


def _run(ways: Iterable[tuple[Sequence[str], Callable[[], Sequence[Any]]]]) -> dict[str, Any]:
    """Returns the arrays of all items by path; what cannot be carried is said of all of them together."""
    out: dict[str, Any] = {}
    problems: list[UnsupportedError] = []
    for paths, arrays in ways:
        try:
            out.update(zip(paths, arrays(), strict=True))
        except UnsupportedError as err:
            problems.append(err)
    if len(problems) > 1:
        raise UnsupportedError("These entries cannot be carried:\n" + listing(map(str, problems))) from problems[0]
    if problems:
        raise problems[0]
    return out


def _entries(state: State) -> dict[str, list[Any]]:
    kinds = {p: kind_type(kind).__name__ for p, kind in state.declared.items()}
    return {p: [str(x.dtype), list(x.shape), kinds.get(p)] for p, x in state.items()}


def dtype_of(name: str) -> Any:
    """Returns the dtype of a name, that of typed random keys (`key<fry>`) included."""
    if name in KEY_DTYPES:
        return jax.eval_shape(lambda: jax.random.key(0, impl=KEY_DTYPES[name])).dtype
    return jnp.dtype(name)


def _state(given: Mapping[str, Any], kinds: Mapping[str, Kind]) -> State:
    for path, (_, _, kind) in given.items():
        if kind is not None and kind not in kinds:
            raise MappingError(f"{path!r} is of the kind {kind!r}: pass kinds={{{kind!r}: YourVariableSubclass}}.")
    entries = {path: Abstract(tuple(shape), dtype_of(dtype)) for path, (dtype, shape, _) in given.items()}
    return State(entries, {path: kinds[kind] for path, (_, _, kind) in given.items() if kind is not None})


def _check(state: Mapping[str, Any], spec: State, end: str, random: Sequence[str]) -> None:
    if state.keys() != spec.keys():
        missing = [p for p in spec if p not in state]
        extra = [p for p in state if p not in spec and p not in random]
    else:
        missing = extra = []
    if missing or extra:
        lines = [f"missing {p!r}.{hint(p, extra)}" for p in missing] + [f"unexpected {p!r}" for p in extra]
        raise StructureError(f"These are not the entries that the plan has at its {end}:\n" + listing(lines))
    wrong = [
        f"{p!r}: got {describe(x)}, planned {describe(want)}"
        for p, want in spec.items()
        if (x := _array(state[p])).dtype != want.dtype or tuple(x.shape) != tuple(want.shape)
    ]
    if wrong:
        raise EntryShapeError(
            f"Entries of the {end} are not as planned:\n" + listing(wrong) + "\nPlan with their specs."
        )
