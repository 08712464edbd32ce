"""Every thread and every asyncio task has a context of its own."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

import bridges as br

ROUNDS = 300


class Dense(br.Module):
    units: int = 2

    def __call__(self, x):
        w = self.get("w", jnp.ones, (x.shape[-1], self.units))
        n = self.get("n", jnp.zeros, (), jnp.int32)
        self.put("n", n + 1)
        return x @ w


class Deep(br.Module):
    depth: int = 2

    def __init__(self):
        self.layers = [Dense() for _ in range(self.depth)]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        with br.scope("end"):
            x = self.get("head", Dense, units=1)(Dense()(x))
        return x + br.scan(lambda c, _: (c + jax.random.normal(br.rng()), None), 0.0, None, 2)[0]


X = np.ones((1, 2), np.float32)


def expected(depth):
    net = Deep(depth=depth, name=f"net{depth}")
    state = br.init(net)({}, X, seed=0)
    return sorted(state), br.pure(net)(state, X, seed=depth)[1]


def test_peers_two_threads_that_trace_different_models():
    wanted = {depth: expected(depth) for depth in (1, 2)}
    barrier = threading.Barrier(2)

    def work(depth):
        paths, out = wanted[depth]
        for _ in range(ROUNDS):
            barrier.wait(60)
            net = Deep(depth=depth, name=f"net{depth}")
            state = jax.eval_shape(br.init(net), {}, X, seed=0)
            assert sorted(state) == paths
            state = {path: jnp.ones(value.shape, value.dtype) for path, value in state.items()}
            shapes, result = jax.eval_shape(br.pure(net), state, X, seed=depth)
            assert sorted(shapes) == paths and result.shape == out.shape
        state = br.init(net)({}, X, seed=0)
        np.testing.assert_array_equal(br.pure(net)(state, X, seed=depth)[1], out)
        return depth

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, [1, 2])) == [1, 2]


def test_threads_that_share_one_module():
    for _ in range(ROUNDS // 3):
        net = Deep(depth=2)
        barrier = threading.Barrier(3)

        def work(_, net=net, barrier=barrier):
            barrier.wait(60)
            return sorted(jax.eval_shape(br.init(net), {}, X, seed=0))

        with ThreadPoolExecutor(3) as pool:
            one, *others = pool.map(work, range(3))
        assert all(other == one for other in others) and "deep/layers_1/w" in one and "deep/end/dense/w" in one


def test_a_context_does_not_reach_other_threads():
    seen = []

    def look():
        try:
            br.context()
        except br.ContextError as err:
            seen.append(err)

    def fn():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(60)
        return br.get("w", jnp.ones, ())

    br.pure(fn)({"w": jnp.ones(())})
    assert len(seen) == 1


def test_a_context_is_handed_to_a_thread_on_purpose():
    def fn():
        copied = contextvars.copy_context()
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(copied.run, br.get, "w").result(60)

    assert br.pure(fn)({"w": np.float32(3)})[1] == 3


def test_asyncio_tasks():
    async def work(depth):
        results = []
        for i in range(ROUNDS // 10):
            net = Dense(units=depth, name=f"net{depth}")

            async def inner(net=net, i=i):
                return br.pure(net)({f"{net.path}/w": X.T * i, f"{net.path}/n": 0}, X)[0] if depth == 1 else None

            await asyncio.sleep(0)
            results.append(sorted(jax.eval_shape(br.init(net), {}, X)))
            await inner()
        return results

    async def main():
        return await asyncio.gather(work(1), work(2), work(3))

    for depth, results in enumerate(asyncio.run(main()), 1):
        assert results == [[f"net{depth}/n", f"net{depth}/w"]] * (ROUNDS // 10)


def test_tasks_that_switch_inside_of_a_running_context():
    """A task that waits in the middle of a stateful function sees its own state after it."""

    async def body(value):
        before = br.get("w")
        await asyncio.sleep(0)
        assert br.get("w") is before and before == value
        br.context().write("w", before + 1)
        return br.get("w")

    async def run(value):
        from bridges.core._context import Context
        from bridges.core._frame import Frame, enter

        with enter(Frame(Context({"w": jnp.float32(value)}), None)):
            return await body(value)

    async def main():
        return await asyncio.gather(*(run(i) for i in range(50)))

    assert [int(v) for v in asyncio.run(main())] == list(range(1, 51))
