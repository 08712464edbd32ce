"""docs/start.md: the models that it shows are those that its commands run on, and what they wrote is loaded as it says."""

from __future__ import annotations

import ast
import importlib
import pathlib
import re
import sys

import pytest

from converters import cli
from tests.wheel import make_files

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "start.md").read_text("utf-8")
OLD, NEW, LOAD = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def statements(program):
    """Returns what a program says, without its layout."""
    return [ast.dump(statement) for statement in ast.parse(program).body]


def test_the_models_are_those_of_the_files():
    assert statements(OLD) == statements(make_files.OLD)
    imports, net, model = statements(NEW)
    assert imports in statements(make_files.NEW) and net in statements(make_files.NEW) and "id='Net'" in model


def test_what_was_converted_is_loaded(tmp_path, monkeypatch):
    make_files.main(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = next(line for line in PAGE.splitlines() if line.startswith("$ bridges convert"))
    args = [word.strip("'") for word in command.split()[2:]]
    assert cli.main(args) == 0
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "new", raising=False)
        exec(compile(LOAD, "docs/start.md", "exec"), {})
