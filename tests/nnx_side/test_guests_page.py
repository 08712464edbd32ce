"""docs/guests.md is executed, each program on its own."""

import pathlib
import re

import pytest

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "guests.md").read_text("utf-8")


@pytest.mark.parametrize("program", re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
def test_the_programs_run(program):
    exec(compile(program, "docs/guests.md", "exec"), {"__name__": "page"})
