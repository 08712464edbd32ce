"""The host's flags in Haiku code: arguments of the call, and layers inside that nobody has told."""

from __future__ import annotations

import haiku as hk
import jax
import numpy as np
import pytest

import bridges as br

X = jax.random.normal(jax.random.key(0), (4, 3))
TRAIN, EVAL = {"train": True}, {"train": False}


def norm():
    return hk.BatchNorm(True, True, 0.9)


def function(x, is_training=False):
    x = norm()(x, is_training)
    return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x


class Class(hk.Module):
    def __call__(self, x, is_training):
        return function(x, is_training)

    def other(self, x, *, training):
        return x * (2 if training else 1)

    @property
    def answer(self):
        return 42


def silent(x):
    return hk.Sequential([hk.Linear(3), norm()])(x)


def moved(wrapper, flags, *args, **kwargs):
    """Returns whether running statistics moved. (Haiku makes them in training only.)"""
    fn = lambda: wrapper(X, *args, **kwargs)  # noqa: E731
    state = br.init(wrapper)(
        {}, X, **({"is_training": True} if kwargs or args or not flags else {}), seed=0, flags=TRAIN
    )
    new, _ = br.pure(fn, flags=flags)(state, seed=1)
    return any((value != state[path]).any() for path, value in new.items())


@pytest.mark.parametrize(
    "part",
    [function, Class, silent, hk.BatchNorm, hk.transform_with_state(function)],
    ids=["function", "class", "silent", "batch_norm", "transformed"],
)
def test_train_reaches_the_layers(part):
    args = {hk.BatchNorm: (True, True, 0.9)}.get(part, ())
    assert moved(br.HaikuModule(part, *args), TRAIN) is True
    assert moved(br.HaikuModule(part, *args), EVAL) is False


def test_what_was_passed_stays():
    for part in (function, Class):
        net = br.HaikuModule(part)
        assert moved(net, TRAIN, False) is moved(net, TRAIN, is_training=False) is False
        assert moved(net, EVAL, True) is moved(net, EVAL, is_training=True) is True
    assert moved(br.HaikuModule(function), {}) is False  # its default


def test_methods_and_properties():
    net = br.HaikuModule(Class)
    np.testing.assert_array_equal(br.pure(net.other)({}, X, flags=TRAIN)[1], 2 * X)
    np.testing.assert_array_equal(br.pure(net.other)({}, X, flags=EVAL)[1], X)
    assert br.pure(lambda: net.answer)({}, flags=TRAIN)[1] == 42
    with pytest.raises(TypeError, match="training"):
        br.pure(net.other)({}, X)


def test_one_wrapper_in_both_modes_learns_both():
    net = br.HaikuModule(silent)
    state = br.init(net)({}, X, seed=0, flags=TRAIN)
    for flags, moves in ((EVAL, False), (TRAIN, True), (EVAL, False), (TRAIN, True)):
        new, _ = br.pure(net)(state, X, flags=flags)
        assert any((new[path] != value).any() for path, value in state.items()) is moves


def test_deterministic_says_nothing_to_a_call_that_takes_is_training():
    """It is about dropout alone; whether statistics move would be a guess."""
    with pytest.raises(TypeError, match="is_training"):
        br.init(br.HaikuModule(Class))({}, X, seed=0, flags={"deterministic": True})


@pytest.mark.parametrize(
    "make", [lambda: br.HaikuModule(hk.BatchNorm, True, True, 0.9), lambda: br.HaikuModule(silent)]
)
def test_use_running_average_decides_for_batch_norm(make):
    assert moved(make(), {**TRAIN, "use_running_average": True}) is False
    assert moved(make(), {**EVAL, "use_running_average": False}) is True
    assert moved(make(), {"use_running_average": True}) is False
