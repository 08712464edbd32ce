"""Proof: what a guide shows of a model that was moved, and the comparison of everything that it computes.

A guide gives the source's entries and a function of them, then one plan and one function for each column that the weights
are moved to. What is compared is decided here, alike for all guides: the way back, outputs, gradients and a training step.
Nothing passes because nothing was computed: outputs and gradients that are all zero or not finite are failures.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _structures import aligned

import bridges as br

TOLERANCE = 2e-6  # of the largest value in an array: 16 units in the last place of float32, where sums differ in order
ROUNDING = 2.0**-20  # of the largest gradient: 8 units in its last place
OPTIMIZER = optax.adam(1e-2)


def randomised(tree: Any, seed: int = 0, positive: bool = False) -> Any:
    """Returns the tree with random float arrays: what is zero or one in a fresh model hides what went elsewhere.

    Args:
      tree: Any tree of arrays; those that are not float stay.
      seed: Another seed, other values.
      positive: Whether all values are, as variances must be; else those of at least two axes have random signs.
    """
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> Any:
        shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            return leaf
        value = rng.uniform(0.2, 1.0, shape)
        if len(shape) > 1 and not positive:
            value *= rng.choice([-1.0, 1.0], shape) / max(1, shape[-2]) ** 0.5  # so that sums stay of the order of 1
        return jnp.asarray(value, dtype)

    return jax.tree.map(draw, tree)


def difference(wanted: Any, found: Any) -> float:
    """Returns the largest difference of two trees, as a share of each array's largest value; or inf."""
    wanted, found = jax.tree.leaves(wanted), jax.tree.leaves(found)
    if not wanted or [np.shape(w) for w in wanted] != [np.shape(f) for f in found]:
        return float("inf")
    if not any(np.any(np.asarray(w)) for w in wanted):
        return float("inf")
    worst = 0.0
    for w, f in zip(wanted, found, strict=True):
        w, f = np.asarray(w, np.float64), np.asarray(f, np.float64)
        if not (np.isfinite(w).all() and np.isfinite(f).all()):
            return float("inf")
        worst = max(worst, float(np.max(np.abs(w - f), initial=0) / (np.max(np.abs(w), initial=0) or 1)))
    return worst


