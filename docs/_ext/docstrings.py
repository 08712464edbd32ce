"""Lets the project's docstrings, which are plain text with `code` in backticks, pass as reStructuredText.

What they mean stays; only characters that reStructuredText would take for markup are escaped.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx


def escape(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    after_returns = False
    for number, line in enumerate(lines):
        if after_returns:  # a colon in it does not end a type; one at its beginning says that there is none
            indent = len(line) - len(line.lstrip())
            line = lines[number] = f"{line[:indent]}: {line[indent:]}"
        after_returns = line.strip() == "Returns:"
        if not line.lstrip().startswith(">>>"):
            code = re.split(r"(`[^`]*`)", line)
            code[::2] = [
                re.sub(r"\*+(?=\w)", lambda stars: "".join(rf"\{star}" for star in stars[0]), text)
                for text in code[::2]
            ]
            lines[number] = re.sub(r"(`[^`]*`)(?=\w)", r"\1\\ ", "".join(code))


def setup(app: Sphinx) -> dict[str, object]:
    app.connect("autodoc-process-docstring", escape, priority=100)  # before napoleon
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
