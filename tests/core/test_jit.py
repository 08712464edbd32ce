"""`jit`: creation and use with one compilation, handing on what is not modified."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridges as br


class Net(br.Module):
    def __call__(self, x):
        w = self.get("w", lambda: jax.random.normal(br.rng(), (2,)))
        n = self.get("n", jnp.zeros, (), jnp.int32)
        self.put("n", n + 1)
        return (w * x).sum()


X = jnp.ones(2)


@pytest.fixture
def compiled():
    """Names of the functions compiled while the test runs."""
    names = []

    def listen(event, duration, fun_name="", **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def test_creation_and_use_compile_the_step_once(compiled):
    step = br.jit(lambda x: net(x) * 1.5)
    net, state = Net(), {}
    for _ in range(3):
        state, _ = step(state, X, seed=0)
    assert state["net/n"] == 3
    assert sum("compiled" in name or "lambda" in name for name in compiled) == 1, compiled


def test_creation_gives_the_values_of_init():
    step = br.jit(Net())
    state, _ = step({}, X, seed=3)
    np.testing.assert_array_equal(state["net/w"], br.init(Net())({}, X, seed=3)["net/w"])
    assert state["net/n"] == 1


def test_once_the_state_exists_no_seed_is_needed():
    state, _ = br.jit(Net())({}, X, seed=0)
    state, _ = br.jit(Net())(state, X)
    assert state["net/n"] == 2
    with pytest.raises(br.SeedError):
        br.jit(Net())({}, X)


def test_entries_that_are_not_modified_are_handed_on():
    step = br.jit(Net())
    state, _ = step({}, X, seed=0)
    new, _ = step(state, X)
    assert new["net/w"] is state["net/w"]
    assert new["net/w"].unsafe_buffer_pointer() == state["net/w"].unsafe_buffer_pointer()
    assert state["net/n"] == 1 and new["net/n"] == 2


def test_donation():
    step = br.jit(Net(), donate_argnums=0)
    first = br.init(Net())({}, X, seed=0)
    new, _ = step(first, X)
    assert first["net/n"].is_deleted() and new["net/n"] == 1
    newer, _ = step(new, X)
    assert newer["net/n"] == 2
    created, _ = br.jit(Net(), donate_argnums=0)({}, X, seed=0)
    assert created["net/n"] == 1


def test_static_arguments():
    def fn(x, mode, *, other="c"):
        assert isinstance(mode, str) and isinstance(other, str)
        return x * br.get("w", jnp.ones, ())

    assert br.jit(fn, static_argnums=2, static_argnames="other")({}, X, "a", other="b")[1].shape == (2,)
    assert br.jit(fn, static_argnames=("mode", "other"))({}, X, mode="a")[1].shape == (2,)
    assert br.jit(fn, static_argnames=("mode", "other"))({}, X, "a")[1].shape == (2,)


def test_a_missing_entry_that_init_cannot_make_is_an_error():
    with pytest.raises(br.MissingEntryError, match="'nope'"):
        br.jit(lambda: br.context().read("nope"))({})


def test_inside_of_a_context_it_takes_and_returns_what_the_function_does():
    net = Net()
    inner = br.jit(net)

    def fn(x):
        return inner(x) + inner(x)

    state = br.init(fn)({}, X, seed=0)
    assert state["net/n"] == 0
    new, out = jax.jit(br.pure(fn))(state, X)
    assert new["net/n"] == 2
    np.testing.assert_allclose(out, 2 * state["net/w"].sum(), rtol=1e-6)
    new, out = br.pure(fn)(new, X)
    assert new["net/n"] == 4


def test_inside_of_a_context_equal_calls_trace_once():
    count = 0

    def body(x):
        nonlocal count
        count += 1
        return x * br.get("w", jnp.ones, ())

    inner = br.jit(body)
    for _ in range(2):
        br.pure(lambda x: inner(inner(x)))({"w": jnp.ones(())}, X)
    assert count == 1


def test_inside_of_a_context_static_arguments_are_those_of_the_function():
    def body(x, mode):
        assert isinstance(mode, str)
        return x

    assert br.pure(lambda x: br.jit(body, static_argnums=1)(x, "a"))({}, X)[1].shape == (2,)
    assert br.pure(lambda x: br.jit(body, static_argnames="mode")(x, mode="a"))({}, X)[1].shape == (2,)
    assert br.pure(lambda x: br.jit(body, static_argnames="mode")(x, "a"))({}, X)[1].shape == (2,)


def test_a_compiled_call_served_from_the_cache_has_all_its_effects():
    class Rec(br.Module):
        def __call__(self, x):
            self.put("seen", x, kind=br.Intermediate)
            n = self.get("n", jnp.zeros, (), kind=br.BatchStat)
            self.put("n", n + 1)
            return x + jax.random.normal(br.rng("noise"), ())

    rec = Rec()
    inner = br.jit(rec)
    fn = br.pure(lambda x: (inner(x), jax.random.normal(br.rng("noise"), ())))
    one, (a, b) = fn({"rec/n": jnp.zeros(())}, 1.0, seed=0)
    two, (c, d) = fn({"rec/n": jnp.zeros(())}, 1.0, seed=0)
    assert one.kinds == two.kinds == {"rec/n": br.BatchStat, "rec/seen": br.Intermediate}
    assert a == c and b == d and a - 1 != b


def test_keys_inside_of_jit_are_those_without():
    class Draw(br.Module):
        def __call__(self):
            return jax.random.normal(br.rng("d"), ()), jax.random.normal(br.rng("d"), ())

    draw = Draw()
    plain = br.pure(lambda: (draw(), draw()))({}, seed=0)[1]
    lifted = br.pure(lambda: (br.jit(draw)(), br.jit(draw)()))({}, seed=0)[1]
    assert plain == lifted and len({float(v) for pair in plain for v in pair}) == 4


def test_names_inside_of_jit_are_those_without():
    class Dense(br.Module):
        def __call__(self, x):
            return x + self.get("b", jnp.ones, (2,))

    def fn(lift):
        def layer(x):
            return Dense()(x)

        step = lift(layer)
        return lambda x: step(step(Dense()(x)))

    expected = ["dense/b", "dense_1/b", "dense_2/b"]
    for lift in (lambda f: f, br.jit, br.checkpoint):
        state = br.init(fn(lift))({}, X)
        assert list(state) == expected, lift
        np.testing.assert_array_equal(br.pure(fn(lift))(state, X)[1], X + 3)


def test_changes_of_the_structure_are_followed():
    def fn(x, record):
        if record:
            br.context().write("seen", x, br.Intermediate)
        return x

    step = br.jit(fn, static_argnums=2)
    state, _ = step({"w": X}, X, True)
    assert set(state) == {"w", "seen"}
    state, _ = step(state, X, False)
    assert set(state) == {"w", "seen"}


def test_plain_dictionaries_call_after_call():
    """The way of a dictionary with the paths of the last is a short one: it must be as careful."""
    traces = []

    def fn(x):
        traces.append(1)
        return br.get("a") * x + br.get("b")

    run = br.jit(fn)
    a, b = jnp.float32(2), jnp.float32(3)
    for state in ({"a": a, "b": b}, {"b": b, "a": a}, {"a": a, "b": b}, br.State({"a": a, "b": b})):
        new, out = run(state, a)
        assert out == 7 and isinstance(new, br.State) and list(new) == ["a", "b"]
    weak = jnp.asarray(2.0)
    assert weak.weak_type and run({"a": weak, "b": b}, a)[1] == 7  # a definite float32, as ever
    assert run({"a": 2.0, "b": np.float32(3)}, a)[1] == 7
    assert len(traces) == 1
    assert run({"a": a, "b": b, "c": a}, a)[0]["c"] == 2 and len(traces) == 2
    with pytest.raises(br.StructureError, match="flat"):
        run({"a": a, "b": {"c": b}}, a)
    with pytest.raises(br.MissingEntryError, match="'b'"):
        run({"a": a, "c": b}, a)
    with pytest.raises(br.StructureError, match="mapping"):
        run([a, b], a)
