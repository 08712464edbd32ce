"""Graph: every intermediate value of one call of a model, in the order of the data, and the steps that made them.

A function is traced to a jaxpr, and the jaxpr is written out as a straight line of operations: calls (jit, remat, custom
derivatives) are opened and short scans unrolled, so that what a layer computes is in the open whatever it is wrapped in; a
while loop, a branch and a long scan stay one step. Variables, inputs, constants and literals are the roots; the line can be
run again with other roots, or with values in its middle replaced.

It reads jaxprs (`eqns`, `invars`, `params`, `primitive`) and knows nothing else of JAX's inside; `tests/infer/
test_graph.py` pins what is relied on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges.core._jaxpr import scan_counts, trace

# Operations that are a call of a jaxpr, and the parameter that has it.
_CALLS = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "checkpoint": "jaxpr",
    "remat2": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr", "custom_lin": "jaxpr",
}  # fmt: skip
LAYOUT = {"reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "copy", "convert_element_type", "rev"}
# Compiled once and run a few times: time spent on making the program fast is lost. The operations are the same.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
UNROLLED = 4000  # steps that unrolled scans may come to


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
      name: The primitive's name.
      params: Its parameters.
      scope: The name stack: where the framework says in which module it runs; empty where it does not.
      ins: The values that it reads, as numbers.
      outs: The values that it makes.
      run: From the arrays of `ins` to those of `outs`.
      primitive: What JAX runs; None for the slices of an unrolled scan.
    """

    name: str
    params: Mapping[str, Any]
    scope: str
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    run: Callable[..., list[Any]]
    primitive: Any = None

    def with_params(self, params: Mapping[str, Any]) -> Callable[..., list[Any]]:
        """Returns the function of the step with some of its parameters replaced."""
        bound = {**self.params, **params}
        return lambda *arrays: [self.primitive.bind(*arrays, **bound)]


