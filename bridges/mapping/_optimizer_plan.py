"""OptimizerPlan: how each leaf of an optimizer's state becomes one of the target's; run whole, or one step at a time.

Invariant: each leaf of the target's state is written by exactly one step. A step without ops hands on what it is given,
unread, so that lazy leaves stay lazy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges.core import _flat
from bridges.core._errors import StructureError, listing
from bridges.mapping._op import Abstract, Op
from bridges.mapping._state_tree import flatten, value_of


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of an optimizer's plan: some leaves of the source's state become some of the target's.

    Attributes:
      sources: Paths in the source's state, flattened.
      targets: Paths in the target's.
      ops: From sources to targets; none: as it is, one source for all targets.
      stages: Shapes and dtypes after each op.
      history: There is a leading axis, and the ops act on each slice.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    ops: tuple[Op, ...] = ()
    stages: tuple[tuple[Abstract, ...], ...] = ()
    history: bool = False

    def forward(self, arrays: Sequence[Any]) -> list[Any]:
        """Returns the targets' arrays for those of the sources; what needs no op is passed on unread."""
        if not self.ops:
            return list(arrays) * (len(self.targets) // len(arrays))
        xs = [_array(x) for x in arrays]
        if not self.history:
            return self._run(xs)
        slices = [self._run([x[i] for x in xs]) for i in range(xs[0].shape[0])]
        return [_xp(xs[0]).stack(ys) for ys in zip(*slices, strict=True)]

    def _run(self, xs: list[Any]) -> list[Any]:
        for op, outs in zip(self.ops, self.stages, strict=True):
            xs = op.apply(xs, list(outs))
        return xs


@dataclasses.dataclass(frozen=True)
class Noticed(Step):
    """Flags of leaves: a target's is set where one of its sources' is."""

    def forward(self, arrays: Sequence[Any]) -> list[Any]:
        found = _array(arrays[0])
        for x in arrays[1:]:
            found = found | _array(x)
        return [found] * len(self.targets)


@dataclasses.dataclass(frozen=True)
class Ravelled(Step):
    """One vector of all parameters, in the tree's order (`optax.flatten`), which is another at the target.

    Attributes:
      before: Name and shape of each part, in the source's order.
      parts: Steps from these names to those of the target's.
      after: The names in the target's order.
    """

    before: tuple[tuple[str, tuple[int, ...]], ...] = ()
    parts: tuple[Step, ...] = ()
    after: tuple[str, ...] = ()

    def forward(self, arrays: Sequence[Any]) -> list[Any]:
        x = _array(arrays[0])
        if not self.history:
            return [self._run([x])[0]]
        return [_xp(x).stack([self._run([row])[0] for row in x])]

    def _run(self, xs: list[Any]) -> list[Any]:
        xp, ends = _xp(xs[0]), np.cumsum([int(np.prod(shape)) for _, shape in self.before])
        pieces = xp.split(xs[0], [int(n) for n in ends[:-1]])
        flat = {name: p.reshape(shape) for (name, shape), p in zip(self.before, pieces, strict=True)}
        out: dict[str, Any] = {}
        for step in self.parts:
            out.update(zip(step.targets, step.forward([flat[name] for name in step.sources]), strict=True))
        return [xp.concatenate([out[name].reshape(-1) for name in self.after])]


def _array(x: Any) -> Any:
    return x if isinstance(x, (np.ndarray, np.generic, jax.Array)) else np.asarray(x)


def _xp(x: Any) -> Any:
    return np if isinstance(x, (np.ndarray, np.generic)) else jnp


@dataclasses.dataclass(frozen=True)
class OptimizerPlan:
    """A conversion of an optimizer's state, decided to the last leaf.

    Attributes:
      items: The steps, each on its own, in any order, so that a converter can stream: read `item.sources`, call
        `item.forward(arrays)`, write `item.targets`.
      src: The source's state, flattened: path -> shape and dtype (a value that is no array as it is).
      like: The target's state, a native tree of shapes and dtypes.
      assumes: What cannot be seen from a state and is taken for granted, in words.
    """

    items: tuple[Step, ...]
    src: Mapping[str, Any]
    like: Any
    assumes: tuple[str, ...] = ()

    def forward(self, opt_state: Any) -> Any:
        """Returns the target's native state for the source's.

        Raises:
          StructureError: The state is not the planned one.
          EntryShapeError: A shape is not.
        """
        flat = {path: value_of(leaf) for path, leaf in flatten(opt_state).items()}
        if flat.keys() != self.src.keys():
            odd = sorted(flat.keys() ^ self.src.keys())
            raise StructureError(
                "These leaves are in the planned optimizer state or in this one only:\n" + listing(odd)
            )
        _flat.check_shapes((path, flat[path], want) for path, want in self.src.items())
        out: dict[str, Any] = {}
        for item in self.items:
            out.update(zip(item.targets, item.forward([flat[p] for p in item.sources]), strict=True))
        return self.unflatten(out)

    def unflatten(self, flat: Mapping[str, Any]) -> Any:
        """Returns the target's native state of `{path: array}`, all the targets of all items.

        Raises:
          StructureError, EntryShapeError: These are not the targets.
        """
        return _flat.unflatten(flat, self.like)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __str__(self) -> str:
        lines = [
            f"{' + '.join(item.sources)} -> {' + '.join(item.targets)}  {', '.join(map(str, item.ops))}".rstrip()
            for item in self.items
        ]
        return "\n".join([*lines, *(f"assumed: {text}" for text in self.assumes)])
