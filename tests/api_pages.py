"""Makes the pages of docs/api/: every public name of the packages, under the module it is reached by."""

from __future__ import annotations

import ast
import importlib
import inspect
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
# Page -> title, what it is, and the module; the names are found.
PAGES = {
    "core": (
        "The core",
        "Modules with flat state, and JAX's transformations over it: `import bridges as br`.",
        "bridges.core",
    ),
    "haiku": ("Haiku", "`bridges.haiku_adapter`: the verbs, layers as guests, Haiku modules.", "bridges.haiku_adapter"),
    "linen": ("Linen", "`bridges.linen_adapter`: the verbs, layers as guests, Linen modules.", "bridges.linen_adapter"),
    "nnx": ("NNX", "`bridges.nnx_adapter`: the verbs, layers as guests, NNX modules.", "bridges.nnx_adapter"),
    "optax": ("Optax", "`bridges.optax_adapter`: optimizers as parts of a model.", "bridges.optax_adapter"),
    "mapping": ("Mappings", "`bridges.param_mapping`: mappings, plans, conventions.", "bridges.param_mapping"),
    "infer": ("Inference", "`bridges.infer`: the mapping found from the two models themselves.", "bridges.infer"),
    "converters": (
        "Files and proof",
        "`converters`: checkpoint files, their conversion, and its verification.",
        "converters",
    ),
}
ERRORS = "the errors are on a page of their own: [errors](../errors.md)"


def public(module: str) -> list[str]:
    """Returns the public names of a module: what it defines without an underscore, and what it imports as itself."""
    tree = ast.parse(pathlib.Path(importlib.import_module(module).__file__).read_text("utf-8"))
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    names = {alias.name for node in imports for alias in node.names if alias.asname == alias.name}
    names |= {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return sorted((name for name in names if not name.startswith("_")), key=str.lower)


def page(key: str) -> str:
    """Returns the Markdown of one page."""
    title, text, module = PAGES[key]
    reached = "bridges" if module == "bridges.core" else module
    lines = [f"# {title}", "", text, ""]
    errors = False
    for name in public(module):
        value = getattr(importlib.import_module(module), name)
        if inspect.isclass(value) and issubclass(value, Exception):
            errors = True
            continue
        if reached == "bridges" and name not in importlib.import_module("bridges").__all__:
            continue
        if not callable(value):  # a table
            continue
        kind = "autoclass" if inspect.isclass(value) else "autofunction"
        members = ["   :members:"] if kind == "autoclass" else []
        lines += ["```{eval-rst}", f".. {kind}:: {reached}.{name}", *members, "```", ""]
    return "\n".join(lines + ([f"{ERRORS[0].upper()}{ERRORS[1:]}.", ""] if errors else []))
