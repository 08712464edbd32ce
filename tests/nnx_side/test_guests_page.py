"""docs/guests.md is executed."""

import pathlib
import re

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "guests.md").read_text("utf-8")


def test_the_program_runs():
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    exec(compile(program, "docs/guests.md", "exec"), {"__name__": "page"})
