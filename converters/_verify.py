"""verify: whether two models compute the same, and where they part if not.

Outputs, gradients with respect to inputs and to every variable (the target's pulled back through the plan), the variables
after a call in training, and one training step are compared, in several precisions. Only when something differs are
intermediate values looked at, to name the first layer that differs and a reason that was tried.

What it does not do: it proves nothing of inputs that it was not given, and nothing of random draws (dropout).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bridges._infer._arrays import Inputs, cast_all, is_real, plan_in
from bridges._infer._graph import Graph
from converters._dig import by_values, first_difference, gradient_difference, related
from converters._ends import Ends, ends_of, shape_text
from converters._layers import read
from converters._measure import Outcome, Run, apart, constant, distances, nudged, top
from converters._models import ModelError
from converters._step import step_checks
from converters.report import (
    BY_VALUES,
    DIFFERENT,
    EQUAL,
    NOT_RUN,
    PLANNED,
    UNPROVEN,
    UNUSED,
    Check,
    FirstDifference,
    Joined,
    Report,
)

DTYPES = ("float64", "float32", "bfloat16")
_INSENSITIVE = {"float64": 1e-12, "float32": 1e-6}  # a gradient below this part of the largest is rounding


def verify(
    src_apply: Any,
    dst_apply: Any,
    *inputs: Any,
    src: Any = None,
    dst: Any = None,
    plan: Any = None,
    train: tuple[Any, Any] | None = None,
    optimizer: Any = None,
    loss: Callable[[Any], Any] | None = None,
    frameworks: tuple[str | None, str | None] = (None, None),
    dtypes: Sequence[str] = DTYPES,
    seed: int = 0,
) -> Report:
    """Returns a report of whether two models agree.

    Args:
      src_apply: The source: a function `apply(variables, *inputs) -> output`, or a model (what Haiku's transforms give, a
        Linen module, an NNX module or class, a `bridges.Module`), which is then run through its adapter.
      dst_apply: The target, the same.
      *inputs: The models' inputs. Arrays may be nested; other values (flags) are handed on as they are.
      src: The source's variables, a flat `State` or the framework's own tree; its function is given them in this form.
        Random ones if there are none: a mapping can be checked without a checkpoint.
      dst: The target's variables. Left out, they are `plan.forward(src)`, a flat `State`. Where they are given with a plan,
        every entry is also compared with what the plan makes. A tree of `jax.ShapeDtypeStruct` stands for its structure
        only: the values come from the plan.
      plan: A `Plan`, or a mapping to plan with: a `Mapping`, a dict, or the path of a TOML file. For two models the
        conventions are used where there is none, and join one that only says where modules went. Without a plan, gradients
        of variables are not compared.
      train: The pair of models or functions in training mode; functions return `(output, new variables)` there.
      optimizer: An optax transformation: one training step is compared, from an optimizer state that was in use.
      loss: `loss(output) -> scalar`, for gradients. Else a random sum of all outputs, which none of them escapes.
      frameworks: 'haiku', 'linen', 'nnx' or 'flat' for a model that does not show it: a function that uses Haiku modules,
        one that makes an NNX module. A function without is an apply function.
      dtypes: The precisions. float64 tells whether it is the same function; the others whether it is computed as well.
      seed: For variables that are made up.

    Returns:
      A `Report`: `report.ok`, `print(report)`, `report.to_json()`, `report.html()`.

    Raises:
      BridgeError: What was given does not fit together (variables and plan), or is too little.

    >>> import numpy as np
    >>> from bridges.param_mapping import Mapping
    >>> rule = {'src': 'w', 'dst': 'kernel', 'ops': ['transpose']}
    >>> w, x = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((4, 2), np.float32)
    >>> plan = Mapping.of(rules=[rule]).plan({'w': w}, {'kernel': w.T})
    >>> verify(lambda v, x: x @ v['w'], lambda v, x: x @ v['kernel'].T, x, src={'w': w}, plan=plan).verdict
    'equal'
    """
    taken = Inputs.of(inputs)
    ends = ends_of(
        (src_apply, dst_apply), inputs, frameworks=frameworks, train=train, src=src, dst=dst, plan=plan, seed=seed
    )
    return _Comparison(ends, taken, loss, tuple(str(np.dtype(d)) for d in dtypes)).report(optimizer)


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Lets float64 be float64."""
    with jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext():
        yield


