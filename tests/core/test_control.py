"""cond, switch, scan, while_loop, fori_loop and checkpoint against plain JAX, with state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridges as br

W = jnp.array([0.5, -1.5])
XS = jnp.arange(6.0).reshape(3, 2)


def weight():
    return br.get("w", lambda: W)


def count(by=1.0):
    n = br.get("n", jnp.zeros, (), kind=br.BatchStat)
    br.context().write("n", n + by)
    return n


# Each: the lifted function of (w, x), and the same in plain JAX as (out, n after). Both read w and count in n.


def scan_lifted(x, **kw):
    return br.scan(lambda c, x: (c * weight() + x + count(), c * x), x, XS, **kw)


def scan_plain(w, x, **kw):
    (c, n), ys = jax.lax.scan(lambda s, x: ((s[0] * w + x + s[1], s[1] + 1), s[0] * x), (x, 0.0), XS, **kw)
    return (c, ys), n


def while_lifted(x):
    def test(v):
        return br.get("n", jnp.zeros, (), kind=br.BatchStat) < 3

    return br.while_loop(test, lambda v: v * weight() + count(), x)


def while_plain(w, x):
    return jax.lax.while_loop(lambda s: s[1] < 3, lambda s: (s[0] * w + s[1], s[1] + 1), (x, 0.0))


def fori_lifted(x):
    return br.fori_loop(1, 4, lambda i, v: v * weight() + i * count(), x)


def fori_plain(w, x):
    return jax.lax.fori_loop(1, 4, lambda i, s: (s[0] * w + i * s[1], s[1] + 1), (x, 0.0))


def cond_lifted(x):
    def yes(x):
        count(2.0)
        return x * weight()

    return br.cond(x[0] > 0, yes, lambda x: x + weight(), x)


def cond_plain(w, x):
    return jax.lax.cond(x[0] > 0, lambda x: (x * w, 2.0), lambda x: (x + w, 0.0), x)


def switch_lifted(x):
    return br.switch(1, [lambda x: x, lambda x: x * weight() + count(), lambda x: x], x)


def switch_plain(w, x):
    return x * w, 1.0


def checkpoint_lifted(x):
    return br.checkpoint(lambda x: jnp.sin(x * weight()) + count())(x)


def checkpoint_plain(w, x):
    return jnp.sin(x * w), 1.0


def jit_lifted(x):
    return br.jit(lambda x: jnp.sin(x * weight()) + count())(x)


def vmap_lifted(x):
    return br.vmap(lambda x: x * weight() + count())(jnp.stack([x, x + 1]))


def vmap_plain(w, x):
    return jnp.stack([x, x + 1]) * w, 1.0


def nested_lifted(x):
    def outer(c, x):
        c = br.cond(x[0] > 1, lambda c: c * weight(), lambda c: c + count(), c)
        c = br.fori_loop(0, 2, lambda i, c: c * weight() + count(), c)
        c = br.checkpoint(lambda c: c + count())(c)
        return c, br.scan(lambda c, x: (c + count(), c), c, None, 2)[0]

    return br.scan(outer, x, XS)


def nested_plain(w, x):
    def outer(s, x):
        c, n = s
        c, n = jax.lax.cond(x[0] > 1, lambda c, n: (c * w, n), lambda c, n: (c + n, n + 1), c, n)
        c, n = jax.lax.fori_loop(0, 2, lambda i, s: (s[0] * w + s[1], s[1] + 1), (c, n))
        c, n = c + n, n + 1
        (y, n), _ = jax.lax.scan(lambda s, _: ((s[0] + s[1], s[1] + 1), None), (c, n), None, 2)
        return (c, n), y

    (c, n), ys = jax.lax.scan(outer, (x, 0.0), XS)
    return (c, ys), n


CASES = {
    "scan": (scan_lifted, scan_plain),
    "reverse": (lambda x: scan_lifted(x, reverse=True), lambda w, x: scan_plain(w, x, reverse=True)),
    "unroll": (lambda x: scan_lifted(x, unroll=2), scan_plain),
    "while": (while_lifted, while_plain),
    "fori": (fori_lifted, fori_plain),
    "cond": (cond_lifted, cond_plain),
    "switch": (switch_lifted, switch_plain),
    "checkpoint": (checkpoint_lifted, checkpoint_plain),
    "jit": (jit_lifted, checkpoint_plain),
    "vmap": (vmap_lifted, vmap_plain),
    "nested": (nested_lifted, nested_plain),
}


def close(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, wanted)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("x", [jnp.array([1.0, 2.0]), jnp.array([-1.0, 0.5])], ids=["yes", "no"])
def test_values_state_and_creation_are_those_of_plain_jax(name, x):
    lifted, plain = CASES[name]
    wanted, n = plain(W, x)
    state = br.init(lifted)({}, x)
    assert dict(state) == {"n": 0, "w": state["w"]} and (state["w"] == W).all()
    assert state.kind("n") is br.BatchStat
    for run in (br.pure(lifted), jax.jit(br.pure(lifted))):
        new, out = run(state, x)
        close(out, wanted)
        assert new["n"] == n and new.kinds == state.kinds
    created, out = br.pure(lifted)({}, x, create=True)
    close(out, wanted)
    assert created["n"] == n


@pytest.mark.parametrize("name", [name for name in CASES if name != "while"])
def test_gradients_are_those_of_plain_jax(name):
    lifted, plain = CASES[name]
    x = jnp.array([1.0, 2.0])

    def total(tree):
        return sum(jnp.sum(leaf * jnp.arange(1.0, leaf.size + 1).reshape(leaf.shape)) for leaf in jax.tree.leaves(tree))

    wanted = jax.grad(lambda w, x: total(plain(w, x)[0]), argnums=(0, 1))(W, x)
    state = {"w": W, "n": jnp.zeros(())}
    # From outside, through the pure function; and from inside, with the lifted grad.
    got = jax.grad(lambda w, x: total(br.pure(lifted)({**state, "w": w}, x)[1]), argnums=(0, 1))(W, x)
    close(got, wanted)
    new, (_, _, grads) = jax.jit(br.pure(lambda x: br.grad(lambda x: total(lifted(x)), "w")(x)))(state, x)
    close(grads["w"], wanted[0])
    assert new["n"] == plain(W, x)[1]
    _, (_, _, grads) = br.pure(lambda x: br.grad(lambda x: total(lifted(x)), "w")(x))({}, x, create=True)
    close(grads["w"], wanted[0])


@pytest.mark.parametrize("name", CASES)
def test_inside_of_other_transformations(name):
    lifted, plain = CASES[name]
    x = jnp.array([1.0, 2.0])
    wanted, n = plain(W, x)
    wraps = {
        "jit": lambda f: lambda x: br.jit(f)(x),
        "checkpoint": lambda f: lambda x: br.checkpoint(f)(x),
        "cond": lambda f: lambda x: br.cond(True, f, f, x),
        "vmap": lambda f: lambda x: jax.tree.map(lambda v: v[1], br.vmap(f, axis_size=2, in_axes=None)(x)),
        "scan": lambda f: lambda x: jax.tree.map(lambda v: v[0], br.scan(lambda c, _: (c, f(x)), 0, None, 1)[1]),
    }
    for kind, wrap in wraps.items():
        if name == "while" and kind == "vmap":
            continue  # a batched predicate over shared state
        state = br.init(wrap(lifted))({}, x)
        assert state["n"] == 0, kind
        new, out = br.pure(wrap(lifted))(state, x)
        close(out, wanted)
        assert new["n"] == n, kind


@jax.custom_vjp
def times(x):
    return x * 2


times.defvjp(lambda x: (x * 2, None), lambda _, g: (g * 7,))


@jax.custom_jvp
def plus(x):
    return x + 1


plus.defjvp(lambda primals, tangents: (primals[0] + 1, tangents[0] * 5))


@pytest.mark.parametrize("name", ["scan", "fori", "cond", "checkpoint", "jit", "vmap", "plain"])
def test_custom_derivatives_are_kept(name):
    def body(x):
        count()
        return plus(times(x * br.get("w", jnp.ones, ())))

    lift = {
        "scan": lambda x: br.scan(lambda c, _: (body(c), None), x, None, 1)[0],
        "fori": lambda x: br.fori_loop(0, 1, lambda i, c: body(c), x),
        "cond": lambda x: br.cond(True, body, body, x),
        "checkpoint": br.checkpoint(body),
        "jit": br.jit(body),
        "vmap": lambda x: br.vmap(body)(x[None])[0],
        "plain": body,
    }[name]
    state = {"w": jnp.ones(()), "n": jnp.zeros(())}
    grad = jax.grad(lambda w: br.pure(lift)({**state, "w": w}, jnp.float32(3))[1])(jnp.float32(1))
    assert grad == 3 * 7 * 5
    assert br.pure(lambda x: br.value_and_grad(lift)(x))(state, jnp.float32(3))[1] == (7, 35)


def test_reading_state_inside_of_a_custom_rule():
    def fn(x):
        w = weight()

        @jax.custom_vjp
        def f(x, w):
            return x * w

        f.defvjp(lambda x, w: (x * w, (x, w)), lambda r, g: (g * r[1] * 10, g * r[0]))
        return br.scan(lambda c, _: (f(c, w), None), x, None, 1)[0].sum()

    grads = br.pure(lambda x: br.value_and_grad(fn)(x))({"w": W}, jnp.ones(2))[1][1]
    np.testing.assert_array_equal(grads, W * 10)


@pytest.mark.parametrize("length", [0, 1])
def test_short_scans(length):
    xs = jnp.ones((length, 2))
    state, (_, ys) = br.pure(lambda: br.scan(lambda c, x: (c * weight() + count(), x), jnp.ones(2), xs))(
        {}, create=True
    )
    assert state["n"] == length and ys.shape == (length, 2)
    assert (state["w"] == W).all()


def test_scan_over_trees_and_none():
    def body(c, x):
        assert set(x) == {"a", "b"}
        return {"sum": c["sum"] + x["a"] * x["b"][0] + count()}, None

    xs = {"a": jnp.arange(3.0), "b": (jnp.ones(3),)}
    state, (carry, ys) = br.pure(lambda: br.scan(body, {"sum": 0.0}, xs))({"n": jnp.zeros(())})
    assert carry["sum"] == 6 and ys is None and state["n"] == 3
    _, (carry, _) = br.pure(lambda: br.scan(lambda c, x: (c + 1, x), 0, length=5))({})
    assert carry == 5
    with pytest.raises(br.BridgeError, match=r"one length.*\[2, 3\]"):
        br.pure(lambda: br.scan(lambda c, x: (c, x), 0, (jnp.ones(2), jnp.ones(3))))({})
    with pytest.raises(br.BridgeError, match=r"one length.*length=4"):
        br.pure(lambda: br.scan(lambda c, x: (c, x), 0, jnp.ones(2), length=4))({})
    with pytest.raises(br.BridgeError, match="one length"):
        br.pure(lambda: br.scan(lambda c, x: (c, x), 0))({})
    with pytest.raises(br.BridgeError, match=r"must return \(carry, y\)"):
        br.pure(lambda: br.scan(lambda c, x: c, 0.0, jnp.ones(2)))({})


def test_weakly_typed_carries_are_promoted_as_jax_does():
    xs = jnp.arange(3.0) + 0.5
    for body, init in [
        (lambda c, x: (c * 2 + x, c), 0), (lambda c, x: (c + x, c), 0.0), (lambda c, x: ((c[1], c[0] + x), x), (1, 2.0)),
    ]:  # fmt: skip
        close(br.pure(lambda b=body, i=init: br.scan(b, i, xs))({})[1], jax.lax.scan(body, init, xs))
    loop = (lambda v: v < 3, lambda v: v * 2 + xs[0], 0)
    assert br.pure(lambda: br.while_loop(*loop))({})[1] == jax.lax.while_loop(*loop)
    body = lambda i, v: v * 3 + xs[i]  # noqa: E731
    assert br.pure(lambda: br.fori_loop(0, 3, body, 1))({})[1] == jax.lax.fori_loop(0, 3, body, 1)
    branches = (lambda x: x * 2, lambda x: x + xs[0], 3.0)
    assert br.pure(lambda: br.cond(True, *branches))({})[1] == jax.lax.cond(True, *branches)


def test_indices_have_the_type_that_jax_gives_them():
    for lower, upper in [(0, 2), (jnp.int8(0), jnp.int8(2)), (np.int16(0), np.int16(2)), (jnp.int32(-2), 0)]:
        body = lambda i, v: v + i * jnp.bfloat16(2)  # noqa: E731
        got = br.pure(lambda lo=lower, up=upper, body=body: br.fori_loop(lo, up, body, jnp.bfloat16(0)))({})[1]
        want = jax.lax.fori_loop(lower, upper, body, jnp.bfloat16(0))
        assert got == want and got.dtype == want.dtype


def test_traced_bounds_and_branches():
    def fn(n):
        br.fori_loop(0, n, lambda i, v: v + count(), 0.0)
        return br.switch(n, [lambda: 0.0, lambda: 1.0 + count() * 0, lambda: 2.0])

    state, out = jax.jit(br.pure(fn))({"n": jnp.zeros(())}, 7)
    assert state["n"] == 7 and out == 2
    assert br.pure(fn)({"n": jnp.zeros(())}, -3)[1] == 0


def test_branches_of_cond_make_layers_of_their_own():
    class Scale(br.Module):
        def __call__(self, x):
            return x * self.get("s", lambda: jax.random.normal(br.rng(), ()))

    class Net(br.Module):
        def __call__(self, x):
            x = br.cond(x[0] > 0, lambda x: Scale()(x), lambda x: Scale()(x), x)
            return br.cond(x[0] > 0, self.shared, self.shared, Scale()(x))

        def shared(self, x):
            return self.get("one", Scale)(x)

    net = Net()
    state = br.init(net)({}, W, seed=0)
    assert list(state) == ["net/one/s", "net/scale/s", "net/scale_1/s", "net/scale_2/s"]
    for x in (W, -W):
        chosen = state["net/scale/s"] if x[0] > 0 else state["net/scale_1/s"]
        out = jax.jit(br.pure(net))(state, x)[1]
        np.testing.assert_allclose(out, x * chosen * state["net/scale_2/s"] * state["net/one/s"], rtol=1e-5)


def test_the_predicate_of_a_loop_may_not_write():
    def test(v):
        count()
        return v < 3

    with pytest.raises(br.PermissionsError, match=r"'n' may not be modified.*predicate of while_loop"):
        br.pure(lambda: br.while_loop(test, lambda v: v + 1, 0))({"n": jnp.zeros(())})


def test_the_predicate_draws_keys_of_its_own():
    def run():
        def test(v):
            return v[0] < jax.random.uniform(br.rng()) * 4 - 10 * (v[1] > 5)

        return br.while_loop(test, lambda v: (v[0] + jax.random.uniform(br.rng()), v[1] + 1), (0.0, 0))

    values = [float(br.pure(run)({}, seed=i)[1][0]) for i in range(6)]
    assert len(set(values)) > 2


def test_a_body_that_writes_another_shape_is_an_error():
    def body(c, x):
        br.context().write("n", jnp.ones(3))
        return c, x

    with pytest.raises(br.EntryShapeError, match=r"'n' is float32\[\] and was written with float32\[3\]"):
        br.pure(lambda: br.scan(body, 0.0, XS))({"n": jnp.zeros(())})


def test_trees_in_the_state_are_carried():
    def body(c, x):
        value = br.get("t", lambda: (jnp.zeros(2), {"n": jnp.zeros((), jnp.int32)}))
        net.put("t", (value[0] + x, {"n": value[1]["n"] + 1}))
        return c, value[1]["n"]

    class Net(br.Module):
        def __call__(self):
            return br.scan(body, 0.0, XS)[1]

    net = Net()
    state = br.init(net)({})
    new, ys = br.pure(net)(state)
    assert new["net/t/1/n"] == 3 and ys.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(new["net/t/0"], XS.sum(0))


def test_intermediates_recorded_in_control_flow():
    def fn(x):
        def body(c, x):
            br.context().write("seen", x, br.Intermediate)
            return c, x

        return br.scan(body, 0.0, x)[1]

    state, _ = jax.jit(br.pure(fn))({}, XS)
    assert state.kind("seen") is br.Intermediate
    np.testing.assert_array_equal(state["seen"], XS[-1])


# How often the innermost body is traced, at depth d ------------------------------------------------------------------


def lifts():
    def loop(f):
        return lambda x: br.while_loop(lambda v: v[1] < 1, lambda v: (f(v[0]), v[1] + 1), (x, 0))[0]

    return {
        "cond": lambda f: lambda x: br.cond(x.sum() > 0, f, lambda x: x, x),
        "switch": lambda f: lambda x: br.switch(1, [lambda x: x, f], x),
        "scan": lambda f: lambda x: br.scan(lambda c, _: (f(c), None), x, None, 2)[0],
        "while": loop,
        "fori": lambda f: lambda x: br.fori_loop(0, 2, lambda i, c: f(c), x),
        "vmap": lambda f: lambda x: br.vmap(f)(x[None])[0],
        "checkpoint": lambda f: lambda x: br.checkpoint(f)(x),
        "jit": lambda f: lambda x: br.jit(f)(x),
        "grad": lambda f: lambda x: br.value_and_grad(lambda x: f(x).sum())(x)[1],
    }


@pytest.mark.parametrize("depth", range(1, 7))
@pytest.mark.parametrize("name", [*lifts(), "mixed"])
def test_nested_control_flow_traces_its_innermost_body_at_most_once_a_level_and_once_more(name, depth):
    calls = 0

    def fn(x):
        nonlocal calls
        calls += 1
        return x * br.get("w", jnp.ones, ()) + count()

    every = [lift for kind, lift in lifts().items() if kind != "vmap"]  # a batched cond would write batched entries
    for level in range(depth):
        fn = (every[level % len(every)] if name == "mixed" else lifts()[name])(fn)
    x = jnp.ones(2)
    jax.eval_shape(br.init(fn), {}, x)
    assert calls <= depth + 1, f"init: {calls}"
    calls = 0
    state = {"w": jnp.ones(()), "n": jnp.zeros(())}
    jax.eval_shape(br.pure(fn), br.State(state, {"w": br.Param, "n": br.BatchStat}), x)
    assert calls == 1, f"apply: {calls}"
    calls = 0
    jax.eval_shape(lambda s, x: br.pure(fn)(s, x, create=True), {}, x)
    assert calls <= depth + 1, f"create: {calls}"


def test_a_recorded_value_follows_the_shape_of_the_call():
    class Recorder(br.Module):
        def __call__(self, x):
            self.put("seen", x * self.get("w", jnp.ones, ()), kind=br.Intermediate)
            return x + 1

    net = Recorder()
    state = br.init(net)({}, jnp.ones(1))

    def stepped(x):
        return br.scan(lambda c, _: (net(c), None), x, length=2)[0]

    new, out = br.pure(stepped)(state, jnp.zeros(3))
    np.testing.assert_array_equal(out, np.full(3, 2.0))
    np.testing.assert_array_equal(new["recorder/seen"], np.ones(3))
    new, _ = br.pure(br.vmap(net))(state, jnp.arange(4.0))
    np.testing.assert_array_equal(new["recorder/seen"], np.arange(4.0))


def test_scan_takes_64_bit_numpy_arrays_without_a_warning():
    total = br.pure(lambda xs: br.scan(lambda c, x: (c + x, None), jnp.int32(0), xs)[0])({}, np.arange(4))[1]
    assert total == 6
