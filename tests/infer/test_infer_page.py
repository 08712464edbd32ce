"""docs/infer.md is executed: the Python blocks as one program."""

import pathlib
import re

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "infer.md").read_text("utf-8")


def test_the_python_examples_run():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    exec(compile("\n".join(blocks), "docs/infer.md", "exec"), {"__name__": "page"})
