"""Reason: why two models differ at a place, found by trying what would mend it.

Each hypothesis is run: the target's graph is computed again with the leaf, the constant, the operation or the activation
that the hypothesis says is right, and the outputs are compared with the source's. Only one that makes the values agree is
a reason, and the figure is reported with it; where none does the reason is unknown.

Invariant: nothing is guessed. A reason that mends this layer but not the outputs (because more is wrong) says so.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges._infer._arrays import is_real
from bridges._infer._graph import LAYOUT, Graph, Step
from bridges._infer._match import Match, informative
from converters._hypotheses import of_leaves
from converters._layers import Layers, Place

WINDOW = 60  # steps after the first difference in which a value must match again
MOST = 400  # hypotheses about leaves that are tried
EPSILONS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-12, 0.0)
UNKNOWN = "reason unknown"

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu, "gelu (tanh approximation)": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu (exact)": lambda x: jax.nn.gelu(x, approximate=False), "silu": jax.nn.silu, "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid, "softplus": jax.nn.softplus, "elu": jax.nn.elu, "selu": jax.nn.selu,
    "leaky_relu(0.01)": jax.nn.leaky_relu, "leaky_relu(0.2)": lambda x: jax.nn.leaky_relu(x, 0.2),
    "relu6": jax.nn.relu6, "softsign": jax.nn.soft_sign, "exp": jnp.exp, "sin": jnp.sin,
    "softmax": jax.nn.softmax, "log_softmax": jax.nn.log_softmax,
}  # fmt: skip
_MEANING = {
    "padding": "padding", "window_strides": "stride", "rhs_dilation": "kernel dilation", "lhs_dilation": "input dilation",
    "feature_group_count": "groups", "axes": "axes", "reverse": "direction", "window_dimensions": "window", "y": "power",
    "padding_config": "padding", "axis": "axis", "base_dilation": "dilation", "window_dilation": "dilation",
    "comparator": "comparison", "permutation": "order of axes",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why.

    Attributes:
      text: In words.
      evidence: The figure: how far the outputs are apart before, and with the hypothesis applied.
      after: Whether what is wrong belongs to the layer after the place, where that lies between two.
      ahead: Whether it should have come before the place: an operation that is missing.
      place: Where the leaves are, if they are not those of the place itself.
      complete: Whether the outputs agree with it.
    """

    text: str
    evidence: str
    after: bool = False
    ahead: bool = False
    place: Place | None = None
    complete: bool = True


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a hypothesis replaces: values and the functions of steps, by number."""

    text: str
    values: Mapping[int, Any]
    runs: Mapping[int, Any] = dataclasses.field(default_factory=dict)
    after: bool = False
    ahead: bool = False
    place: Place | None = None

    def reason(self, evidence: str, complete: bool = True) -> Reason:
        return Reason(self.text, evidence, self.after, self.ahead, self.place, complete)


class Bench:
    """Both graphs, and the place where they part.

    Args:
      src, dst: The graphs.
      match: The source's values.
      carriers: The target's values that carry the difference.
      at: The step of the target at which it begins.
      relative: How far outputs may be apart to agree.
    """

    def __init__(self, src: Graph, dst: Graph, match: Match, carriers: set[int], at: int, relative: float):
        self.src, self.dst, self.match, self.carriers, self.at = src, dst, match, carriers, at
        self.relative = relative
        self.window = range(at, min(at + WINDOW, len(dst.steps)))
        self.watched = sorted(v for i in self.window for v in dst.steps[i].outs if v in carriers)
        self.before = self.error([dst.values[v] for v in dst.outs])

    def error(self, outs: Sequence[Any]) -> float:
        """Returns the largest relative difference from the source's outputs; infinite where shapes differ."""
        if len(outs) != len(self.src.outs):
            return np.inf
        pairs = zip(self.src.outs, outs, strict=True)
        return max((_gap(self.src.values[v], got) for v, got in pairs), default=0.0)

    def differ(self, got: Any, want: Any) -> bool:
        """Whether an output of the target is not that of the source."""
        return _gap(want, got) > self.relative

    def mends_here(self, trial: Trial) -> bool:
        """Whether a value that carried the difference is now one of the source's, soon after the place."""
        try:
            values = self.dst.again(trial.values, self.watched, trial.runs)
        except (TypeError, ValueError):  # other shapes than the following operations take
            return False
        pairs = zip(self.watched, values, strict=True)
        return any(v not in trial.values and informative(x) and self.match.find(x) for v, x in pairs)

    def judged(self, trial: Trial) -> Reason | None:
        """Returns the reason if the outputs agree with the hypothesis; None if they do not."""
        try:
            error = self.error(self.dst.again(trial.values, self.dst.outs, trial.runs))
        except (TypeError, ValueError):  # other shapes than the following operations take
            return None
        if error > self.relative:
            return None
        return trial.reason(f"{shown(self.before)} apart, {shown(error)} with this mended")


