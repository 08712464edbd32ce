"""`bridges._infer._graph`: what is relied on of JAX's jaxprs, in the versions under constraints/."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bridges._infer._graph import Graph
from bridges._infer._match import Match

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
W = {"w": np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)}


def graph(fn):
    return Graph(lambda v, x: fn(v["w"], x["x"]), W, {"x": X})


@jax.custom_vjp
def custom(x):
    return jnp.sin(x)


custom.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))


def everything(w, x):
    """One of each way to wrap operations."""
    x = jax.jit(lambda x: x @ w)(x)
    x = jax.checkpoint(lambda x: jnp.tanh(x) @ w)(x)
    x = custom(jax.nn.relu(x))
    x, ys = jax.lax.scan(lambda c, row: (c + row @ w, c * 2), x[0], x)
    return jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, ys), x


def test_the_values_are_those_of_the_function():
    made = graph(everything)
    for v, wanted in zip(made.outs, everything(W["w"], X), strict=True):
        np.testing.assert_allclose(made.values[v], wanted, rtol=1e-5, atol=1e-6)


def test_calls_are_opened_and_scans_unrolled():
    names = [step.name for step in graph(everything).steps]
    assert {"jit", "checkpoint", "remat2", "custom_vjp_call", "custom_jvp_call", "scan"}.isdisjoint(names)
    assert names.count("dot_general") == 2 + len(X)
    assert "cond" in names  # a branch stays one step


def test_it_is_known_what_a_value_is_made_of():
    made = graph(lambda w, x: x @ w + jnp.sum(w))
    product = next(i for i, step in enumerate(made.steps) if step.name == "dot_general")
    total = next(step.outs[0] for step in made.steps if step.name == "reduce_sum")
    assert made.own(product) == {"w"}
    assert made.leaves[total] == {"w"} and not made.data[total] and made.data[made.outs[0]]


def test_it_runs_again_with_values_replaced():
    made = graph(lambda w, x: jnp.tanh(x @ w) * 2.0)
    (two,) = [v for v in made.roots if made.scalar(v) == 2.0]
    (out,) = made.again({two: np.float32(3)}, made.outs)
    np.testing.assert_allclose(out, made.values[made.outs[0]] * 1.5, rtol=1e-6)
    tanh = next(step.outs[0] for step in made.steps if step.name == "tanh")
    (out,) = made.again({tanh: np.ones((4, 3), np.float32)}, made.outs)
    assert np.all(np.asarray(out) == 2)


def test_values_are_found_whatever_their_layout():
    made = graph(lambda w, x: jnp.tanh(x @ w))
    match = Match(made, 1e-6)
    value = made.values[made.outs[0]]
    assert made.outs[0] in match.find(value.T.reshape(2, 6))
    assert match.find(value + 1e-4) == [] and match.find(value[:2]) == []
    assert match.has(np.zeros((4, 3)))  # what is constant says nothing


def test_masked_values_do_not_hide_the_others():
    mask = functools.partial(jnp.where, np.tri(4, 3, dtype=bool))
    made = graph(lambda w, x: mask(x @ w, -1e30))
    match = Match(made, 1e-6)
    value = np.asarray(made.values[made.outs[0]])
    assert match.find(value.T) and not match.find(np.where(value > -1, value * 1.01, value))