class Graph:
    """A recorded call.

    Attributes:
      steps: In order.
      roots: The values that no step makes.
      maker: The step that made a value, by the value's number.
      leaves: The variables that a value depends on, by its number.
      data: Whether a value depends on an input.
      variables, inputs: The numbers of these, by path.
      outs: The numbers of the outputs, in order.
      readers: The steps that read a value, by its number.
    """

    def __init__(
        self,
        fn: Callable[[Any, Any], Any],
        variables: Mapping[str, Any],
        inputs: Mapping[str, Any],
        unrolled: int = UNROLLED,
    ):
        variables, inputs = dict(variables), dict(inputs)
        traced = trace(fn, variables, inputs)
        self.steps: list[Step] = []
        self.leaves: list[frozenset[str]] = []
        self.data: list[bool] = []
        self.maker: dict[int, int] = {}
        self.roots: dict[int, Any] = {}
        self._shapes: list[Any] = []
        self._unrolled, self._most = 0, unrolled
        self._compiled: dict[Any, Any] = {}
        self.variables = {p: self._root(jnp.asarray(variables[p]), frozenset([p])) for p in sorted(variables)}
        self.inputs = {p: self._root(jnp.asarray(inputs[p]), data=True) for p in sorted(inputs)}
        consts = [self._root(c) for c in traced.closed.consts]
        args = [*self.variables.values(), *self.inputs.values()]
        self.outs = self._run(traced.closed.jaxpr, consts, args, "")
        self.readers: dict[int, list[int]] = {}
        for i, step in enumerate(self.steps):
            for v in step.ins:
                self.readers.setdefault(v, []).append(i)

    @functools.cached_property
    def values(self) -> list[Any]:
        """The arrays, by number: NumPy, but for random keys. They are computed when they are first asked for."""
        made = sorted(self.maker)
        found = dict(zip(made, self.again({}, made), strict=True))
        return [_host(self.roots[v] if v in self.roots else found[v]) for v in range(len(self._shapes))]

    def _add(self, shape: Any, leaves: frozenset[str], data: bool) -> int:
        self._shapes.append(shape)
        self.leaves.append(leaves)
        self.data.append(data)
        return len(self._shapes) - 1

    def _root(self, value: Any, leaves: frozenset[str] = frozenset(), data: bool = False) -> int:
        v = self._add(jax.ShapeDtypeStruct(np.shape(value), value.dtype), leaves, data)
        self.roots[v] = value
        return v

    def _step(
        self, name: str, params: Any, scope: str, ins: Sequence[int], run: Callable[..., list[Any]],
        primitive: Any = None, shapes: Sequence[Any] | None = None,
    ) -> list[int]:  # fmt: skip
        if shapes is None:
            shapes = jax.eval_shape(run, *[self._shapes[v] for v in ins])
        leaves = frozenset[str]().union(*[self.leaves[v] for v in ins])
        data = any(self.data[v] for v in ins)
        outs = [self._add(shape, leaves, data) for shape in shapes]
        self.maker.update(dict.fromkeys(outs, len(self.steps)))
        self.steps.append(Step(name, params, scope, tuple(ins), tuple(outs), run, primitive))
        return outs

    def _run(self, jaxpr: Any, consts: Sequence[int], args: Sequence[int], scope: str) -> list[int]:
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(var: Any) -> int:
            return self._root(jnp.asarray(var.val, var.aval.dtype)) if hasattr(var, "val") else env[var]  # a literal

        for eqn in jaxpr.eqns:
            ins = [read(v) for v in eqn.invars]
            inner = "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))
            env.update(zip(eqn.outvars, self._eqn(eqn, ins, inner), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _eqn(self, eqn: Any, ins: list[int], scope: str) -> list[int]:
        name, params = eqn.primitive.name, eqn.params
        inner = params.get(_CALLS.get(name, ""))
        if inner is not None and len(getattr(inner, "jaxpr", inner).invars) == len(ins):
            return self._call(inner, ins, scope)
        if name == "scan":
            body = params["jaxpr"]
            cost = params["length"] * len(body.jaxpr.eqns)
            if params["length"] and self._unrolled + cost <= self._most:
                self._unrolled += cost
                return self._scan(params, body, ins, scope)
        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.outvars]
        return self._step(name, params, scope, ins, _runner(eqn), eqn.primitive, shapes)

    def _call(self, inner: Any, ins: Sequence[int], scope: str) -> list[int]:
        consts = [self._root(jnp.asarray(c)) for c in getattr(inner, "consts", ())]
        return self._run(getattr(inner, "jaxpr", inner), consts, ins, scope)

    def _scan(self, params: Any, body: Any, ins: Sequence[int], scope: str) -> list[int]:
        (n, m), length = scan_counts(params), params["length"]
        consts, carry, xs = list(ins[:n]), list(ins[n : n + m]), ins[n + m :]
        ys: list[Any] = [None] * length
        for i in reversed(range(length)) if params["reverse"] else range(length):
            now = [self._step("slice", {}, scope, [x], lambda x, i=i: [x[i]])[0] for x in xs]
            outs = self._call(body, [*consts, *carry, *now], scope)
            carry, ys[i] = outs[:m], outs[m:]
        stacked = [
            self._step("stack", {}, scope, [y[k] for y in ys], lambda *y: [jnp.stack(y)])[0] for k in range(len(ys[0]))
        ]
        return [*carry, *stacked]

    def again(
        self,
        replaced: Mapping[int, Any],
        wanted: Sequence[int],
        runs: Mapping[int, Callable[..., list[Any]]] | None = None,
    ) -> list[Any]:
        """Returns wanted values, with some others replaced.

        Args:
          replaced: Arrays by number, of the shapes and dtypes that the values have.
          wanted: Numbers.
          runs: Other functions for some steps, by the step's number.
        """
        inner = {v: x for v, x in replaced.items() if v not in self.roots}
        last = max((self.maker.get(v, -1) for v in wanted), default=-1)

        def line(roots: dict[int, Any], inner: dict[int, Any]) -> list[Any]:
            found = {**roots, **inner}
            for i, step in enumerate(self.steps[: last + 1]):
                results = (runs or {}).get(i, step.run)(*[found[v] for v in step.ins])
                found.update({v: r for v, r in zip(step.outs, results, strict=True) if v not in inner})
            return [found[v] for v in wanted]

        key = (tuple(wanted), tuple(inner))
        compiled = jax.jit(line, compiler_options=QUICK) if runs else self._compiled.get(key)
        if compiled is None:
            compiled = self._compiled[key] = jax.jit(line, compiler_options=QUICK)
        return compiled({**self.roots, **{v: x for v, x in replaced.items() if v in self.roots}}, inner)

    def shape(self, v: int) -> tuple[int, ...]:
        """Returns the shape of a value."""
        return tuple(self._shapes[v].shape)

    def kind(self, v: int) -> str:
        """Returns NumPy's letter for the sort of numbers of a value: `f`, `c`, `i`, `u`, `b`; `k` for random keys."""
        dtype = self._shapes[v].dtype
        if jnp.issubdtype(dtype, np.floating):
            return "f"
        return "k" if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else str(np.dtype(dtype).kind)

    def narrowed(self, v: int, num: np.ndarray) -> np.ndarray:
        """Returns numbers in the dtype that the value has in the model."""
        return num.astype(self._shapes[v].dtype)

    def scalar(self, v: int) -> float | None:
        """Returns the number that a value is, if it is a constant of the code; None if not."""
        if (
            self.data[v]
            or self.leaves[v]
            or np.size(self.values[v]) != 1
            or not jnp.issubdtype(self.values[v].dtype, np.inexact)
        ):
            return None
        return float(np.ravel(np.asarray(self.values[v], np.float64))[0])

    def upstream(self, values: Iterable[int]) -> set[int]:
        """Returns the steps that values depend on."""
        found: set[int] = set()
        stack = list(values)
        while stack:
            i = self.maker.get(stack.pop())
            if i is not None and i not in found:
                found.add(i)
                stack += self.steps[i].ins
        return found

    def own(self, i: int) -> frozenset[str]:
        """Returns the variables that a step is the first to bring together with the data."""
        step = self.steps[i]
        if not any(self.data[v] for v in step.ins):
            return frozenset()
        return frozenset[str]().union(*[self.leaves[v] for v in step.ins if not self.data[v]])


def _host(x: Any) -> Any:
    return x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)


def _runner(eqn: Any) -> Callable[..., list[Any]]:
    narrow = eqn.invars[0].aval.dtype if eqn.primitive.name == "bitcast_convert_type" else None

    def run(*arrays: Any) -> list[Any]:
        if narrow is not None:  # of the bits of a wider number it would make something else
            arrays = tuple(x.astype(narrow) for x in arrays)
        out = eqn.primitive.bind(*arrays, **eqn.params)
        return list(out) if eqn.primitive.multiple_results else [out]

    return run
