"""docs/cookbook.md is executed, and its grammar has the keys and the kinds of variables that the language has."""

from __future__ import annotations

import dataclasses
import pathlib
import re

from bridges.mapping import _mapping, _template
from bridges.mapping._hyper import Agree
from bridges.mapping._row import LayerRow
from bridges.mapping._rule import Rule
from bridges.param_mapping import Mapping

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "cookbook.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def grammar():
    """Returns name -> the words in quotes of its production."""
    (text,) = blocks("text")
    rules = re.split(r"^(\w+) +=", text, flags=re.MULTILINE)
    return {name: set(re.findall(r'"([^"]+)"', body)) for name, body in zip(rules[1::2], rules[2::2], strict=True)}


def test_the_examples_run():
    assert len(blocks("python")) >= 12
    exec(compile("\n".join(blocks("python")), "docs/cookbook.md", "exec"), {})


def test_the_toml_is_a_mapping():
    for text in blocks("toml"):
        assert Mapping.loads(Mapping.loads(text).dumps()) == Mapping.loads(text)


def test_the_grammar_has_every_key():
    words = grammar()
    assert words["mapping"] - {"conventions:", "->"} == set(_mapping._KEYS)
    keys = {field.name for field in dataclasses.fields(Rule)}
    assert words["rule"] == keys - {"value", "refuse"} and words["drop"] <= keys  # `value` is of drops and fills
    assert words["layer"] == {field.name for field in dataclasses.fields(LayerRow)}
    assert words["agree"] == {field.name for field in dataclasses.fields(Agree)} - {"name"}


def test_the_grammar_has_every_kind_of_variable():
    words = grammar()
    kinds = {word[1:] for word in words["segment"] | words["variable"] if re.fullmatch(":[a-z]+", word)}
    assert kinds == {*_template._PATTERN, *_template._WIDE} - {"text"}
