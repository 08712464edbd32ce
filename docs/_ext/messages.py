"""The `{messages} ERROR` directive: every message that the packages raise an error with, read from their sources.

A message is found by the `raise` that has it; what it says of the case at hand is `…`. So the page of errors has all of
them, as they are, and the site's search finds an error by its text (`docs/_static/search.js`).
"""

from __future__ import annotations

import ast
import functools
import json
import pathlib
import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("bridges", "converters")


def text_of(node: ast.expr) -> str:
    """Returns the string that an expression makes, with `…` for what is not written out.

    >>> text_of(ast.parse("f'There is no {name}.' + hint(name, names)", mode="eval").body)
    'There is no ….…'
    """
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(text_of(value) for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left) + text_of(right)
    return "…"


def _tidy(text: str) -> str:
    return re.sub(r"…(?:[\s….,]*…)+", "…", re.sub(r"\s+", " ", text)).strip()


@functools.cache
def messages() -> dict[str, tuple[str, ...]]:
    """Returns error class -> its messages, in the order of files and lines; those with nothing written out are left out."""
    found: dict[str, dict[str, None]] = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                match node:
                    case ast.Raise(exc=ast.Call(func=ast.Name(id=name), args=[first, *_])) if name.endswith("Error"):
                        if len(re.findall(r"\w+", text := _tidy(text_of(first)))) > 2:
                            found.setdefault(name, {})[text] = None
    return {name: tuple(texts) for name, texts in found.items()}


class Messages(SphinxDirective):
    """`{messages} ERROR`: a list."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (name,) = self.arguments
        texts = messages().get(name)
        if not texts:
            raise self.error(f"nothing raises {name} with a message of its own")
        items = (nodes.list_item("", self._shown(text)) for text in texts)
        return [nodes.paragraph("", "Its messages:"), nodes.bullet_list("", *items, classes=["messages"])]

    @staticmethod
    def _shown(text: str) -> nodes.paragraph:
        """Returns a message with its quotes as they are, and what depends on the case set off."""
        shown = nodes.paragraph("", support_smartquotes=False)
        for part in re.split("(…)", text):
            shown += nodes.inline("", part, classes=["of-the-case"]) if part == "…" else nodes.Text(part)
        return shown


def write_for_search(app: Sphinx) -> None:
    """Writes the messages where search.js finds them; only the page of the search loads them."""
    file = pathlib.Path(app.outdir) / "_static" / "messages.js"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"const errorMessages = {json.dumps(messages(), ensure_ascii=False)};\n", "utf-8")


def load_for_search(app: Sphinx, page: str, *_: object) -> None:
    if page == "search":
        app.add_js_file("messages.js")


def setup(app: Sphinx) -> dict[str, object]:
    app.add_directive("messages", Messages)
    app.connect("builder-inited", write_for_search)
    app.connect("html-page-context", load_for_search)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