def _gap(want: Any, got: Any) -> float:
    if np.shape(want) != np.shape(got):
        return np.inf
    if not _number(want) or not np.size(want):
        return 0.0
    a, b = (np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64) for x in (want, got))
    gap = float(np.max(np.abs(a - b)) / (np.max(np.abs(a)) or 1.0))
    return gap if np.isfinite(gap) else np.inf


def shown(error: float) -> str:
    return "no comparable shape" if not np.isfinite(error) else f"{error:.1e}"


def find(
    bench: Bench, layers: Layers, place: Place, after: Place | None, ahead: Place | None, planned: Mapping[str, Any]
) -> Reason:
    """Returns the reason for the difference, as far as one of the hypotheses mends it.

    Args:
      bench: The graphs.
      layers: Names.
      place: Where the difference begins.
      after: The next layer, where the place lies between two.
      ahead: The layer before: where it adds 0 or multiplies by 1, its values are those of the source one step earlier.
      planned: What the plan makes of the source, for variables that were given otherwise.
    """
    partial: Reason | None = None
    operations = itertools.chain(_operations(bench), _constants(bench), _activations(bench), _tables(bench))
    places = [where for where in (place, after, ahead) if where is not None]
    leaves = itertools.chain(*[itertools.islice(_leaves(bench, layers, where, planned), MOST) for where in places])
    for trial in itertools.chain(operations, leaves):
        inner = any(v not in bench.dst.roots for v in trial.values)  # what is replaced itself cannot be watched
        if not inner and not bench.mends_here(trial):
            continue
        if reason := bench.judged(trial):
            return reason
        if partial is None and not inner:
            text = "with this mended the layer's values agree, the outputs do not: more is wrong further on"
            partial = trial.reason(text, complete=False)
    return partial or _unread(bench, layers, place) or Reason(UNKNOWN, "no hypothesis made the values agree")


def _leaves(bench: Bench, layers: Layers, place: Place, planned: Mapping[str, Any]) -> Iterator[Trial]:
    dst = {p: bench.dst.values[v] for p, v in bench.dst.variables.items()}
    src = {p: bench.src.values[v] for p, v in bench.src.variables.items()}
    made_of = {p: layers.sources(p) for p in dst}
    for text, leaves in of_leaves(place.paths, dst, src, made_of):
        values = {bench.dst.variables[p]: jnp.asarray(x, dst[p].dtype) for p, x in leaves.items()}
        yield Trial(text, values, place=place)
    for p in place.paths:
        if p in planned and np.shape(planned[p]) == np.shape(dst[p]):
            text = f"{p!r} does not hold what the plan makes of the source"
            yield Trial(text, {bench.dst.variables[p]: jnp.asarray(planned[p], dst[p].dtype)}, place=place)


def _behind(graph: Graph, steps: Sequence[int]) -> list[int]:
    """Returns these steps and those that make what they read without the data: scales, tables, constants."""
    found, todo = set(steps), list(steps)
    while todo:
        for v in graph.steps[todo.pop()].ins:
            maker = graph.maker.get(v)
            if maker is not None and not graph.data[v] and maker not in found:
                found.add(maker)
                todo.append(maker)
    return sorted(found)


def _constants(bench: Bench) -> Iterator[Trial]:
    """Constants of the code: an epsilon, a scale, a slope, a base."""
    theirs: dict[str, dict[float, None]] = {}
    for step in bench.src.steps:
        for v in step.ins:
            if (c := bench.src.scalar(v)) is not None and len(step.ins) > 1:
                theirs.setdefault(step.name, {})[c] = None
    seen: set[tuple[int, float]] = set()
    near = [i for i in bench.window if any(v in bench.carriers for v in bench.dst.steps[i].outs)]
    for i in _behind(bench.dst, near):
        step = bench.dst.steps[i]
        for v in step.ins if len(step.ins) > 1 else ():
            mine = bench.dst.scalar(v)
            if mine is None:
                continue
            small = step.name in ("add", "max") and abs(mine) < 0.05
            known = theirs.get(step.name, {})
            for c in dict.fromkeys([*known, *(EPSILONS if small else ())]):
                if (v, c) in seen or np.isclose(c, mine, rtol=1e-6, atol=0):
                    continue
                seen.add((v, c))
                what = "epsilon" if small and 0 <= c < 0.05 else f"the constant of `{step.name}`"
                where = "the source" if c in known else "agreement (the source does not show its own)"
                text = f"{what} is {mine:.6g} in the target, {c:.6g} in {where}"
                value = jnp.full(np.shape(bench.dst.values[v]), c, bench.dst.values[v].dtype)
                yield Trial(text, {v: value}, after=small)


