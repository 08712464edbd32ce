"""Templates: reading is the exact inverse of writing, whole paths only, and nothing can be read in two ways."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridges.core._errors import MappingError
from bridges.mapping._template import Index, Template

names = st.text(string.ascii_lowercase + string.digits + "_~%.", min_size=1, max_size=6)
numbers = st.integers(0, 10**12)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
SHAPES = {
    "params/{m}/w": {"m": names},
    "params/{m:path}/w": {"m": paths},
    "params/{m:module}/w": {"m": paths | st.just("")},
    "{m:path}": {"m": paths},
    "layer_{i:int}": {"i": numbers},
    "layer_{i+1:int}/x": {"i": numbers},
    "net/linear{i:auto}": {"i": numbers},
    "net/linear{i+2:auto}/b": {"i": numbers},
    "{m}_{i:int}/{m}": {"m": names, "i": numbers},
    "a{i:int}_{j:int}/{p:path}/{m}x{k:auto}": {
        **{"i": numbers, "j": numbers, "k": numbers},
        **{"p": paths, "m": names},
    },
    "{{m}}/{m}": {"m": names},
}


@given(st.data(), st.sampled_from(sorted(SHAPES)))
def test_match_is_the_inverse_of_format(data, text):
    template = Template(text)
    values = {name: data.draw(strategy, name) for name, strategy in SHAPES[text].items()}
    path = template.format(values)
    assert template.match(path) == values
    assert template.format(template.match(path)) == path


@given(paths, st.sampled_from(sorted(SHAPES)))
def test_what_matches_is_written_back_as_it_was(path, text):
    found = Template(text).match(path)
    assert found is None or Template(text).format(found) == path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("params/{m}/w", "params/a/b/w"),
        ("params/{m}/w", "xparams/a/w"),
        ("params/{m}/w", "params/a/wx"),
        ("params/{m:path}/w", "params/w"),
        ("layer_{i:int}", "layer_01"),
        ("layer_{i:int}", "layer_"),
        ("layer_{i:int}", "layer_1x"),
        ("layer_{i:int}", "layer_-1"),
        ("layer_{i:int}", "layer_١"),  # a digit, but not one that is written back
        ("layer_{i+1:int}", "layer_0"),
        ("linear{i:auto}", "linear_0"),
        ("linear{i:auto}", "linear_01"),
        ("{m}/{m}", "a/b"),
        ("a.c", "abc"),
    ],
)
def test_no_match(text, path):
    assert Template(text).match(path) is None


@pytest.mark.parametrize(
    "text",
    [
        *("{a}{b}", "{a}_{b}", "{a}{i:int}", "{i:int}{j:int}", "{a}1{i:auto}", "{i:auto}x", "{a:path}/{b:path}"),
        *("x{a:path}", "{a:path}y", "a//b", "/a", "a/", "{", "a}", "{a:nope}", "{a+1}", "{i:int}/{i}", "{1a}"),
        *("{a:module}/x/{b:path}", "{i:int}0{j:int}", "{}"),
    ],
)
def test_a_template_that_reads_two_ways_is_an_error(text):
    with pytest.raises(MappingError, match="Template"):
        Template(text)


@pytest.mark.parametrize("values", [{"i": -1}, {"i": "1"}, {"i": True}, {}])
def test_values_that_cannot_be_written(values):
    with pytest.raises(MappingError):
        Template("layer_{i:int}").format(values)


def test_text_cannot_hold_a_separator():
    with pytest.raises(MappingError, match="cannot stand"):
        Template("a/{m}").format({"m": "b/c"})


@given(st.lists(st.sampled_from(sorted(SHAPES)), unique=True), paths)
def test_the_index_finds_what_trying_each_template_finds(texts, path):
    index = Index()
    for text in texts:
        index.add(Template(text), text)
    found = {text: values for text, values in index.match(path)}
    assert found == {t: v for t in texts if (v := Template(t).match(path)) is not None}
