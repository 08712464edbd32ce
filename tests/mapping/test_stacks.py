"""Stacks: scanned, layer-stacked and vmapped modules against one another and against unrolled ones."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bridges import State
from bridges.core._kind import RngState, Variable, kind_type
from bridges.core._spec import Spec, Stack
from bridges.param_mapping import Mapping, Plan, conventions
from tests.cases import CASES
from tests.light import light
from tests.mapping import stacks
from tests.mapping.stacks import X, randomised
from tests.test_cases import spec_of

PAIRS = list(itertools.permutations(stacks.FORMS, 2))
form = functools.cache(lambda name: stacks.FORMS[name]())


@functools.cache
def plan_between(src, dst):
    return conventions(form(src).framework, form(dst).framework).plan(form(src).spec, form(dst).spec)


def params_of(state):
    return State({path: x for path, x in state.items() if path.startswith("params/")})


@functools.cache
def loss_and_gradient(name):
    run = form(name).run
    return light(jax.value_and_grad(lambda params, rest: (run({**rest, **params}, X) ** 2).sum()))


# Without a large eps, Adam turns the rounding noise of gradients that are zero (the bias of attention's keys) into steps.
ADAM = optax.adam(1e-2, eps=1e-2)


@functools.cache
def ten_steps(name):
    gradient, update = loss_and_gradient(name), light(ADAM.update)

    def run(params, rest, opt_state):
        for _ in range(10):
            updates, opt_state = update(gradient(params, rest)[1], opt_state, params)
            params = optax.apply_updates(params, updates)
        return params

    return run


def close(a, b, path=""):
    # Unlike programs sum in another order; after ten steps of a net of three blocks that is 1e-5 of the largest.
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=path)


@pytest.mark.parametrize(("src", "dst"), PAIRS, ids=[" to ".join(pair) for pair in PAIRS])
def test_every_two_forms_are_joined_without_a_word(src, dst):
    plan = plan_between(src, dst)
    state = randomised(form(src).spec, 1)
    new = plan.forward(state)
    assert {p: x.shape for p, x in new.items()} == {
        p: x.shape for p, x in form(dst).spec.entries.items() if p in plan.dst
    }
    losing = form(src).framework == "haiku" != form(dst).framework
    assert plan.verdict == ("exact for evaluation only" if losing else "exact")
    back = plan.inverse(new)
    kept = [p for p in state if not (losing and p.rpartition("/")[2] in ("hidden", "counter"))]
    assert all(np.array_equal(back[p], state[p]) and back[p].dtype == state[p].dtype for p in kept)
    assert Plan.from_json(plan.to_json()) == plan

    params = params_of(state)
    rest = {p: x for p, x in state.items() if p not in params}
    new_params = params_of(new)
    new_rest = {p: x for p, x in new.items() if p not in new_params}
    (loss, wanted), (other, gradient) = (
        loss_and_gradient(src)(params, rest),
        loss_and_gradient(dst)(new_params, new_rest),
    )
    np.testing.assert_allclose(loss, other, rtol=1e-5)
    _, pull = jax.vjp(lambda params: params_of(plan.forward({**rest, **params})), params)
    (pulled,) = pull(gradient)
    scale = max(float(jnp.abs(x).max()) for x in wanted.values())
    for path in params:
        np.testing.assert_allclose(pulled[path], wanted[path], atol=1e-5 * scale, rtol=1e-4, err_msg=path)

    opt_state = ADAM.init(params)
    moments = params_of(randomised(form(src).spec, 2))
    opt_state = (
        opt_state[0]._replace(count=np.int32(5), mu=moments, nu={p: x**2 for p, x in moments.items()}),
        *opt_state[1:],
    )
    opt_state = (opt_state[0]._replace(nu=State(opt_state[0].nu)), *opt_state[1:])
    new_opt_state = plan.optimizer(opt_state, params, new_params)
    ours = plan.forward({**rest, **ten_steps(src)(params, rest, opt_state)})
    theirs = ten_steps(dst)(new_params, new_rest, new_opt_state)
    for path in theirs:
        close(ours[path], theirs[path], path)


# Every layer in a stack ------------------------------------------------------------------------------------------------


def in_a_stack(spec, size, axis):
    """The spec of `size` copies of the model, along `axis` of every entry that has it."""
    axes = {collection: axis for collection in {path.partition("/")[0] for path in spec.entries}}
    entries = {}
    for path, x in spec.entries.items():
        at = axis % (len(x.shape) + 1)
        entries[path] = jax.ShapeDtypeStruct((*x.shape[:at], size, *x.shape[at:]), x.dtype)
    random = {p for p, x in spec.entries.items() if issubclass(kind_type(spec.entries.kind(p) or Variable), RngState)}
    entries.update({path: spec.entries[path] for path in random})
    return dataclasses.replace(spec, entries=State(entries, spec.entries.declared), stacks={"": (Stack(size, axes),)})


LAYER_PAIRS = [
    (name, *pair)
    for name, case in CASES.items()
    for pair in itertools.pairwise([*case.frameworks, case.frameworks[0]])
    # What is said by rules is said of entries, not of copies in them.
    if pair not in case.refused and pair[0] != pair[1] and not case.mapping.keys() & {pair, pair[::-1]}
]


@pytest.mark.parametrize(("name", "src", "dst"), LAYER_PAIRS, ids=[f"{n}: {s} to {d}" for n, s, d in LAYER_PAIRS])
def test_every_layer_in_a_stack_is_converted_as_each_of_its_copies(name, src, dst):
    modules = dict(zip(CASES[name].own.get(src, ()), CASES[name].own.get(dst, ()), strict=True))
    mapping = Mapping.of(modules=modules) | conventions(src, dst)
    single = mapping.plan(spec_of(name, src), spec_of(name, dst))
    if modules:
        index = {f"[{{copy:int}}]/{s}".rstrip("/"): f"[{{copy:int}}]/{d}".rstrip("/") for s, d in modules.items()}
        mapping = Mapping.of(modules=index) | conventions(src, dst)
    plan = mapping.plan(in_a_stack(spec_of(name, src), 3, 0), in_a_stack(spec_of(name, dst), 3, -1))
    assert plan.verdict == single.verdict
    state = randomised(Spec(plan.src), 3)
    new = plan.forward(state)
    for i in range(3):
        copy = single.forward({path: x[i] for path, x in state.items()})
        for path, x in copy.items():
            assert np.array_equal(new[path][..., i], x), path
    if plan.verdict == "exact":
        back = plan.inverse(new)
        assert all(np.array_equal(back[path], x) for path, x in state.items())
