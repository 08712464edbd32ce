"""Uses of variables, through every kind of JAX transformation that models are made with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridges.core._uses import uses

NAMES = "ab"
X = np.ones((2, 2), np.float32)


def in_turn(p, x):
    return jnp.tanh(x @ p["a"].T) @ p["b"].astype(np.float32)


def scanned(p, x):
    return jax.lax.scan(lambda c, _: (in_turn(p, c), None), x, length=2)[0]


def looped(p, x):
    return jax.lax.while_loop(lambda c: c.sum() > 3, lambda c: in_turn(p, c), x)


def switched(p, x):
    return jax.lax.cond(x.sum() > 3, lambda x: in_turn(p, x), lambda x: x, x)


def mapped(p, x):
    return jax.vmap(lambda x: in_turn(p, x))(x[None])


@jax.custom_vjp
def custom(p, x):
    return in_turn(p, x)


custom.defvjp(lambda p, x: (in_turn(p, x), None), lambda r, g: (None, None))


@pytest.mark.parametrize(
    "run",
    [in_turn, jax.jit(in_turn), jax.checkpoint(in_turn), scanned, looped, switched, mapped, custom],
    ids="plain jit checkpoint scan while cond vmap custom_vjp".split(),
)
def test_what_is_used_on_the_output_of_another_is_fed_by_it(run):
    found = uses(run, {n: X for n in NAMES}, X)
    assert found["a"].rank < found["b"].rank
    assert (found["a"].after, found["b"].after) == (0, 1)


def test_what_is_used_side_by_side_feeds_nothing():
    found = uses(lambda p, x: (x @ p["b"]) * (x @ p["a"]), {n: X for n in NAMES}, X)
    assert found["b"].rank < found["a"].rank
    assert found["a"].after == found["b"].after == 0


def test_what_is_done_to_variables_alone_is_no_use():
    """Fused kernels: both are used where their sum is."""
    found = uses(lambda p, x: jnp.tanh(x @ p["c"]) @ (p["a"] + p["b"]), {n: X for n in "abc"}, X)
    assert found["a"].rank == found["b"].rank and found["a"].after == found["b"].after == 0b100


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_from_the_last_slice_to_the_first(reverse):
    def run(p, x):
        return jax.lax.scan(lambda c, w: (c @ w, None), x, jnp.moveaxis(p["a"], 1, 0), reverse=reverse)[0]

    assert uses(run, {"a": np.ones((2, 3, 2), np.float32)}, X)["a"].backwards is reverse


def test_an_entry_that_no_input_meets_has_no_use():
    assert uses(lambda p, x: x + 1, {"a": X}, X) == {}