def _operations(bench: Bench) -> Iterator[Trial]:
    """The same operation with other parameters: padding, stride, axes, direction."""
    for i in bench.window[:12]:
        step = bench.dst.steps[i]
        if step.primitive is None or step.name in LAYOUT or not any(v in bench.carriers for v in step.outs):
            continue
        for other in _counterparts(bench, step):
            changed = {
                key: value
                for key, value in other.params.items()
                if key in _MEANING and key in step.params and not _alike(step.params[key], value)
            }
            if changed:
                words = [
                    f"the {_MEANING[key]} is {_short(step.params[key])} in the target, {_short(value)} in the source"
                    for key, value in changed.items()
                ]
                yield Trial("; ".join(words) + f" (`{step.name}`)", {}, {i: step.with_params(changed)})


def _alike(a: Any, b: Any) -> bool:
    return bool(a == b) or repr(a) == repr(b)


def _short(value: Any) -> str:
    text = str(getattr(value, "__name__", value))
    return text if len(text) <= 60 else text[:57] + "…"


def _counterparts(bench: Bench, step: Step) -> Iterator[Step]:
    """Yields the source's operations of the same name on the same data."""
    seen: set[int] = set()
    for v in step.ins:
        if not bench.dst.data[v]:
            continue
        for s in bench.match.find(bench.dst.values[v]):
            for i in bench.src.readers.get(s, ()):
                if i not in seen and bench.src.steps[i].name == step.name:
                    seen.add(i)
                    yield bench.src.steps[i]


def _activations(bench: Bench) -> Iterator[Trial]:
    """Another function of one value: the source applies one where the target applies another, or none."""
    step = bench.dst.steps[bench.at]
    for v in [x for x in step.ins if bench.dst.data[x] and is_real(bench.dst.values[x])]:
        x = bench.dst.values[v]
        if np.ndim(x) == 0 or not informative(x):
            continue
        applied = jax.jit(lambda x: {name: fn(x) for name, fn in ACTIVATIONS.items()})(x)
        theirs = [name for name, y in applied.items() if bench.match.find(y)] or [""]
        for i in bench.window[:40]:
            for w in bench.dst.steps[i].outs:
                y = bench.dst.values[w]
                if np.shape(y) != np.shape(x) or w not in bench.carriers:
                    continue
                mine = next((name for name, z in applied.items() if _close(y, z, bench.relative)), None)
                if mine is None:
                    continue
                for other in theirs:
                    if other != mine:
                        text = f"the activation is {mine} in the target, {other or 'none'} in the source"
                        yield Trial(text, {w: applied[other] if other else x})
        for other in filter(None, theirs):
            yield Trial(f"there is no activation in the target, {other} in the source", {v: applied[other]}, ahead=True)


def _close(a: Any, b: Any, relative: float) -> bool:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return bool(np.max(np.abs(a - b)) <= relative * max(float(np.max(np.abs(b))), 1e-30))


def _tables(bench: Bench) -> Iterator[Trial]:
    """Tables that depend on no variable and no input: positions, masks, frequencies."""
    theirs: dict[tuple[int, ...], list[Any]] = {}
    for v, x in enumerate(bench.src.values):
        if not bench.src.data[v] and not bench.src.leaves[v] and np.size(x) > 1 and _number(x):
            theirs.setdefault(np.shape(x), []).append(x)
    near = [i for i in bench.window if any(v in bench.carriers for v in bench.dst.steps[i].outs)]
    for i in near:
        for v in bench.dst.steps[i].ins:
            x = bench.dst.values[v]
            if bench.dst.data[v] or bench.dst.leaves[v] or np.size(x) < 2 or not _number(x):
                continue
            for y in theirs.get(np.shape(x), ()):
                if not np.array_equal(np.asarray(x), np.asarray(y)):
                    text = (
                        f"a constant table of shape {np.shape(x)} holds other numbers (positions, a mask, frequencies)"
                    )
                    yield Trial(text, {v: jnp.asarray(y, x.dtype)})


def _number(x: Any) -> bool:
    return not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _unread(bench: Bench, layers: Layers, place: Place) -> Reason | None:
    """A variable that the source reads and the target does not: a fact, if not a mended value.

    It is one of the layer, or any running statistic: a layer that takes the batch's own differs before it reads a variable.
    """
    reads = [frozenset[str]().union(*[g.leaves[v] for v in g.outs]) for g in (bench.src, bench.dst)]
    statistics = [path for path in sorted(bench.dst.variables) if path.startswith("batch_stats/")]
    for path in (*place.paths, *statistics):
        sources = layers.sources(path)
        if path not in reads[1] and any(s in reads[0] for s in sources):
            text = f"the target does not read {path!r}; the source reads {', '.join(map(repr, sources))}"
            if any(word in path for word in ("mean", "var", "batch_stats")):
                text += (
                    ": the target is in training mode, or uses the batch's own statistics (an NNX model does until"
                    " model.eval(), a Linen layer without use_running_average=True)"
                )
            return Reason(text, "by the variables that the outputs depend on", complete=False)
    return None
