"""Every framework as a guest of every other, three wrappers deep: losses, variables and programs."""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core.scope import LazyRng

import bridges as br
from tests.guests.levels import FRAMEWORKS, GIVEN, WIDTH
from tests.guests.programs import KEY, Flat, X, Y, initial, placed, plan, program, tails, values
from tests.hlo import compiled, opcodes
from tests.light import light

PAIRS = [(host, guest, host, guest) for host, guest in itertools.permutations(FRAMEWORKS, 2)]
MIXED = [
    ("haiku", "linen", "nnx", "core"),
    ("linen", "core", "haiku", "nnx"),
    ("nnx", "haiku", "core", "linen"),
    ("core", "nnx", "linen", "haiku"),
]
STEPS = 20
name = "-".join


def native(framework: str, number: int, rate: float = 0.0) -> Any:
    """Returns a level as a program of its own, with nothing of ours around it."""
    return program((framework,), rate, number)


def trained(params: Flat, rest: Flat, loss: Any) -> Any:
    """Returns the loss of a step of gradient descent, what the model gives beside it, and the variables after."""
    (value, (drawn, new)), grads = jax.value_and_grad(loss, has_aux=True)(params, rest)
    return value, drawn, {p: v - 0.1 * grads[p] for p, v in params.items()}, {p: new[p] for p in rest}


def parted(state: br.State, flat: Flat) -> tuple[Flat, Flat]:
    """Returns the parameters of a program's variables, and the rest."""
    params = {p: flat[p] for p in state.filter(br.Param)}
    return params, {p: v for p, v in flat.items() if p not in params}


def wrapped_step(chain: tuple[str, ...], rate: float) -> Any:
    model = program(chain, rate)

    def step(params: Flat, rest: Flat, key: Any) -> Any:
        def loss(params: Flat, rest: Flat) -> Any:
            out, drawn, new = model.apply({**params, **rest}, X, True, key)
            return ((out.sum(1) - Y) ** 2).mean(), (drawn, new)

        return trained(params, rest, loss)

    return step


def native_step(chain: tuple[str, ...], rate: float) -> Any:
    levels = [native(framework, number, rate) for number, framework in enumerate(chain)]

    def step(params: list[Flat], rest: list[Flat], given: Any) -> Any:
        flat = {(i, p): v for i, part in enumerate(params) for p, v in part.items()}

        def loss(flat: Any, rest: Any) -> Any:
            x, new = X, {}
            for i, level in enumerate(levels):
                entries = {p: v for (j, p), v in {**flat, **rest}.items() if i == j}
                token = GIVEN.set(given or None)
                x, _, after = level.apply(entries, x, True)
                GIVEN.reset(token)
                new.update({(i, p): v for p, v in after.items()})
            return ((x.sum(1) - Y) ** 2).mean(), ((), new)

        others = {(i, p): v for i, part in enumerate(rest) for p, v in part.items()}
        value, _, after, left = trained(flat, others, loss)
        apart = lambda flat: [{p: v for (j, p), v in flat.items() if i == j} for i in range(len(levels))]  # noqa: E731
        return value, (), apart(after), apart(left)

    return step


def losses(step: Any, params: Any, rest: Any, keys: Any) -> Any:
    found = []
    drawn = []
    for key in keys:
        value, got, params, rest = step(params, rest, key)
        found.append(value)
        drawn.append(got)
    return np.asarray(found), drawn, params, rest


@pytest.mark.parametrize("chain", [*PAIRS, *MIXED], ids=name)
def test_trains_as_the_native_levels_do(chain):
    state = initial(chain)
    natives = [initial((framework,), 0.0, number) for number, framework in enumerate(chain)]
    ours, theirs = tails(state), [tails(n) for n in natives]
    assert set(ours) == {tail for n in theirs for tail in n}
    given = [values(n) for n in natives]
    params, rest = parted(state, placed(state, {tail: v for n in given for tail, v in n.items()}))
    apart = [parted(n, placed(n, g)) for n, g in zip(natives, given, strict=True)]
    native_params, native_rest = [p for p, _ in apart], [r for _, r in apart]

    wrapped = compiled(wrapped_step(chain, 0.0), params, rest, None)
    plain = compiled(native_step(chain, 0.0), native_params, native_rest, None)
    assert opcodes(wrapped) == opcodes(plain)
    found, _, params, rest = losses(wrapped, params, rest, [None] * STEPS)
    wanted, _, native_params, native_rest = losses(plain, native_params, native_rest, [None] * STEPS)
    assert wanted[-1] < 0.8 * wanted[0]
    np.testing.assert_array_equal(found, wanted)
    after = {**params, **rest}
    for n, entries in zip(theirs, ({**p, **r} for p, r in zip(native_params, native_rest, strict=True)), strict=True):
        for tail, path in n.items():
            np.testing.assert_array_equal(after[ours[tail]], entries[path], err_msg=tail)
    if (
        chain in PAIRS and "core" not in chain
    ):  # The core has no layers of its own that another framework's would become.
        alone = losses_of_the_host_alone(chain, [placed(n, g) for n, g in zip(natives, given, strict=True)])
        np.testing.assert_allclose(found, alone, rtol=1e-4)  # Flax computes variances in another way than Haiku.


