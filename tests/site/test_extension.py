"""The site's own directives: their examples, and that what is shown is what the files hold."""

from __future__ import annotations

import ast
import doctest
import html
import importlib
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


def test_lines_know_the_columns_that_lack_them(extension):
    columns = {"haiku": "a\nb\n\nc\n", "linen": "a\n  b\nd\n", "nnx": "a\nc\n"}
    assert extension("guides").differing(columns)["haiku"] == [[], ["nnx"], [], ["linen"]]


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


def test_a_row_may_say_which_columns_and_in_what_order(extension, site):
    page = (site / "guides" / "incremental.html").read_text("utf-8")
    rows = [re.findall(r'data-column="(\w+)"', row) for row in page.split('<div class="columns ')[1:]]
    assert rows[0] == ["haiku", "nnx"] and ["head", "encoder"] in rows and ["encoder", "nnx", "leaf"] in rows
    shown = {name for row in rows for name in row}
    css = (site / "_static" / "columns.css").read_text("utf-8")
    assert all(
        f'body[data-columns~="{name}"] .line.not-{name}' in css for name in shown | set(extension("guides").COLUMNS)
    )


def test_messages_are_found_with_what_they_say_of_a_case_left_open(extension):
    found = extension("messages").messages()
    assert any(text.startswith("State was used outside of a running context.") for text in found["ContextError"])
    assert len(found["MappingError"]) > 50 and "…" in found["MappingError"][0]
