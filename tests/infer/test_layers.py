"""Every layer of the table of cases: what is found by what it computes is what its convention says, or open; never wrong."""

import numpy as np
import pytest

import bridges as br
from bridges._infer._end import End, taken
from bridges._infer._found import Network
from bridges._infer._solve import solve
from bridges.core._uses import uses
from tests.cases import CASES
from tests.infer.oracle import found_of

# Rows of which not every leaf is found, and why.
PARTIAL = {
    "conv 2-D, mask": "weights under the zeros of a mask move nothing",
    "conv 2-D, mask, in NNX": "the same",
    "conv transposed, mask": "the same",
    "spectral norm": "the two normalise by other steps",
    "vanilla RNN": "two biases at one end are one at the other",
    "vanilla RNN, one bias": "a bias is at one end only",
    "vector quantizer": "the two look for the nearest code in other ways",
    "vector quantizer, averaged": "the same",
    "moving average": "a count goes into the average",
    "attention, narrow values": "values that are padded with zeros are taken for queries until the output differs",
}
SLOW = {
    "LSTM, two"
}  # the search takes many choices back, and is partial; infer_mapping takes the convention's plan, which holds
ROWS = [name for name, case in CASES.items() if len(case.frameworks) > 1 and name not in SLOW]


@pytest.mark.parametrize("name", ROWS)
def test_what_is_found_is_what_the_convention_says(name):
    case = CASES[name]
    src, dst = case.frameworks[:2]
    inputs = taken((case.inputs(),))
    ends = End.of(getattr(case, src), inputs), End.of(getattr(case, dst), inputs)
    found = solve(*(Network(end.run, end.weights, inputs.arrays) for end in ends))
    if (src, dst) in case.refused:
        return  # nothing to compare with; it came to an end
    plan = (case.user_mapping(src, dst) | br.conventions(src, dst)).plan(ends[0].spec, ends[1].spec)
    truth = found_of(plan, ends[0].spec).origins
    rng = np.random.default_rng(0)
    values = {path: rng.normal(size=x.shape) for path, x in ends[0].spec.entries.items()}
    read = uses(ends[1].needed, dict(ends[1].spec.entries), inputs.arrays)
    for path, origin in found.origins.items():
        if path not in read:
            continue  # of what the output does not depend on, the convention knows better, and is asked
        wanted = truth[path].value([values[p] for p in plan.src])
        np.testing.assert_allclose(origin.value([values[p] for p in found.sources]), wanted, atol=1e-6, err_msg=path)
    if name not in PARTIAL:
        assert not [leaf for leaf in found.unplaced if leaf.path in read], (found.unplaced, found.parting)