def losses_of_the_host_alone(chain: tuple[str, ...], given: list[Flat]) -> np.ndarray:
    """Returns the losses of the whole model in the first framework, with the variables of the others converted to it."""
    whole = [initial((chain[0],), 0.0, number) for number in range(len(chain))]
    flats = [
        flat if framework == chain[0] else dict(plan(framework, chain[0], number).forward(flat))
        for number, (framework, flat) in enumerate(zip(chain, given, strict=True))
    ]
    apart = [parted(n, flat) for n, flat in zip(whole, flats, strict=True)]
    step = light(native_step((chain[0],) * len(chain), 0.0))
    return losses(step, [p for p, _ in apart], [r for _, r in apart], [None] * STEPS)[0]


@pytest.mark.parametrize("chain", PAIRS, ids=name)
def test_what_is_missing_extra_or_misshapen_is_an_error_at_every_depth(chain):
    model, state = program(chain), initial(chain)
    model.call_spoiled(
        dict(state), tails(state)["linear1/b" if "linear1/b" in tails(state) else "linear1/bias"], jnp.ones(WIDTH)
    )
    for depth in (1, 2, 3):
        tail, path = next((t, p) for t, p in tails(state).items() if t in (f"linear{depth}/w", f"linear{depth}/kernel"))
        stranger = path.rpartition("/")[0] + "/stranger"
        for spoiled, value, error in (
            (path, None, br.MissingEntryError),
            (path, jnp.ones((7, 7)), br.EntryShapeError),
            (stranger, jnp.ones(2), br.StructureError),
        ):
            with pytest.raises(error, match=tail.rpartition("/")[0] + "/" + spoiled.rpartition("/")[2]):
                model.call_spoiled(dict(state), spoiled, value)


def key_of_guest(host: str, key: jax.Array, number: int) -> jax.Array:
    """Returns the key of which a level's guest has its initial values, as the docstrings of the wrappers say."""
    if host == "haiku":
        keys = hk.PRNGSequence(key)  # The linear layer has the first one.
        return (next(keys), next(keys))[1]
    if host == "linen":
        return LazyRng.create(key, f"guest{number + 1}").as_jax_rng()
    if host == "nnx":
        rngs = nnx.Rngs(key)
        nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.BatchNorm(WIDTH, rngs=rngs)
        return rngs.fork()()
    return jax.random.fold_in(key, zlib.crc32(f"init/core_level/guest{number + 1}".encode()))


@pytest.mark.parametrize("chain", MIXED, ids=name)
def test_initial_values_are_the_native_ones_at_every_depth(chain):
    key, ours = KEY, tails(initial(chain))
    for number in range(3):
        key = key_of_guest(chain[number], key, number)
        native = program(chain[number + 1 :], 0.0, number + 1).init(key)
        for tail, path in tails(native).items():
            if not tail.endswith("_ema/average"):  # Haiku's BatchNorm begins with the averages of the inputs.
                np.testing.assert_array_equal(initial(chain)[ours[tail]], native[path], err_msg=tail)


@pytest.mark.parametrize("chain", MIXED, ids=name)
def test_dropout_draws_the_hosts_keys(chain):
    """Every ordered pair is somewhere in these chains."""
    rate = 0.3
    state = initial(chain, rate)
    natives = [initial((framework,), rate, number) for number, framework in enumerate(chain)]
    given = [values(n) for n in natives]
    ours, theirs = tails(state), [tails(n) for n in natives]
    params, rest = parted(state, placed(state, {tail: v for n in given for tail, v in n.items()}))
    apart = [parted(n, placed(n, g)) for n, g in zip(natives, given, strict=True)]
    native_params, native_rest = [p for p, _ in apart], [r for _, r in apart]
    traces = []

    def step(*args):
        traces.append(1)
        return wrapped_step(chain, rate)(*args)

    keys = [jax.random.key(i) for i in range(STEPS)]
    found, drawn, params, rest = losses(light(step), params, rest, keys)
    wanted, _, native_params, native_rest = losses(light(native_step(chain, rate)), native_params, native_rest, drawn)
    assert len(traces) == 1
    assert len({tuple(map(int, key)) for step in drawn for key in step}) == STEPS * len(chain)  # No key twice.
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    after = {**params, **rest}
    for n, entries in zip(theirs, ({**p, **r} for p, r in zip(native_params, native_rest, strict=True)), strict=True):
        for tail, path in n.items():
            np.testing.assert_allclose(after[ours[tail]], entries[path], rtol=1e-5, atol=1e-6, err_msg=tail)
