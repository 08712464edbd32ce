"""Every framework as a guest of every other, three wrappers deep: losses, variables and programs."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import numpy as np
import pytest

import bridges as br
from tests.guests.levels import FRAMEWORKS
from tests.guests.programs import Flat, X, Y, placed, program, tails, values
from tests.hlo import compiled, opcodes

PAIRS = [(host, guest, host, guest) for host, guest in itertools.permutations(FRAMEWORKS, 2)]
MIXED = [
    ("haiku", "linen", "nnx", "core"),
    ("linen", "core", "haiku", "nnx"),
    ("nnx", "haiku", "core", "linen"),
    ("core", "nnx", "linen", "haiku"),
]
STEPS = 20
name = "-".join


@functools.cache
def initial(chain: tuple[str, ...], rate: float = 0.0) -> br.State:
    return program(chain, rate).init(jax.random.key(0))


@functools.cache
def native(framework: str, number: int, rate: float = 0.0) -> tuple[Any, br.State]:
    """Returns a level as a program of its own, with nothing of ours around it, and its variables."""
    level = program((framework,), rate, number)
    return level, level.init(jax.random.key(0))


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
    levels = [native(framework, number, rate)[0] for number, framework in enumerate(chain)]

    def step(params: list[Flat], rest: list[Flat], given: Any) -> Any:
        flat = {(i, p): v for i, part in enumerate(params) for p, v in part.items()}

        def loss(flat: Any, rest: Any) -> Any:
            x, new = X, {}
            for i, level in enumerate(levels):
                entries = {p: v for (j, p), v in {**flat, **rest}.items() if i == j}
                x, _, after = level.apply(entries, x, True, None, given[i] if given else None)
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
    natives = [native(framework, number)[1] for number, framework in enumerate(chain)]
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
