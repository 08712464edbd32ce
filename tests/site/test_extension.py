"""The site's own directives: their examples, and that what is shown is what the files hold."""

from __future__ import annotations

import ast
import doctest
import html
import importlib
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
EXTENSIONS = sorted(file.stem for file in (ROOT / "docs" / "_ext").glob("*.py"))


@pytest.fixture
def extension(site, monkeypatch):  # `site`: where the site is built, Sphinx is installed
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    return importlib.import_module


@pytest.mark.parametrize("name", EXTENSIONS)
def test_examples(extension, name):
    assert doctest.testmod(extension(name)).failed == 0


def test_a_region_is_what_stands_between_its_marks(extension, tmp_path):
    guides = extension("guides")
    file = tmp_path / "guide.py"
    file.write_text(
        "x = 1\n# region one\ny = 2\n# endregion\n\n\ndef f():\n    # region two\n    z = 3\n    # endregion\n"
    )
    assert (guides.region(file, "one"), guides.region(file, "two")) == ("y = 2\n", "z = 3\n")
    assert guides.region(file, "tw") is None


def test_words_know_the_columns_that_lack_them(extension):
    columns = {"haiku": ["a = f(x)", "b", "", "c"], "linen": ["a = g(x)", "  b", "d"], "nnx": ["a = f(x)", "c"]}
    found = extension("differences").differing(columns)
    assert found["haiku"] == [
        [("a = ", set()), ("f", {"linen"}), ("(x)", set())],
        [("b", {"nnx"})],
        [],
        [("c", {"linen"})],
    ]
    assert found["linen"][1] == [("  ", set()), ("b", {"nnx"})], "indentation is no difference"
    assert found["linen"][2] == [("d", {"haiku", "nnx"})]


def test_rows_begin_at_what_all_columns_define_in_one_order(extension):
    method, f = "    def {}(self):\n        pass\n", "\ndef f():\n    pass\n"
    columns = {
        "haiku": "import a\n\nclass M:\n"
        + method.format("__init__")
        + method.format("__call__")
        + "\ndef f():\n    pass\n",
        "nnx": "class M:\n    # why\n    @jit\n" + method.format("__call__") + f + f.replace("f()", "g()"),
    }
    rows = extension("differences").rows(columns)
    assert [row[:1] for row in rows["haiku"]] == [["import a"], ["class M:"], ["    def __call__(self):"], ["def f():"]]
    assert [row[:1] for row in rows["nnx"]] == [[], ["class M:"], ["    # why"], ["def f():"]]
    for name, text in columns.items():
        assert "".join(f"{line}\n" for row in rows[name] for line in row) == text, "nothing is lost"
    assert extension("differences").rows({"a": "x = (", "b": "y"}) == {"a": [["x = ("]], "b": [["y"]]}, "no program"


def test_the_site_shows_the_columns_that_the_tests_execute(extension, site):
    guides = extension("guides")
    page = (site / "guides" / "basic.html").read_text("utf-8")
    shown = re.findall(r'data-column="(\w+)".*?<pre>(.*?)</pre>', page, re.DOTALL)
    texts = {(name, html.unescape(re.sub("<.*?>", "", code))) for name, code in shown}
    for name in ("haiku", "linen", "nnx", "core"):
        file = guides.GUIDES / f"in_{name}" / "basic.py"
        for region in re.findall(r"# region (\w+)", file.read_text("utf-8")):
            text = guides.region(file, region)
            assert (name, text) in texts, (name, region)
            ast.parse(text)


def test_a_row_may_say_which_columns_and_in_what_order(site):
    page = (site / "guides" / "incremental.html").read_text("utf-8")
    rows = [re.findall(r'data-column="(\w+)"', row) for row in page.split('<div class="columns ')[1:]]
    assert rows[0] == ["haiku", "nnx"] and ["head", "encoder"] in rows and ["encoder", "nnx", "leaf"] in rows


def test_messages_are_found_with_what_they_say_of_a_case_left_open(site):
    written = (site / "_static" / "messages.js").read_text("utf-8")
    found = json.loads(written.removeprefix("const errorMessages = ").rstrip(";\n"))
    assert any(text.startswith("State was used outside of a running context.") for text in found["ContextError"])
    assert len(found["MappingError"]) > 50 and "…" in found["MappingError"][0]
    for name, text in (
        ("SeedError", "… draws random numbers …, and no seed was given."),  # made by a function that returns it
        ("FieldError", "… has no method …"),  # a function's text
        ("CheckpointError", "… is damaged: a scalar has the shape …."),  # a reason
        ("CheckpointError", "…: an opcode needs a mark that was not set"),  # a constant
        ("MappingError", "[modules] sends both … and … to …"),  # a problem among others
    ):
        assert any(message.startswith(text) for message in found[name]), text
    page = html.unescape(re.sub("<.*?>", "", (site / "errors.html").read_text("utf-8")))
    assert [text for texts in found.values() for text in texts if text not in page] == [], "the page has all of them"
