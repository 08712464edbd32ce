"""docs/layers.md has every module of Haiku, as the conventions say; `BRIDGES_WRITE_DOCS=1` writes it."""

from __future__ import annotations

import os
import pathlib
import re

from tests.mapping import layers_page

FILE = pathlib.Path(__file__).parents[2] / "docs" / "layers.md"
WRITE = "BRIDGES_WRITE_DOCS"


def test_the_page_is_what_the_conventions_say():
    before, marker, rest = re.split(r"(<!-- layers.*?-->\n)", FILE.read_text("utf-8"))
    written, end, after = re.split(r"(<!-- end of layers -->)", rest)
    made = f"\n{layers_page.tables()}\n"
    if os.environ.get(WRITE):
        FILE.write_text(before + marker + made + end + after, "utf-8")
        written = made
    assert written == made, f"docs/layers.md is not what the conventions say: {WRITE}=1 pytest {__file__}"
    for name in layers_page.modules():
        assert f"| `{name}` |" in made or name in layers_page.ABSTRACT, name
