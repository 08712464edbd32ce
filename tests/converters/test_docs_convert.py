"""docs/convert.md is executed, as one program."""

import pathlib
import re

FILE = pathlib.Path(__file__).parents[2] / "docs" / "convert.md"


def test_the_page_is_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", FILE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 3
    exec(compile("\n".join(blocks), str(FILE.name), "exec"), {"__name__": "page"})
