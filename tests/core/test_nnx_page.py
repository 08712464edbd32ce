"""docs/nnx.md is executed, as one program; what its tables call is there."""

import pathlib
import re

import bridges as br

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "nnx.md").read_text("utf-8")


def test_the_programs_run():
    scope = {"__name__": "page"}
    for number, program in enumerate(re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)):
        exec(compile(program, f"docs/nnx.md, program {number}", "exec"), scope)
    assert "restored" in scope


def test_names_exist():
    named = set(re.findall(r"\bbr\.(\w+)", PAGE))
    assert len(named) > 25 and [name for name in named if not hasattr(br, name)] == []
