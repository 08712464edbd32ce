"""docs/convert.md is executed, as one program."""

import pathlib
import re

import pytest

# For the time being: the two land one after the other.
pytest.importorskip("bridges.mapping._optimizer_plan", reason="states of optimizers as lazy leaves follow")

FILE = pathlib.Path(__file__).parents[2] / "docs" / "convert.md"


def test_the_page_is_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", FILE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 2
    exec(compile("\n".join(blocks), str(FILE.name), "exec"), {"__name__": "page"})
