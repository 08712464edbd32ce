"""Side effects under JAX's own transformations: found by trace level, explained; and nothing else is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridges as br


class Net(br.Module):
    def write(self, x):
        n = self.get("n", jnp.zeros, ())
        self.put("n", n + x.sum())
        return x.sum()

    def create(self, x):
        return x.sum() + self.get("new", jnp.ones, ())

    def draw(self, x):
        return x.sum() + jax.random.normal(br.rng(), ())

    def read(self, x):
        return x.sum() * self.get("n") + self.getm()["n"] + br.state()["net/n"]


PLAIN = {
    "jit": lambda f, x: jax.jit(f)(x),
    "grad": lambda f, x: jax.grad(f)(x),
    "value_and_grad": lambda f, x: jax.value_and_grad(f)(x)[0],
    "scan": lambda f, x: jax.lax.scan(lambda c, x: (c, f(x)), 0.0, x[None])[1],
    "vmap": lambda f, x: jax.vmap(f)(x[None]),
    "checkpoint": lambda f, x: jax.checkpoint(f)(x),
    "cond": lambda f, x: jax.lax.cond(x.sum() > 0, f, f, x),
    "while": lambda f, x: jax.lax.while_loop(lambda c: c < 1, lambda c: c + f(x), 0.0),
    "fori": lambda f, x: jax.lax.fori_loop(0, 2, lambda i, c: c + f(x), 0.0),
    "eval_shape": lambda f, x: jax.eval_shape(f, x),
    "map": lambda f, x: jax.lax.map(f, x[None]),
    "jvp": lambda f, x: jax.jvp(f, (x,), (x,)),
    "make_jaxpr": lambda f, x: jax.make_jaxpr(f)(x),
}
# Which lifted function the error names; where it is called otherwise than the plain one, and "" where there is none.
INSTEAD = {"value_and_grad": "grad", "jvp": "grad", "while": "while_loop", "fori": "fori_loop", "map": "scan",
           "eval_shape": "", "make_jaxpr": ""}  # fmt: skip
LIFTED = {
    "jit": lambda f, x: br.jit(f)(x),
    "grad": lambda f, x: br.value_and_grad(f)(x)[0],
    "scan": lambda f, x: br.scan(lambda c, x: (c, f(x)), 0.0, x[None])[1],
    "vmap": lambda f, x: br.vmap(f)(x[None]),
    "checkpoint": lambda f, x: br.checkpoint(f)(x),
    "cond": lambda f, x: br.cond(x.sum() > 0, f, f, x),
    "while": lambda f, x: br.while_loop(lambda c: c < 1, lambda c: c + f(x) * 0 + 1, 0.0),
    "fori": lambda f, x: br.fori_loop(0, 2, lambda i, c: c + f(x), 0.0),
    "scope": lambda f, x: jax.named_scope("a")(f)(x),
    "precision": lambda f, x: precise(f, x),
    "nested jit": lambda f, x: jax.jit(br.pure(f), static_argnames="create")(br.state(), x, seed=0, create=True)[1],
    "scan of jit": lambda f, x: br.scan(lambda c, x: (c, br.jit(f)(x)), 0.0, x[None])[1],
}
X = jnp.ones(2)
STATE = {"net/n": jnp.zeros(())}


def precise(f, x):
    with jax.default_matmul_precision("float32"):
        return f(x)


@pytest.mark.parametrize("outer", ["eager", "jit"])
@pytest.mark.parametrize("effect", ["write", "create", "draw"])
@pytest.mark.parametrize("name", PLAIN)
def test_an_effect_under_a_plain_transformation_is_refused(name, effect, outer):
    net = Net()
    run = br.pure(lambda x: PLAIN[name](getattr(net, effect), x))
    run = jax.jit(run, static_argnames="create") if outer == "jit" else run
    with pytest.raises(br.LeakError, match=r"(?s)'net.*plain JAX transformation.*Remedy: bridges\.jit, grad") as caught:
        run(STATE, X, seed=0, create=True)
    instead = INSTEAD.get(name, name)
    assert f"use bridges.{instead}, the lifted function," in str(caught.value) or instead == ""


@pytest.mark.parametrize("outer", ["eager", "jit"])
@pytest.mark.parametrize("name", PLAIN)
def test_reading_under_a_plain_transformation_is_fine(name, outer):
    net = Net()
    run = br.pure(lambda x: PLAIN[name](net.read, x) if name not in ("eval_shape", "make_jaxpr") else 0)
    run = jax.jit(run) if outer == "jit" else run
    run({"net/n": jnp.ones(())}, X)


@pytest.mark.parametrize("outer", ["eager", "jit", "grad"])
@pytest.mark.parametrize("effect", ["write", "create", "draw", "read"])
@pytest.mark.parametrize("name", LIFTED)
def test_an_effect_under_a_lifted_transformation_is_none(name, effect, outer):
    net = Net()
    pure = br.pure(lambda x: jnp.sum(LIFTED[name](getattr(net, effect), x)))
    run = lambda x: pure(STATE, x, seed=0, create=True)[1]  # noqa: E731
    if (name, outer) == ("while", "grad"):
        return  # no reverse mode through while, in JAX either
    if (name, effect) == ("vmap", "write"):
        return  # would write a value of every member to a shared entry
    {"eager": lambda f: f, "jit": jax.jit, "grad": jax.grad}[outer](run)(X)


@pytest.mark.parametrize("name", LIFTED)
def test_no_tracer_outlives_a_lifted_transformation(name):
    net = Net()
    effect = net.draw if name == "vmap" else lambda x: net.write(x) + net.draw(x)
    with jax.checking_leaks():
        jax.eval_shape(lambda x: br.pure(lambda x: LIFTED[name](effect, x))(STATE, x, seed=0)[0], X)


def test_reading_a_tree_under_a_plain_transformation():
    class Tree(br.Module):
        def __call__(self, x):
            return x * self.get("t", lambda: (jnp.ones(()), jnp.ones(())))[0] + self.get("w", jnp.ones, ())

    state = br.init(Tree())({}, 1.0)
    np.testing.assert_array_equal(br.pure(lambda x: jax.vmap(Tree())(x))(dict(state), X)[1], X + 1)


def test_jax_functions_that_jit_inside_are_no_transformation():
    class Init(br.Module):
        def __call__(self, x):
            w = self.get("w", jax.nn.initializers.orthogonal(), br.rng(), (2, 2))
            self.put("w", jax.jit(lambda w: w * 2)(w))
            return jax.vmap(lambda x: x @ w)(x)

    state = br.init(Init())({}, jnp.ones((3, 2)), seed=0)
    assert br.pure(Init())(state, jnp.ones((3, 2)), seed=0)[1].shape == (3, 2)


def test_effects_in_a_custom_rule():
    net = Net()

    def fn(x):
        @jax.custom_vjp
        def f(x):
            return net.write(x)

        f.defvjp(lambda x: (net.write(x), None), lambda _, g: (g * X,))
        return f(x)

    with pytest.raises(br.LeakError):
        br.pure(lambda x: br.value_and_grad(fn)(x))(STATE, X)


def test_without_jit_everything_runs_eagerly():
    with jax.disable_jit():
        net = Net()
        state, _ = br.jit(net.write)(STATE, X)
        assert state["net/n"] == 2
        state, _ = br.pure(lambda x: br.scan(lambda c, x: (c, net.write(x)), 0.0, x[None]))(STATE, X)
        assert state["net/n"] == 2
