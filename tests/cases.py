"""The table of layers: a row a configuration, with its constructor in each framework that has it, and an input.

The rows stand in `tests/layers/`, by family. `tests/test_cases.py` runs properties over the table: plan between every two
of the frameworks, outputs and gradients equal, ten steps of training equal, round trips, golden specs. A row that a
framework lacks is None there. `verdicts` has what `plan.verdict` is for a pair where it is not 'exact'; `refused` a pair's
error text, where the pair has no plan.
"""

from tests.case import Case
from tests.layers.attention import ATTENTION
from tests.layers.convolutions import CONVOLUTIONS
from tests.layers.linear import LINEAR
from tests.layers.norms import NORMS
from tests.layers.recurrent import RECURRENT
from tests.layers.wrappers import WRAPPERS

CASES: dict[str, Case] = {**LINEAR, **CONVOLUTIONS, **NORMS, **ATTENTION, **RECURRENT, **WRAPPERS}
