"""infer_mapping on whole models: nothing is ever wrong, and what is mapped whole stays so; near misses get their verdict."""

import pytest

from tests.pairs.near_misses import MISSES
from tests.pairs.outcome import Outcome, Verdict
from tests.pairs.pair import NAMES, Pair
from tests.pairs.table import NEAR, PAGE, PAIRS, rows_in, with_rows

# What CI has time for, each with something that the others have not. `make pairs` runs all.
WHOLE = ("cnn", "equinox_gru", "gat", "mlp", "ppo", "rnn_lm", "sac", "vae")
SLOW = {
    "gelu, exact", "silu for gelu", "silu for relu", "a residual missing", "another base of rotations", "no 1/sqrt(d)",
    "a layer more", "a layer less", "heads from the last to the first",
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_pair(name):
    outcome = Outcome.of(Pair.load(name))
    assert outcome.wrong == ()
    assert outcome.verified, outcome.says
    assert outcome.placed == outcome.leaves


@pytest.mark.parametrize("name", [name for name in MISSES if name not in SLOW])
def test_near_miss(name):
    verdict = Verdict.of(MISSES[name])
    assert verdict.right, f"{verdict.found}: {verdict.says}"


def test_the_page_has_every_pair_and_every_near_miss():
    page = PAGE.read_text("utf-8")
    assert [name for name in NAMES if name not in rows_in(page, PAIRS)] in ([], ["deep_scanned"])
    assert set(rows_in(page, PAIRS)) <= set(NAMES)
    assert tuple(rows_in(page, NEAR)) == tuple(MISSES)
    assert with_rows(page, PAIRS, {}).splitlines()[0] == page.splitlines()[0]


def test_rows_of_what_was_run_replace_those_of_the_same_name():
    page = PAGE.read_text("utf-8")
    new = with_rows(page, PAIRS, {"gpt": "| gpt | a, b | 1 of 2 | 0 | no | 0.1 | nothing |"})
    assert rows_in(new, PAIRS)["gpt"].startswith("| gpt | a, b | 1 of 2 |")
    assert {**rows_in(new, PAIRS), "gpt": ""} == {**rows_in(page, PAIRS), "gpt": ""}
