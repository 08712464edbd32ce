"""Sphinx directives that show the migration guides: the same bytes that the tests execute, in columns side by side.

- `{columns} TOPIC REGION [COLUMN …]`: one marked region of `examples/migration/in_<column>/TOPIC.py`, for each column that
  has it, or for those that are named. Every line knows in which other columns of the row it does not occur, so that the
  style sheet marks what differs between those shown.
- `{structures} TOPIC [COLUMN …]`: the variables of each column, one number the same weights, from `structures/TOPIC.json`.
- `{guide} TOPIC REGION`: one region of `examples/migration/TOPIC.py`: plans, conversion, check.
- `{files} TOPIC`: links to the files, whole.

A region that no file has is an error, so that a renamed one cannot leave a page empty.
"""

from __future__ import annotations

import difflib
import html
import json
import pathlib
import re
import textwrap

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

COLUMNS = {
    "ninjax": "Ninjax",
    "haiku": "Haiku",
    "leaf": "Haiku, the head in NNX",
    "whole": "1: Haiku within NNX",
    "head": "2: the head in NNX",
    "encoder": "3: the encoder too",
    "linen": "Linen",
    "nnx": "NNX",
    "core": "core",
}
GUIDES = pathlib.Path(__file__).parents[2] / "examples" / "migration"


def region(file: pathlib.Path, name: str) -> str | None:
    """Returns what stands between `# region NAME` and its `# endregion`, without common indentation, or None."""
    found = re.search(
        rf"^ *# region {re.escape(name)}\n(.*?)^ *# endregion$", file.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return found and textwrap.dedent(found[1]).strip("\n") + "\n"


def differing(columns: dict[str, str]) -> dict[str, list[list[str]]]:
    """Returns, for each line of each column, the other columns that do not have that line at a corresponding place.

    >>> differing({"a": "x = 1\\ny = 2\\n", "b": "x = 1\\ny = 3\\n"})
    {'a': [[], ['b']], 'b': [[], ['a']]}
    """
    lines = {name: text.splitlines() for name, text in columns.items()}
    lacking: dict[str, list[list[str]]] = {name: [[] for _ in found] for name, found in lines.items()}
    for name, mine in lines.items():
        for other, theirs in lines.items():
            kept: set[int] = set()
            texts = [[line.strip() for line in each] for each in (mine, theirs)]
            matcher = difflib.SequenceMatcher(None, *texts, autojunk=False)
            for block in matcher.get_matching_blocks():
                kept.update(range(block.a, block.a + block.size))
            for number, line in enumerate(mine):
                if number not in kept and line.strip():
                    lacking[name][number].append(other)
    return lacking


class columns(nodes.Element, nodes.General):
    """Holds a `column` for each framework."""


class column(nodes.Element, nodes.General):
    """One column: its `name`, the code, the `language`, and for each line the columns that lack it."""


class Columns(SphinxDirective):
    """`{columns} TOPIC REGION [COLUMN …]`."""

    required_arguments = 2
    optional_arguments = len(COLUMNS)

    def run(self) -> list[nodes.Node]:
        topic, name, *named = self.arguments
        found: dict[str, str] = {}
        for key in named or COLUMNS:
            file = GUIDES / f"in_{key}" / f"{topic}.py"
            if file.exists():
                self.env.note_dependency(str(file))
                if text := region(file, name):
                    found[key] = text
        if not found or not set(named) <= set(found):
            lacking = ", ".join(key for key in named or COLUMNS if key not in found)
            raise self.error(f"no region {name!r} in the guide {topic!r} in {lacking}")
        return [_columns(found, "python")]


class Structures(SphinxDirective):
    """`{structures} TOPIC [COLUMN …]`."""

    required_arguments = 1
    optional_arguments = len(COLUMNS)

    def run(self) -> list[nodes.Node]:
        topic, *named = self.arguments
        file = GUIDES / "structures" / f"{topic}.json"
        self.env.note_dependency(str(file))
        lines = json.loads(file.read_text("utf-8"))
        if lacking := [key for key in named if key not in lines]:
            raise self.error(f"the guide {topic!r} has no variables of {', '.join(lacking)}")
        found = {key: "\n".join(lines[key]) + "\n" for key in named or lines}
        return [_columns(found, "python", mark=False)]


class Program(SphinxDirective):
    """`{guide} TOPIC REGION`."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        topic, name = self.arguments
        file = GUIDES / f"{topic}.py"
        self.env.note_dependency(str(file))
        text = region(file, name)
        if text is None:
            raise self.error(f"the guide {topic!r} has no region {name!r}")
        return [nodes.literal_block(text, text, language="python")]


class Files(SphinxDirective):
    """`{files} TOPIC`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        topic = self.arguments[0]
        files = {title: GUIDES / f"in_{key}" / f"{topic}.py" for key, title in COLUMNS.items()}
        files["conversion and check"] = GUIDES / f"{topic}.py"
        line = nodes.paragraph("", "The programs, whole: ", classes=["guide-files"])
        for number, (title, file) in enumerate((title, file) for title, file in files.items() if file.exists()):
            path = "/../" + file.relative_to(GUIDES.parents[1]).as_posix()
            link = addnodes.download_reference("", "", reftarget=path, refdoc=self.env.docname)
            link += nodes.inline("", title)
            line += [nodes.Text(", ")] if number else []
            line += link
        line += [nodes.Text("; run by "), nodes.literal("", f"python examples/migration/{topic}.py"), nodes.Text(".")]
        return [line]


def _columns(found: dict[str, str], language: str, mark: bool = True) -> columns:
    lacking = differing(found) if mark else {}
    node = columns()
    for key, text in found.items():
        node += column(name=key, code=text, language=language, lacking=lacking.get(key))
    return node


def visit_columns(self, node: columns) -> None:
    self.body.append(f'<div class="columns count-{len(node.children)}">\n')


def depart_columns(self, node: columns) -> None:
    self.body.append("</div>\n")


def visit_column(self, node: column) -> None:
    made = self.highlighter.highlight_block(node["code"], node["language"], location=node)
    before, lines, after = re.fullmatch(r"(.*<pre>(?:<span></span>)?)(.*?)\n*(</pre>.*)", made, re.DOTALL).groups()
    lines = lines.split("\n")
    lacking = node["lacking"] or [[] for _ in lines]
    marked = [
        f'<span class="{" ".join(["line", *(f"not-{other}" for other in others)])}">{line}\n</span>'
        for line, others in zip(lines, lacking, strict=True)
    ]
    name = node["name"]
    self.body.append(
        f'<div class="column column-{name}" data-column="{name}"><p class="column-title">{html.escape(COLUMNS[name])}</p>\n'
        f'<div class="highlight-{node["language"]} notranslate">{before}{"".join(marked)}{after}</div>\n'
    )


def depart_column(self, node: column) -> None:
    self.body.append("</div>\n")


def visit_text(self, node: column) -> None:
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, object]:
    app.add_node(columns, html=(visit_columns, depart_columns), text=(visit_text, None))
    app.add_node(column, html=(visit_column, depart_column), text=(visit_text, None))
    for name, directive in (("columns", Columns), ("structures", Structures), ("guide", Program), ("files", Files)):
        app.add_directive(name, directive)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