def clear(gradient: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the gradients, with zeros for arrays of nothing but rounding.

    What no output depends on has a gradient of zero only in exact arithmetic: the bias of attention's keys adds
    one number to all that the softmax normalises. An array that is rounding at one end only is a difference still.
    """
    largest = max(float(np.max(np.abs(value), initial=0)) for value in gradient.values())
    return {
        path: value if np.max(np.abs(value), initial=0) > ROUNDING * largest else np.zeros_like(value)
        for path, value in gradient.items()
    }


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison of a column with the one that its weights came from."""

    what: str
    column: str
    difference: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.difference <= self.allowed


@dataclasses.dataclass(frozen=True)
class End:
    """A column with weights in it, and all that is compared of it.

    Attributes:
      entries: The weights, randomised in the first column and moved in the others.
      opt_state: Adam's after some steps, of the entries that are parameters.
      output: What the model computes.
      gradient: Of a random sum of all outputs, with respect to the parameters.
      trained: The parameters after one step of Adam along that gradient.
    """

    entries: br.State
    opt_state: Any
    output: Any
    gradient: br.State
    trained: br.State

    @classmethod
    def of(cls, entries: br.State, opt_state: Any, apply: Callable[[br.State], Any]) -> End:
        """Returns the column of a function `entries -> output`."""
        params, rest = entries.partition(br.Param, ...)
        rng = np.random.default_rng(7)
        weights = [rng.normal(size=out.shape) for out in _real(jax.eval_shape(apply, entries))]

        def loss(params: br.State) -> Any:
            output = apply(rest | params)
            return sum(jnp.vdot(w, out) for w, out in zip(weights, _real(output), strict=True)), output

        @jax.jit
        def step(params: br.State, opt_state: Any) -> Any:
            gradient, output = jax.grad(loss, has_aux=True)(params)
            updates, _ = OPTIMIZER.update(gradient, opt_state, params)
            return output, gradient, optax.apply_updates(params, updates)

        return cls(entries, opt_state, *step(params, opt_state))


def _real(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]


class Proof:
    """The record of one guide.

    Attributes:
      topic: The guide's file name, without `.py`.
      rows: All comparisons so far.
      ends: The columns that hold weights, by name; the first is the source.
      plans: Column -> the column that its weights came from, and the plan.
    """

    def __init__(self, topic: str):
        self.topic = topic
        self.rows: list[Row] = []
        self.ends: dict[str, End] = {}
        self.plans: dict[str, tuple[str, br.Plan]] = {}

    def start(self, column: str, entries: br.State, apply: Callable[[br.State], Any]) -> None:
        """Takes the column that everything is moved from: its entries, randomised, and `entries -> output`."""
        params = entries.filter(br.Param)
        moments = optax.ScaleByAdamState(jnp.array(3), randomised(params, 1), randomised(params, 2, positive=True))
        self.ends[column] = End.of(entries, (moments, optax.EmptyState()), apply)

    def moved(self, column: str, plan: br.Plan, apply: Callable[[br.State], Any], after: str | None = None) -> br.State:
        """Moves weights and Adam's state into a column by a plan, compares all it computes, and returns its entries.

        Args:
          column: Where they go.
          plan: From the column `after` to this one.
          apply: `entries -> output`, of the model in this column.
          after: The column that they come from; the source by default.
        """
        after = after or next(iter(self.ends))
        src = self.ends[after]
        params, rest = src.entries.partition(br.Param, ...)

        def forward(params: br.State) -> br.State:
            return plan.forward(rest | params).filter(br.Param)

        entries = plan.forward(src.entries)
        opt_state = plan.optimizer(src.opt_state, params, entries.filter(br.Param))
        end = End.of(entries, opt_state, apply)
        self.plans[column], self.ends[column] = (after, plan), end
        if plan.verdict == "exact":
            self.equal("the way back", src.entries, plan.inverse(entries), column=column, allowed=0.0)
        self.equal("output", src.output, end.output, column=column)
        (gradient,) = jax.vjp(forward, params)[1](end.gradient)  # the chain rule, through the plan
        self.equal("gradient", clear(src.gradient), clear(gradient), column=column)
        self.equal("training step", forward(src.trained), end.trained, column=column)
        return entries

    def equal(self, what: str, wanted: Any, found: Any, column: str, allowed: float = TOLERANCE) -> None:
        """Records a comparison of two trees; mappings are compared path by path."""
        if isinstance(wanted, Mapping) and isinstance(found, Mapping):
            same = wanted.keys() == found.keys()
            wanted, found = ([tree[path] for path in sorted(tree)] if same else [] for tree in (wanted, found))
        self.rows.append(Row(what, column, difference(wanted, found), allowed))

    @property
    def failures(self) -> list[Row]:
        """The comparisons that do not hold; a guide that compared nothing has one."""
        return [row for row in self.rows if not row.holds] if self.rows else [Row("nothing was compared", "-", 1, 0)]

    @property
    def structures(self) -> dict[str, list[str]]:
        """Column -> lines, one for each entry; lines of one number are the same weights."""
        return aligned({column: end.entries for column, end in self.ends.items()}, self.plans)

    def summary(self) -> dict[str, Any]:
        """Returns one line of the table of all guides."""
        params = next(iter(self.ends.values())).entries.filter(br.Param) if self.ends else {}
        worst = max(self.rows, key=lambda row: (not row.holds, row.difference), default=None)
        return {
            "topic": self.topic,
            "columns": [*self.ends],
            "parameters": sum(np.size(value) for value in params.values()),
            "difference": worst.difference if worst else None,
            "equal": not self.failures,
            "comparisons": [dataclasses.asdict(row) for row in self.rows],
        }

    def lines(self) -> Iterator[str]:
        """Yields what the program prints: which weights are which, the plans' verdicts, and each comparison."""
        for rows in zip(*self.structures.values(), strict=True):
            yield ""
            yield from (f"  {column:7} {row}" for column, row in zip(self.structures, rows, strict=True) if row)
        yield ""
        for column, (after, plan) in self.plans.items():
            yield f"  {after} -> {column}: {len(plan)} steps, {plan.verdict}"
            yield from (f"    {reason}" for reason in plan.reasons)
        yield ""
        for row in self.rows:
            said = "equal" if row.holds else "NOT EQUAL"
            yield f"  {row.column:7} {row.what:24} {said:9} {row.difference:.1e} (allowed {row.allowed:.1e})"


def show(prove: Callable[[Proof], None], topic: str, title: str) -> None:
    """Runs one guide, prints what it did, and exits with 1 if something was not equal."""
    proof = Proof(topic)
    prove(proof)
    print(f"{topic}: {title.splitlines()[0]}", *proof.lines(), sep="\n")
    sys.exit(1 if proof.failures else 0)