class _Comparison:
    """The work of one call of `verify`: runs, checks as they come up, graphs when they are needed."""

    def __init__(self, ends: Ends, inputs: Inputs, loss: Callable[[Any], Any] | None, dtypes: tuple[str, ...]):
        self.ends, self.inputs, self.loss = ends, inputs, loss
        self.dtypes = sorted(dtypes, key=lambda d: -np.dtype(d).itemsize)
        self.home = "float32" if "float32" in dtypes else self.dtypes[0]
        self.checks: list[Check] = []
        self.notes: list[str] = []
        self.runs: dict[tuple[str, str], tuple[Run, Run]] = {}
        self.outcomes: dict[tuple[str, str], tuple[Outcome, Outcome]] = {}
        self._graphs: dict[str, tuple[Graph, Graph, str]] = {}

    def report(self, optimizer: Any) -> Report:
        self.variables()
        for mode in self.ends.modes:
            for dtype in self.dtypes:
                self.run(mode, dtype)
            for dtype in self.dtypes:
                if (mode, dtype) in self.outcomes:
                    self.compare(mode, dtype)
        dull = self.proofs()
        if optimizer is not None:
            mode = "train" if "train" in self.ends.modes else "eval"
            dtype = self.widest(mode)
            with precision(dtype):
                self.checks += step_checks(
                    self.ends, self.runs[mode, dtype], self.arrays(dtype), optimizer, dtype, dull
                )
        plan = self.ends.plan
        if self.ends.made_up:
            self.notes.append("no variables were given: the source's are random")
        items: tuple[Joined, ...] = ()
        if plan is None:
            self.notes.append("there is no plan: gradients with respect to variables were not compared")
        else:
            self.notes += [f"{verdict}: {reason}" for verdict, reason in plan.losses]
            items = tuple(
                Joined(item.sources, item.targets, tuple(map(str, item.ops)), shape_text(item.stages)) for item in plan
            )
        verdict = plan.verdict if plan is not None else ""
        return Report(tuple(self.checks), self.first(), items, verdict, tuple(dict.fromkeys(self.notes)))

    def variables(self) -> None:
        """The target's variables against what the plan makes, where they were given."""
        differing = self.ends.differing
        if not differing:
            return
        planned = {**self.ends.dst, **differing}
        for path, text in related(differing, self.ends.dst, planned).items():
            gap = distances({path: differing[path]}, {path: self.ends.dst[path]}, {}, self.home, False)[path]
            self.checks.append(Check("", "", "variable", path, DIFFERENT, gap.ulps, gap.relative, 0, text))

    def arrays(self, dtype: str) -> dict[str, Any]:
        return cast_all(self.inputs.arrays, np.dtype(dtype))

    def run(self, mode: str, dtype: str) -> None:
        """Runs both sides; what cannot run in a precision that is not its own is said, and left out."""
        with precision(dtype):
            arrays = self.arrays(dtype)
            made = []
            for side, flat in zip(self.ends.modes[mode], self.ends.variables(dtype), strict=True):
                try:
                    run = Run(side, flat, self.inputs, arrays, self.loss, True)
                    made.append((run, run(flat, arrays)))
                except Exception as err:
                    if dtype == self.home:
                        raise
                    why = (
                        err.__cause__ if isinstance(err, ModelError) and err.__cause__ else err
                    )  # the model's own error
                    text = f"the {side.end} does not run in {dtype}: {type(why).__name__}: {str(why).partition(chr(10))[0]}"
                    self.checks.append(Check(mode, dtype, "output", "", NOT_RUN, note=text))
                    return
        (src_run, src_out), (dst_run, dst_out) = made
        for end, outcome in (("source", src_out), ("target", dst_out)):
            if dtype == "float64" and outcome.narrow and self.home != dtype:
                text = f"the {end} computes in {outcome.narrow} whatever it is given: float64 cannot tell more"
                self.checks.append(Check(mode, dtype, "output", "", NOT_RUN, note=text))
                return
        other = [
            f"{p or 'the output'} is {dst_out.out[p].dtype} in the target, {x.dtype} in the source"
            for p, x in src_out.out.items()
            if p in dst_out.out and dst_out.out[p].dtype != x.dtype
        ]
        if other and dtype != self.home:
            self.checks.append(Check(mode, dtype, "output", "", NOT_RUN, note=f"not compared: {'; '.join(other[:3])}"))
            return
        self.runs[mode, dtype] = src_run, dst_run
        self.outcomes[mode, dtype] = src_out, dst_out

    def widest(self, mode: str) -> str:
        return next(d for d in self.dtypes if (mode, d) in self.outcomes)

    def roundings(self, mode: str, dtype: str) -> Outcome | None:
        """Returns what the source computes with other rounding: in the widest precision, or of nudged values."""
        if dtype == "float64":
            return None
        widest = self.widest(mode)
        if widest != dtype:
            return self.outcomes[mode, widest][0]
        flat, _ = self.ends.variables(dtype)
        with precision(dtype):
            return self.runs[mode, dtype][0](nudged(flat, dtype), nudged(self.arrays(dtype), dtype))

    def compare(self, mode: str, dtype: str) -> None:
        src, dst = self.outcomes[mode, dtype]
        other = self.roundings(mode, dtype)
        self.add(mode, dtype, "output", src.out, dst.out, other.out if other else {})
        dull = constant(src.out)
        real = [p for p, x in src.out.items() if is_real(x)]
        if real and len(dull) == len(real) and dtype == self.home:
            text = "every value is the same: nothing could differ. Give variables or inputs that move the output"
            self.checks += [Check(mode, dtype, "output", p, UNPROVEN, note=text) for p in dull]
        if src.variables is None or dst.variables is None:
            return
        self.add(mode, dtype, "input gradient", src.inputs, dst.inputs, other.inputs if other else {})
        if self.ends.plan is None:
            return
        with precision(dtype):
            pulled = self.pull(dst.variables, dtype)
        wanted = {p: x for p, x in src.variables.items() if p in pulled}
        if real and not any(top(x) for x in (*wanted.values(), *src.inputs.values())) and (wanted or src.inputs):
            text = "every gradient of the source is zero: nothing could differ"
            self.checks.append(Check(mode, dtype, "gradient", "", UNPROVEN, note=text))
        self.add(mode, dtype, "gradient", wanted, pulled, (other.variables or {}) if other else {})
        if mode == "train":
            self.state(dtype, src, dst, other)

    def pull(self, gradients: Mapping[str, Any], dtype: str) -> dict[str, Any]:
        """Returns the gradients with respect to the source's variables, by the chain rule through the plan."""
        assert self.ends.plan is not None
        plan = plan_in(self.ends.plan, dtype)
        src = {p: x for p, x in self.ends.variables(dtype)[0].items() if p in plan.src}
        real = {p: x for p, x in src.items() if is_real(x)}

        def forward(real: Mapping[str, Any]) -> dict[str, Any]:
            return {p: x for p, x in plan.forward({**src, **real}).items() if p in gradients and is_real(x)}

        @jax.jit
        def pull(real: Mapping[str, Any], gradients: Mapping[str, Any]) -> Any:
            made, back = jax.vjp(forward, real)
            return back({p: gradients[p].astype(x.dtype) for p, x in made.items()})[0]

        return {p: np.asarray(x) for p, x in pull(real, dict(gradients)).items()}

    def state(self, dtype: str, src: Outcome, dst: Outcome, other: Outcome | None) -> None:
        """The variables after a call in training."""
        assert self.ends.plan is not None
        plan = plan_in(self.ends.plan, dtype)
        before, given = self.ends.variables(dtype)
        if not src.new and not dst.new:
            return

        def after(outcome: Outcome) -> dict[str, Any]:
            return dict(plan.forward({p: outcome.new.get(p, before[p]).astype(plan.src[p].dtype) for p in plan.src}))

        with precision(dtype):
            wanted = after(src)
            rounding = after(Outcome({}, cast_all(other.new, np.dtype(dtype)), None, {})) if other else {}
        got = {p: dst.new.get(p, given[p]) for p in wanted}
        moved = [p for p in wanted if not (_equal(wanted[p], given[p]) and _equal(got[p], given[p]))]
        later = {t: item.resume or item.reason for item in plan for t in item.targets if item.resume or item.reason}
        self.add(
            "train", dtype, "state", {p: wanted[p] for p in moved}, {p: got[p] for p in moved}, rounding, planned=later
        )

    def add(
        self,
        mode: str,
        dtype: str,
        what: str,
        wanted: Mapping[str, Any],
        got: Mapping[str, Any],
        other: Mapping[str, Any],
        planned: Mapping[str, str] | None = None,
    ) -> None:
        """Adds a check for each array."""
        floor = what in ("gradient", "input gradient")
        for path, gap in distances(wanted, got, apart(wanted, other), dtype, floor).items():
            status, note = (EQUAL if gap.ok else DIFFERENT), gap.problem
            if status == DIFFERENT and planned and path in planned:
                status, note = PLANNED, planned[path]
            if what == "gradient" and status == EQUAL and (some := _part(wanted[path])) < 1 and dtype == self.home:
                note = f"{100 * some:.0f} % of its elements have a gradient"
            self.checks.append(Check(mode, dtype, what, path, status, gap.ulps, gap.relative, gap.allowed, note))

    # Variables that outputs say nothing of ------------------------------------------------------------------------

    def proofs(self) -> frozenset[str]:
        """Looks for other evidence for variables without a gradient, and returns them."""
        if self.ends.plan is None:
            return frozenset()
        insensitive: set[str] | None = None
        for mode in self.ends.modes:
            dtype = self.widest(mode)
            gradients = self.outcomes[mode, dtype][0].variables or {}
            rounding = self.roundings(mode, dtype)
            noise = apart(gradients, (rounding.variables or {}) if rounding else {})
            least = _INSENSITIVE.get(dtype, 1e-2) * max(map(top, gradients.values()), default=0)
            found = {p for p, x in gradients.items() if top(x) <= max(least, 4 * noise.get(p, 0.0))}
            insensitive = found if insensitive is None else insensitive & found
        insensitive = {p for p in insensitive or () if p in self.ends.plan.src}
        if not insensitive or len(insensitive) == len([p for p, x in self.ends.src.items() if is_real(x)]):
            return frozenset(insensitive)
        src, dst, dtype = self.graphs("eval")
        reads = read(src), read(dst)
        items = {p: item for item in self.ends.plan for p in item.sources}
        with precision(dtype):
            for path in sorted(insensitive):
                item = items[path]
                used = path in reads[0], any(t in reads[1] for t in item.targets)
                if not any(used):
                    status, note = UNUSED, "neither model reads it"
                elif not used[0] and any(p in reads[0] for p in item.sources):
                    status, note = UNUSED, "the source does not read it; what is made of it and others is compared"
                elif not all(used):
                    only = "source" if used[0] else "target"
                    status, note = UNPROVEN, f"only the {only} reads it, and the outputs do not depend on it"
                elif evidence := by_values(src, dst, path, item.targets, _relative(dtype)):
                    status, note = BY_VALUES, evidence
                else:
                    status, note = (
                        UNPROVEN,
                        "both read it, the outputs do not depend on it, and no value made of it agrees",
                    )
                self.checks.append(Check("eval", dtype, "proof", path, status, note=note))
        return frozenset(insensitive)

    def graphs(self, mode: str) -> tuple[Graph, Graph, str]:
        """Returns the graphs of both sides in the widest precision that runs, and that precision."""
        if mode not in self._graphs:
            dtype = self.widest(mode)
            with precision(dtype):
                made = [self.graph(mode, end, dtype) for end in (0, 1)]
            self._graphs[mode] = (made[0], made[1], dtype)
        return self._graphs[mode]

    def graph(self, mode: str, end: int, dtype: str) -> Graph:
        side, flat = self.ends.modes[mode][end], self.ends.variables(dtype)[end]

        def call(variables: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
            return side.run(variables, self.inputs.filled(arrays))[0]

        return Graph(call, flat, self.arrays(dtype))

    def first(self) -> FirstDifference | None:
        """Returns the first difference, if outputs or gradients differ in the widest precision."""
        for what in ("output", "gradient"):
            for mode in self.ends.modes:
                wrong = [c for c in self.checks if c.mode == mode and c.what == what and c.status == DIFFERENT]
                if not wrong:
                    continue
                widest = self.widest(mode)
                if all(c.dtype != widest for c in wrong):
                    where = ", ".join(dict.fromkeys(c.dtype for c in wrong))
                    self.notes.append(
                        f"{mode}: the models agree in {widest} and not in {where}: they are the same function, computed in"
                        " another precision or order somewhere; set the target's dtypes as the source's"
                    )
                    continue
                src, dst, dtype = self.graphs(mode)
                with precision(dtype):
                    if what == "output":
                        planned = {}
                        if self.ends.plan is not None:
                            plan = plan_in(self.ends.plan, dtype)
                            values = self.ends.variables(dtype)[0]
                            planned = dict(plan.forward({p: values[p] for p in plan.src}))
                        return first_difference(
                            src, dst, self.ends.plan, planned, mode=mode, dtype=dtype, relative=_relative(dtype)
                        )
                    paths = [c.path for c in wrong if c.path and c.dtype == widest]
                    return gradient_difference(src, dst, self.ends.plan, paths, mode, dtype)
        return None


def _relative(dtype: str) -> float:
    """How far values may be apart, as a part of the largest, to be taken for the same."""
    return {"float64": 1e-8, "float32": 1e-5}.get(dtype, 2e-2)


def _part(x: Any) -> float:
    return float(np.mean(np.asarray(x) != 0)) if np.size(x) else 1.0


def _equal(a: Any, b: Any) -> bool:
    return np.shape(a) == np.shape(b) and (
        jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) or bool(np.array_equal(np.asarray(a), np.asarray(b)))
    )
