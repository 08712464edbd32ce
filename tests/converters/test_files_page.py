"""The programs on the page about files run as they stand, in one go."""

from __future__ import annotations

import pathlib
import re

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "files.md").read_text()


def test_programs_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    for program in re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL):
        exec(compile(program, "docs/files.md", "exec"), names)
