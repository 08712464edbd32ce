"""The host's flags in Linen modules: arguments of the call, and layers inside that nobody has told."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridges as br

X = jax.random.normal(jax.random.key(0), (4, 3))
TRAIN, EVAL = {"train": True}, {"train": False}


class Told(nn.Module):
    """Tells its layers itself; its arguments have a default."""

    @nn.compact
    def __call__(self, x, train: bool = False, *, deterministic: bool | None = None):
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dropout(0.5)(x, deterministic=not train if deterministic is None else deterministic)

    @nn.compact
    def other(self, x, is_training):
        return x * (2 if is_training else 1)


class Silent(nn.Module):
    """Says nothing to its layers, so that it needs flags."""

    fixed: bool | None = None

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=self.fixed)(nn.BatchNorm(use_running_average=self.fixed)(x))


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return x * (2 if train else 1)


class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Inner()(x)  # left to its default


def changed(wrapper, flags, *args, **kwargs):
    """Returns whether running statistics moved, and whether anything was dropped."""
    fn = lambda: wrapper(X, *args, **kwargs)  # noqa: E731
    state = br.init(fn)({}, seed=0, flags=flags)
    new, out = br.pure(fn, flags=flags)(state, seed=1)
    stats = new.filter(br.BatchStat)
    return any((value != state[path]).any() for path, value in stats.items()), bool((out == 0).any())


@pytest.mark.parametrize("make", [Told, Silent, lambda: nn.Sequential([nn.BatchNorm(), nn.Dropout(0.5)])])
def test_train_reaches_the_layers(make):
    assert changed(br.FlaxModule(make()), TRAIN) == (True, True)
    assert changed(br.FlaxModule(make()), EVAL) == (False, False)


def test_flags_of_their_own_names_come_first():
    for make in (Told, Silent):
        assert changed(br.FlaxModule(make()), {**TRAIN, "deterministic": True}) == (True, False)
    assert changed(br.FlaxModule(Silent()), {**TRAIN, "use_running_average": True}) == (False, True)
    assert changed(br.FlaxModule(Silent()), {"deterministic": False, "use_running_average": True}) == (False, True)


def test_what_was_passed_or_is_a_field_stays():
    net = br.FlaxModule(Told())
    assert changed(net, TRAIN, False) == changed(net, TRAIN, train=False) == (False, False)
    assert changed(net, TRAIN, deterministic=True) == (True, False)  # train has a flag of its own name
    assert changed(net, {**TRAIN, "deterministic": True}, True) == (True, False)
    assert changed(net, EVAL, True) == (True, True)
    assert changed(br.FlaxModule(Silent(fixed=True)), TRAIN) == (False, False)
    assert changed(br.FlaxModule(Silent(fixed=False)), EVAL) == (True, True)


def test_single_layers():
    for flags, moved in ((TRAIN, True), (EVAL, False)):
        assert changed(br.FlaxModule(nn.BatchNorm), flags)[0] is moved
        assert changed(br.FlaxModule(nn.BatchNorm, use_running_average=moved), flags)[0] is not moved
        assert changed(br.FlaxModule(nn.Dropout, 0.5), flags)[1] is moved
        assert changed(br.FlaxModule(nn.Dropout, 0.5), flags, deterministic=None)[1] is moved
        assert changed(br.FlaxModule(nn.Dropout, 0.5), flags, deterministic=moved)[1] is not moved


def test_a_default_that_a_module_inside_has_was_meant():
    run = br.pure(br.FlaxModule(Outer()))
    np.testing.assert_array_equal(run({}, X, flags=TRAIN)[1], X)


def test_methods_and_functions():
    net = br.FlaxModule(Told())
    for fn in (net.other, lambda x: net(x, method="other"), lambda x: net(x, method=Told.other)):
        np.testing.assert_array_equal(br.pure(fn)({}, X, flags=TRAIN)[1], 2 * X)
        np.testing.assert_array_equal(br.pure(fn)({}, X, flags=EVAL)[1], X)
    with pytest.raises(TypeError, match="is_training"):
        br.pure(net.other)({}, X)


def test_without_flags_nothing_is_told():
    assert changed(br.FlaxModule(Told()), {}) == (False, False)
    with pytest.raises(Exception, match="use_running_average"):
        changed(br.FlaxModule(Silent()), {})


def test_one_wrapper_in_both_modes_learns_both():
    net = br.FlaxModule(Silent())
    state = br.init(net)({}, X, seed=0, flags=EVAL)
    for flags, moves in ((EVAL, False), (TRAIN, True), (EVAL, False), (TRAIN, True)):
        new, out = br.pure(net)(state, X, seed=1, flags=flags)
        assert bool((new["silent/batch_stats/BatchNorm_0/mean"] != 0).any()) is moves
        assert bool((out == 0).any()) is moves


def test_a_block_of_flags_inside():
    net = br.FlaxModule(nn.Dropout(0.5), name="drop")

    def fn(x):
        with br.flags(train=False):
            still = net(x)
        return still, net(x)

    still, dropped = br.pure(fn, flags=TRAIN)({}, X, seed=0)[1]
    assert (still == X).all() and (dropped == 0).any()


def test_no_instance_is_changed():
    module = nn.Dropout(0.5)
    br.pure(br.FlaxModule(module), flags=TRAIN)({}, X, seed=0)
    assert module == nn.Dropout(0.5) and jnp.isfinite(X).all()
