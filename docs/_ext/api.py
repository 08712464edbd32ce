"""The `{api} MODULE` directive: every public name of a module, with its docstring, found when the site is built.

A name is public if the module defines it without an underscore, or imports it as itself (`from … import name as name`).
Errors have a page of their own, and tables have no docstrings: both are left out.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pathlib

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def public(module: str) -> list[str]:
    """Returns the public names of a module, sorted."""
    tree = ast.parse(pathlib.Path(str(importlib.import_module(module).__file__)).read_text("utf-8"))
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    names = {alias.name for node in imports for alias in node.names if alias.asname == alias.name}
    names |= {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return sorted((name for name in names if not name.startswith("_")), key=str.lower)


class Api(SphinxDirective):
    """`{api} MODULE`, or `{api} bridges.core`, whose names are those of `bridges`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (module,) = self.arguments
        shown = "bridges" if module == "bridges.core" else module
        lines: list[str] = []
        for name in public(module):
            value = getattr(importlib.import_module(module), name)
            hidden = shown == "bridges" and name not in importlib.import_module("bridges").__all__
            if hidden or not callable(value) or (inspect.isclass(value) and issubclass(value, Exception)):
                continue
            options = ["   :members:"] if inspect.isclass(value) else []
            kind = "autoclass" if inspect.isclass(value) else "autofunction"
            lines += ["```{eval-rst}", f".. {kind}:: {shown}.{name}", *options, "```", ""]
        self.env.note_dependency(str(importlib.import_module(module).__file__))
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict[str, object]:
    app.add_directive("api", Api)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
