"""Pins what the core uses from `jax.extend.core`, which may change between releases."""

from __future__ import annotations

import inspect

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest

import bridges as br
from bridges.core._jaxpr import count, depends, distinct, inner, scan_counts, trace, trace_state, tracing


def test_the_trace_state_tells_traces_apart_and_contexts_not():
    outside = trace_state()
    assert trace_state() == outside
    seen = []
    jax.jit(lambda x: seen.append(trace_state()))(1.0)
    jax.grad(lambda x: seen.append(trace_state()) or x)(1.0)
    jax.vmap(lambda x: seen.append(trace_state()))(jnp.ones(1))
    assert all(state != outside for state in seen) and seen[0] != seen[1]
    with jax.named_scope("a"), jax.default_matmul_precision("float32"):
        assert trace_state() == outside


def test_a_trace_runs_what_was_traced():
    calls = []

    def fn(x, tree):
        calls.append(1)
        return {"a": jax.nn.relu(x) + tree[0]}

    traced = trace(fn, jnp.ones(2), (jax.ShapeDtypeStruct((2,), jnp.float32),))
    out = traced(jnp.array([-1.0, 2.0]), (np.ones(2, np.float32),))
    np.testing.assert_array_equal(out["a"], [1, 3])
    assert calls == [1] and traced.shape["a"].shape == (2,)
    with pytest.raises(br.BridgeError, match="another structure"):
        traced(jnp.ones(2), [jnp.ones(2)])


def test_what_no_output_needs_is_left_out():
    def fn(x):
        jax.debug.print("{}", x)
        jnp.dot(x, x)
        return jnp.sin(x), 3.0

    text = str(trace(fn, jnp.ones(2)).needed().closed)
    assert "sin" in text and "dot_general" not in text and "debug" not in text
    assert trace(fn, jnp.ones(2)).needed()(jnp.zeros(2))[1] == 3.0


def test_a_traced_function_is_differentiable_with_custom_rules():
    @jax.custom_vjp
    def f(x):
        return x

    f.defvjp(lambda x: (x, None), lambda _, g: (g * 7,))
    traced = trace(lambda x: f(x) * 2, 1.0)
    assert jax.grad(lambda x: traced(x))(3.0) == 14


def test_the_names_that_are_used():
    assert callable(jex.jaxpr_as_fun) and callable(jex.get_opaque_trace_state)
    assert inspect.isclass(jex.Literal) and inspect.isclass(jex.ClosedJaxpr)
    closed = jax.make_jaxpr(lambda x: x + 1)(1.0)
    assert isinstance(closed, jex.ClosedJaxpr) and hasattr(closed.jaxpr, "replace")
    assert {"eqns", "outvars", "invars"} <= set(dir(closed.jaxpr))


@pytest.mark.smoke  # how JAX writes a scan differs between its releases
def test_what_a_scan_is_given_is_told_apart():
    def fn(w, x):
        return jax.lax.scan(lambda carry, row: ((carry[0] + row @ w, carry[1] + row), carry[0].sum()), (x[0], x[1]), x)

    jaxpr = trace(fn, jnp.ones((3, 3)), jnp.ones((4, 3))).closed.jaxpr
    (scan,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    assert scan_counts(scan.params) == (1, 2)
    ((_, mine, carried, _, _),) = inner(scan)
    assert (mine, carried) == (slice(None), slice(1, 3))


def test_what_outputs_depend_on():
    x = jnp.ones(3)

    def looped(x, y):  # y goes through a loop, and nothing comes of it
        return jax.lax.scan(lambda c, _: ((c[0] * 2, c[1] + 1), None), (x, y), length=2)[0][0]

    assert depends(lambda x: x + 1, x)
    assert not depends(lambda x: jnp.zeros(3) if x.shape else x, x)
    assert not depends(lambda y: looped(x, y), x)
    assert depends(lambda x: looped(x, x), x)
    assert not depends(lambda key: (jax.random.fold_in(key, 1), x)[1], jax.random.key(0))


def test_operations_are_counted_all_and_each_sort_once():
    def fn(x):
        for _ in range(3):
            x = jax.jit(jnp.tanh)(x * x)
        return x[:2] * x[:2]

    jaxpr = jax.make_jaxpr(fn)(jnp.ones(3)).jaxpr
    assert count(jaxpr) == 12  # three products, calls and tanh, two slices, a product of another size
    assert distinct(jaxpr) == 5


def test_tracing_is_told_from_running():
    seen = []

    def look(x):
        seen.append(tracing())
        return x * 2.0

    look(1.0)
    jax.jit(look)(1.0)
    jax.grad(look)(1.0)
    jax.vmap(look)(jnp.ones(2))
    jax.eval_shape(lambda x: look(x), 1.0)  # A function of its own: the trace of the other is kept.
    jax.lax.scan(lambda c, x: (look(c), None), 1.0, None, length=2)
    look(2.0)
    assert len(seen) >= 7 and all(seen[1:-1])
    assert not seen[0] and not seen[-1]


def test_a_program_has_the_names_of_the_modules_in_it():
    class Inner(br.Module):
        def __call__(self, x):
            return jnp.sin(x)

    class Outer(br.Module):
        def __init__(self):
            self.inner = Inner()

        def __call__(self, x):
            return self.inner(x)

    outer = Outer(name="outer")
    text = jax.jit(br.pure(outer)).lower({}, jnp.ones(3)).as_text(debug_info=True)
    assert "outer/inner/sin" in text
