"""docs/errors.md has a section for every class of error, under the anchor that errors name, and its program runs."""

from __future__ import annotations

import importlib
import pathlib
import pkgutil
import re
import traceback

import pytest

import bridges
import converters
from bridges import BridgeError, MappingError

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "errors.md").read_text("utf-8")
SECTIONS = re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def classes():
    for package in (bridges, converters):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found, left = [], [BridgeError]
    while left:
        found.append(left.pop())
        left += found[-1].__subclasses__()
    return {cls for cls in found if cls.__module__.startswith(("bridges.", "converters."))}


def test_every_class_has_a_section(classes):
    named = {cls.__name__ for cls in classes if cls.__name__.endswith("Error") and not cls.__name__.startswith("_")}
    assert named == set(SECTIONS)


def test_sections_say_how_to_mend_it_and_have_the_messages():
    for name, text in zip(SECTIONS, re.split(r"^## \w+$", PAGE, flags=re.MULTILINE)[1:], strict=True):
        assert "**Mend it**" in text, name
        assert f"```{{messages}} {name}\n" in text, name


def test_errors_name_their_section():
    assert MappingError("no").help == "docs/errors.md#mappingerror"
    hidden = type("_Hidden", (MappingError,), {})
    assert hidden("no").help == "docs/errors.md#mappingerror"
    assert "docs/errors.md#mappingerror" in "".join(traceback.format_exception(MappingError("no")))
    assert str(MappingError("no")) == "no"


def test_the_program_runs():
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    exec(compile(program, "docs/errors.md", "exec"), {})
