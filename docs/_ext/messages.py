"""The `{messages} ERROR` directive: every message that the packages raise an error with, read from their sources.

A message is found where an error is made, where a problem is added to those that one error lists, and in the few functions
that make an error of a reason; what it says of the case at hand is `…`. So the page of errors has all of them, as they are,
and the site's search finds an error by its text (`docs/_static/search.js`).
"""

from __future__ import annotations

import ast
import functools
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("bridges", "converters")


# Functions that make an error of a reason: name -> the error, which argument is the reason, and what stands around it.
REASONS = {
    "damaged": ("CheckpointError", 1, "… is damaged: {}. Take another copy of the file, or write it again."),
    "_wrong": ("CheckpointError", -1, "…: {}"),
    "Malformed": ("CheckpointError", 0, "…: {}"),
}
# Files whose `problems` are not those of a mapping.
PROBLEMS = {"_optimizer.py": "StructureError"}


def text_of(node: ast.expr, constants: Mapping[str, str] | None = None) -> str:
    """Returns the string that an expression makes, with `…` for what is not written out.

    Args:
      node: The expression.
      constants: The module's own strings, by name.

    >>> text_of(ast.parse("f'There is no {name}.' + hint(name, names) + _MORE", mode="eval").body, {"_MORE": " Look."})
    'There is no ….… Look.'
    """
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(text_of(value) for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left, constants) + text_of(right, constants)
        case ast.Name(id=name) if constants and name in constants:
            return constants[name]
    return "…"


def _tidy(text: str) -> str:
    return re.sub(r"…(?:[\s….,]*…)+", "…", re.sub(r"\s+", " ", text)).strip()


def errors_in(
    module: ast.Module, nodes: Iterable[ast.AST], file: str, made: Mapping[str, list[str]]
) -> Iterator[tuple[str, str]]:
    """Yields (error class, message) of a module.

    Args:
      module: Its syntax tree.
      nodes: All nodes of it.
      file: Its file name.
      made: Function -> the texts that it returns, for messages that a function makes.
    """
    constants = {
        target.id: text_of(node.value)
        for node in module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in nodes:
        match node:
            case ast.Call(func=ast.Name(id=name), args=[ast.Call(func=ast.Name(id=maker)), *_]) if (
                name.endswith("Error") and maker in made
            ):
                yield from ((name, text) for text in made[maker])
            case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name.endswith("Error"):
                yield name, text_of(first, constants)
            case ast.Call(
                func=ast.Attribute(attr="append", value=ast.Name(id="problems") | ast.Attribute(attr="problems"))
            ):
                yield PROBLEMS.get(file, "MappingError"), text_of(node.args[0], constants)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[_, *_]) if name in REASONS:
                error, place, around = REASONS[name]
                yield error, around.format(text_of(node.args[place], constants))


@functools.cache
def messages() -> dict[str, tuple[str, ...]]:
    """Returns error class -> its messages, in the order of files and lines; those with nothing written out are left out."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    trees = {file: ast.parse(file.read_text("utf-8")) for file in files}
    nodes = {file: list(ast.walk(tree)) for file, tree in trees.items()}
    ours: set[str] = set()
    makers: set[str] = set()
    functions: list[ast.FunctionDef] = []
    for node in (node for found in nodes.values() for node in found):
        match node:
            case ast.ClassDef(name=name) if name.endswith("Error"):
                ours.add(name)
            case ast.FunctionDef():
                functions.append(node)
            case ast.Call(func=ast.Name(id=name), args=[ast.Call(func=ast.Name(id=maker)), *_]) if name.endswith(
                "Error"
            ):
                makers.add(maker)
    made = {
        f.name: [text_of(node.value) for node in ast.walk(f) if isinstance(node, ast.Return) and node.value]
        for f in functions
        if f.name in makers
    }
    found: dict[str, dict[str, None]] = {}
    for file, tree in trees.items():
        for name, text in errors_in(tree, nodes[file], file.name, made):
            if name in ours and len(re.findall(r"\w+", text := _tidy(text))) > 2:
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
    """Writes the messages of errors that have a section to where search.js finds them; only the search loads them."""
    sections = re.findall(r"^## (\w+)$", (pathlib.Path(app.srcdir) / "errors.md").read_text("utf-8"), re.MULTILINE)
    found = {name: texts for name, texts in messages().items() if name in sections}
    file = pathlib.Path(app.outdir) / "_static" / "messages.js"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"const errorMessages = {json.dumps(found, ensure_ascii=False)};\n", "utf-8")


def load_for_search(app: Sphinx, page: str, *_: object) -> None:
    if page == "search":
        app.add_js_file("messages.js")


def setup(app: Sphinx) -> dict[str, object]:
    app.add_directive("messages", Messages)
    app.connect("builder-inited", write_for_search)
    app.connect("html-page-context", load_for_search)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
