"""Random streams: what is given, when it is demanded, and what a key depends on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridges as br


class Draw(br.Module):
    stream: str = "default"

    def __call__(self, times=1):
        return [jax.random.key_data(br.rng(self.stream)).tolist() for _ in range(times)]


def draws(fn, seed=0, **kwargs):
    return br.pure(fn)({}, seed=seed, **kwargs)[1]


@pytest.mark.parametrize(
    "seed",
    [
        0,
        np.int64(3),
        np.uint32(7),
        jnp.int32(5),
        jax.random.key(0),
        jax.random.PRNGKey(0),
        jax.random.key(1, impl="rbg"),
    ],
)
def test_seeds_of_every_form(seed):
    keys = br.pure(lambda: (br.rng(), br.rng("dropout"), br.rng()))({}, seed=seed)[1]
    values = [tuple(np.ravel(jax.random.key_data(key))) for key in keys]
    assert len(set(values)) == 3
    if isinstance(seed, jax.Array) and seed.dtype != jnp.int32:
        assert keys[0].dtype == seed.dtype
    jax.random.normal(keys[0], (2,))


def test_an_int_and_its_key_are_one_seed():
    net = Draw()
    assert draws(net, 3) == draws(net, jax.random.key(3)) != draws(net, 4)


@pytest.mark.parametrize("seed", ["a", 1.5, [0, 1], np.zeros(3, np.float32), True, {"params": None}])
def test_other_seeds_are_refused(seed):
    with pytest.raises(br.SeedError, match=r"(?s)seed=.*Give an integer, a key|stream"):
        draws(Draw(), seed)


def test_a_traced_seed():
    net = Draw()
    run = jax.jit(lambda seed: br.pure(lambda: br.rng("x"))({}, seed=seed)[1])
    for seed in (0, 5):
        assert jnp.array_equal(
            jax.random.key_data(run(seed)), jax.random.key_data(br.pure(lambda: br.rng("x"))({}, seed=seed)[1])
        )
    count = 0

    def fn():
        nonlocal count
        count += 1
        return jax.random.normal(net_key(), ())

    def net_key():
        return br.rng()

    step = jax.jit(br.pure(fn))
    values = {float(step({}, seed=i)[1]) for i in range(4)}
    assert len(values) == 4 and count == 1
    assert draws(net) == draws(net)


def test_a_seed_is_demanded_only_when_one_is_drawn():
    class Drop(br.Module):
        def __call__(self, x):
            w = self.get("w", lambda: jax.random.normal(br.rng("params"), ()))
            return x * w + (jax.random.normal(br.rng("dropout"), ()) if br.flag("train") else 0)

    state = br.init(Drop())({}, 1.0, seed=0)
    br.pure(Drop())(state, 1.0)
    with pytest.raises(br.SeedError, match=r"stream 'dropout' is drawn at 'drop'.*no seed was given.*seed=0"):
        br.pure(Drop())(state, 1.0, flags={"train": True})
    br.pure(Drop())(state, 1.0, seed={"dropout": 1}, flags={"train": True})
    with pytest.raises(br.SeedError, match=r"no random stream 'dropout'.*\['params'\]"):
        br.pure(Drop())(state, 1.0, seed={"params": 1}, flags={"train": True})
    with pytest.raises(br.SeedError, match="Did you mean 'dropuot'"):
        br.pure(Drop())(state, 1.0, seed={"dropuot": 1}, flags={"train": True})


def test_streams_are_distinct_and_fall_back():
    one = br.pure(lambda: [jax.random.key_data(br.rng(s)).tolist() for s in ("a", "b", "params")])({}, seed=0)[1]
    assert len({tuple(k) for k in one}) == 3
    seeds = {"default": 1, "a": 2}
    both = br.pure(lambda: [jax.random.key_data(br.rng(s)).tolist() for s in ("a", "b")])({}, seed=seeds)[1]
    other = br.pure(lambda: [jax.random.key_data(br.rng(s)).tolist() for s in ("a", "b")])({}, seed={**seeds, "a": 3})[
        1
    ]
    assert both[0] != other[0] and both[1] == other[1]


def test_a_key_is_independent_of_what_unrelated_modules_draw():
    a, b = Draw(name="a"), Draw(name="b")
    alone = draws(lambda: a(2))
    assert draws(lambda: (b(5), a(2)))[1] == alone
    assert draws(lambda: (a(2), b(5)))[0] == alone
    mixed = draws(lambda: (a(), b(), a()))
    assert mixed[0] + mixed[2] == alone
    assert not {tuple(k) for k in draws(lambda: b(2))} & {tuple(k) for k in alone}


def test_initial_values_are_independent_of_the_rest_of_the_model():
    class Dense(br.Module):
        def __call__(self, x):
            return x * self.get("w", lambda: jax.random.normal(br.rng("params"), (2,)))

    class Net(br.Module):
        extra: bool = False

        def __init__(self):
            self.a, self.b = Dense(), Dense()

        def __call__(self, x):
            if self.extra:
                x = self.get("more", Dense)(x) + jax.random.normal(br.rng("noise"), ())
            return self.b(self.a(x))

    small, large = (br.init(Net(extra=extra))({}, jnp.ones(2), seed=0) for extra in (False, True))
    assert all((large[path] == small[path]).all() for path in small)
    assert len({float(v) for value in large.values() for v in value}) == 6


def draw():
    return jax.random.normal(br.rng("n"), ())


def carried(lift):
    return lambda: (draw(), lift(), draw())


@pytest.mark.parametrize(
    "lift",
    {
        "scan": lambda: br.scan(lambda c, x: (c, (draw(), draw())), 0.0, jnp.arange(3))[1],
        "reverse": lambda: br.scan(lambda c, x: (c, (draw(), draw())), 0.0, jnp.arange(3), reverse=True)[1],
        "scan of scan": lambda: br.scan(
            lambda c, x: (c, br.scan(lambda c, x: (c, draw()), c, jnp.arange(2))[1]), 0.0, jnp.arange(3)
        )[1],
        "scan of jit": lambda: br.scan(lambda c, x: (c, br.jit(draw)()), 0.0, jnp.arange(3))[1],
        "scan of checkpoint": lambda: br.scan(lambda c, x: (c, br.checkpoint(draw)()), 0.0, jnp.arange(3))[1],
        "scan of vmap": lambda: br.scan(
            lambda c, x: (c, br.vmap(lambda x: draw() + x)(jnp.zeros(2))), 0.0, jnp.arange(3)
        )[1],
        "scan of cond": lambda: br.scan(lambda c, x: (c, br.cond(x > 0, draw, draw)), 0.0, jnp.arange(3))[1],
        "scan of grad": lambda: br.scan(
            lambda c, x: (c, br.value_and_grad(lambda y: draw() + y)(0.0)[0]), 0.0, jnp.arange(3)
        )[1],
        "fori": lambda: br.fori_loop(0, 3, lambda i, v: v.at[i].set(draw()), jnp.zeros(3)),
        "while": lambda: br.while_loop(
            lambda v: v[1] < 3, lambda v: (v[0].at[v[1]].set(draw()), v[1] + 1), (jnp.zeros(3), 0)
        )[0],
        "while of jit": lambda: br.while_loop(
            lambda v: v[1] < 3, lambda v: (v[0].at[v[1]].set(br.jit(draw)()), v[1] + 1), (jnp.zeros(3), 0)
        )[0],
        "vmap": lambda: br.vmap(lambda x: (draw(), draw() + x))(jnp.zeros(3)),
        "vmap of vmap": lambda: br.vmap(br.vmap(lambda x: draw() + x))(jnp.zeros((2, 2))),
        "cond": lambda: (br.cond(True, draw, lambda: 0.0), br.cond(False, draw, draw)),
        "switch": lambda: br.switch(1, [draw, draw, draw]),
        "jit": lambda: (br.jit(draw)(), br.jit(draw)()),
        "checkpoint": lambda: (br.checkpoint(draw)(), draw()),
        "grad": lambda: br.value_and_grad(lambda y: draw() + y)(0.0)[0],
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize("jitted", [False, True])
def test_every_draw_is_of_its_own(lift, jitted):
    fn = br.pure(carried(lift[1]))
    out = (jax.jit(fn) if jitted else fn)({}, seed=0)[1]
    values = [float(v) for leaf in jax.tree.leaves(out) for v in np.ravel(leaf)]
    assert len(set(values)) == len(values)
    assert jax.tree.map(np.ravel, fn({}, seed=1)[1])[0] != values[0]


@pytest.mark.parametrize(
    "lift", [br.jit, br.checkpoint, lambda f: lambda: br.value_and_grad(lambda y: f() + y)(0.0)[0]]
)
def test_transparent_transformations_do_not_change_a_draw(lift):
    class Net(br.Module):
        def __call__(self):
            return draw(), lift(draw)(), draw()

    class Plain(br.Module):
        def __call__(self):
            return draw(), draw(), draw()

    np.testing.assert_array_equal(br.pure(Net(name="net"))({}, seed=0)[1], br.pure(Plain(name="net"))({}, seed=0)[1])

    class First(br.Module):
        def __call__(self):
            return lift(lambda: jax.random.normal(br.rng(), ()))()

    class Bare(br.Module):
        def __call__(self):
            return jax.random.normal(br.rng(), ())

    assert br.pure(First(name="net"))({}, seed=0)[1] == br.pure(Bare(name="net"))({}, seed=0)[1]


def test_a_key_may_be_part_of_the_state():
    def fn():
        key = br.get("key", lambda: br.rng())
        new, now = jax.random.split(key)
        br.context().write("key", new)
        return jax.random.normal(now, ())

    state = br.init(fn)({}, seed=0)
    step = jax.jit(br.pure(fn))
    state, a = step(state)
    state, b = step(state)
    assert a != b and state.kind("key") is br.RngState
