"""The conventions' own plan, where the search ends early: taken if the outputs agree, and only then."""

from __future__ import annotations

import haiku as hk
import numpy as np
import pytest
from flax import linen as nn

import bridges as br
from bridges._infer._end import End, taken
from bridges._infer._found import STRUCTURE, VALUES, Evidence, Found, Origin, Parting, Unplaced
from bridges._infer._planned import origins_of, planned
from tests.cases import CASES
from tests.infer.oracle import found_of


def ends_of(name):
    case = CASES[name]
    inputs = taken((case.inputs(),))
    return [End.of(getattr(case, framework), inputs) for framework in ("haiku", "linen")]


def nothing(src, dst):
    open_ = tuple(Unplaced(p, "open") for p in dst.weights)
    names = tuple(sorted(src.weights))
    return Found(names, {}, open_, names, Parting("", "there", "stopped"), float("inf"), {})


@pytest.mark.parametrize("name", ["linear", "LSTM", "attention", "batch norm"])
def test_a_plan_element_by_element_is_what_the_plan_does(name):
    src, dst = ends_of(name)
    plan = br.conventions("haiku", "linen").plan(src.spec, dst.spec)
    names = tuple(sorted(src.weights))
    values = [np.random.default_rng(0).normal(size=src.weights[p].shape) for p in names]
    found = origins_of(plan, src.spec, names, dst.weights)
    truth = found_of(plan, src.spec)
    given = dict(zip(names, values, strict=True))
    every = [given.get(p, np.zeros(src.spec.entries[p].shape)) for p in truth.sources]
    for path in dst.weights:
        assert np.allclose(found[path].value(values), truth.origins[path].value(every))


def test_a_plan_that_the_outputs_contradict_is_not_taken():
    src, dst = ends_of("attention")
    found = nothing(src, dst)
    assert planned(found, src.spec, dst.spec, dst.weights, lambda whole: False) is found
    whole = planned(found, src.spec, dst.spec, dst.weights, lambda whole: True)
    assert not whole.unplaced and not whole.unused and whole.parting is None
    assert {origin.evidence.kind for origin in whole.origins.values()} == {STRUCTURE}


def test_what_the_search_has_found_keeps_its_evidence():
    src, dst = ends_of("attention")
    whole = planned(nothing(src, dst), src.spec, dst.spec, dst.weights, lambda whole: True)
    path = "params/query/kernel"
    known = whole.origins[path]
    why = Evidence(VALUES, "there", "here")
    mine = Origin(known.source, known.element, known.scale, known.shift, why)
    found = Found(whole.sources, {path: mine}, (), (), None, 0.0, {})
    after = planned(found, src.spec, dst.spec, dst.weights, lambda whole: True)
    assert after.origins[path].evidence == why
    other = Origin(known.source, known.element[::-1], known.scale, known.shift, why)
    found = Found(whole.sources, {path: other}, (), (), None, 0.0, {})
    after = planned(found, src.spec, dst.spec, dst.weights, lambda whole: True)
    assert after.origins[path].evidence.kind == STRUCTURE  # the outputs hold for the plan's, not for this


def test_a_plan_that_refuses_is_none():
    inputs = taken((np.ones((2, 6), np.float32),))
    src, dst = End.of(lambda x: hk.LayerNorm(-1, True, True)(x), inputs), End.of(nn.LayerNorm(epsilon=1e-3), inputs)
    found = nothing(src, dst)
    assert planned(found, src.spec, dst.spec, dst.weights, lambda whole: True) is found


def test_values_that_are_padded_with_zeros():
    """The search takes the queries for the values, which are narrower; the convention knows of the padding."""
    case = CASES["attention, narrow values"]
    mapping = br.infer_mapping(case.haiku, case.linen, case.inputs())
    assert mapping.complete and mapping.verified.outputs < 1e-9
    assert "by its layer's convention" in str(mapping.to_dict())
