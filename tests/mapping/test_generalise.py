"""Lines with numbers say exactly what the pairs say."""

import hypothesis
import pytest
from hypothesis import strategies as st

from bridges.mapping._generalise import generalise
from bridges.mapping._template import Template

LINES = {
    "numbers": (
        [(f"net/~/linear_{i}", f"Dense_{i}") for i in range(12)], [("net/~/linear_{i:int}", "Dense_{i:int}")],
    ),
    "automatic names": (
        [(f"net/linear_{i}" if i else "net/linear", f"layers/{i}") for i in range(12)],
        [("net/linear{i:auto}", "layers/{i:int}")],
    ),
    "automatic names above": (
        [(f"net/block_{i}/conv2_d" if i else "net/block/conv2_d", f"b{i}/conv") for i in range(4)],
        [("net/block{i:auto}/conv2_d", "b{i:int}/conv")],
    ),
    "two numbers": (
        [(f"group_{g}/~/block_{b}", f"stages/{g}/{b}") for g in range(3) for b in range(2 + g)],
        [("group_{i:int}/~/block_{j:int}", "stages/{i:int}/{j:int}")],
    ),
    "an offset": ([(f"h{i + 1}", f"h{i}") for i in range(5)], [("h{i+1:int}", "h{i:int}")]),
    "an offset the other way": ([(f"h{i}", f"h{i + 2}") for i in range(5)], [("h{i:int}", "h{i+2:int}")]),
    "a number that stays": (
        [(f"net_2/linear_{i}", f"v1/l{i}") for i in range(3)], [("net_2/linear_{i:int}", "v1/l{i:int}")],
    ),
    "braces": ([(f"a{{{i}", f"b}}{i}") for i in range(2)], [("a{{{i:int}", "b}}{i:int}")]),
    "no rule": ([("a_0", "b_1"), ("a_1", "b_0")], [("a_0", "b_1"), ("a_1", "b_0")]),
    "the root": ([("", "Dense_0")], [("", "Dense_0")]),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_lines(name):
    pairs, lines = LINES[name]
    assert generalise(pairs) == lines


def test_what_is_not_meant_is_not_matched():
    pairs = [("linear_0", "Dense_0"), ("linear_1", "Dense_1")]
    assert generalise(pairs, ["linear_2"]) == pairs
    assert generalise([*pairs, ("linear_2", "out")]) == [*pairs, ("linear_2", "out")]


SEGMENTS = ["a", "a_0", "a_1", "a_2", "b1", "b2", "~", "c{3}", "d_1_2", "01"]
PATHS = st.lists(st.sampled_from(SEGMENTS), max_size=3).map("/".join)


@hypothesis.given(st.dictionaries(PATHS, PATHS, max_size=8))
def test_lines_say_what_the_pairs_say(pairs):
    given = list(pairs.items())
    found = [tuple(map(Template, line)) for line in generalise(given)]
    for path, wanted in given:
        assert [dst.format(values) for src, dst in found if (values := src.match(path)) is not None] == [wanted]


def test_a_line_may_reach_beyond_the_end_of_its_targets():
    pairs = [*((f"linear_{n}", f"fcs/{n}") for n in range(3)), ("linear_3", "out")]
    wanted = [("linear_{i:int}", "fcs/{i:int}"), ("linear_3", "out")]
    assert generalise(pairs, (), ["fcs/0", "fcs/1", "fcs/2", "out"]) == wanted
    assert len(generalise(pairs)) == 4
    assert len(generalise(pairs, (), ["fcs/0", "fcs/1", "fcs/2", "fcs/3", "out"])) == 4
