"""The truth of every pair is proved by running both models with random parameters."""

import pytest

from tests.pairs.pair import NAMES, Pair

# Rounding of sums in another order: a hundred times the precision that the models compute in.
TOLERANCE = {True: 1e-13, False: 1e-5}
PAIRS = [name for name in NAMES if not name.startswith("deep_")]


@pytest.mark.parametrize("name", PAIRS)
def test_truth(name):
    pair = Pair.load(name)
    assert pair.proved(gradients=False)[0] < TOLERANCE[pair.x64]


def test_a_wrong_truth_shows():
    pair = Pair.load("gpt")
    swapped = {"query": "key", "key": "query"}

    def wrong(entries):
        return pair.truth({p: entries["/".join(swapped.get(name, name) for name in p.split("/"))] for p in entries})

    assert pair.proved(gradients=False)[0] < 1e-12
    assert Pair("wrong", "", pair.source, pair.target, pair.inputs, wrong).proved(gradients=False)[0] > 1e-3
