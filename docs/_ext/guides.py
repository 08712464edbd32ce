"""Sphinx directives that show the migration guides: the same bytes that the tests execute, in columns side by side.

- `{columns} TOPIC REGION [COLUMN …]`: one marked region of `examples/migration/in_<column>/TOPIC.py`, for each column that
  has it, or for those that are named. Every word knows which other columns of the row lack it, so that what differs between
  those shown is marked.
- `{structures} TOPIC [COLUMN …]`: the variables of each column, one number the same weights, from `structures/TOPIC.json`.
- `{guide} TOPIC REGION`: one region of `examples/migration/TOPIC.py`: plans, conversion, check.
- `{files} TOPIC`: links to the files, whole.

A region that no file has is an error, so that a renamed one cannot leave a page empty.
"""

from __future__ import annotations

import html
import json
import pathlib
import re
import textwrap

from differences import Piece, differing, rows
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


class columns(nodes.Element, nodes.General):
    """Holds a `column` for each framework."""


class column(nodes.Element, nodes.General):
    """One column: its `name`, `rows` of lines, each line pieces of text with the columns that lack them, and the
    signs behind which a long line `breaks`."""


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
        return [_columns(rows(found))]


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
        return [_columns({key: [[line] for line in lines[key]] for key in named or lines}, "structures")]


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


def _columns(found: dict[str, list[list[str]]], kind: str = "") -> columns:
    """Returns the node of columns, each given as rows of lines; those of a `kind` of their own are not compared."""
    node = columns(kind=kind)
    parts = (
        [differing(dict(zip(found, row, strict=True))) for row in zip(*found.values(), strict=True)] if not kind else []
    )
    for key, lines in found.items():
        plain: list[list[list[Piece]]] = [[[(line, frozenset())] for line in row] for row in lines]
        node += column(
            name=key,
            rows=[row[key] for row in parts] or plain,
            others=[other for other in found if other != key],
            breaks="/]" if kind else "([{/",
        )
    return node


def visit_columns(self, node: columns) -> None:
    count, length = len(node.children), len(node.children[0]["rows"])
    self.body.append(f'<div class="columns count-{count} {node["kind"]}" style="--rows: {length}">\n')


def depart_columns(self, node: columns) -> None:
    self.body.append("</div>\n")


def visit_column(self, node: column) -> None:
    text = "".join("".join(text for text, _ in line) + "\n" for row in node["rows"] for line in row)
    made = self.highlighter.highlight_block(text, "python", opts={"stripnl": False}, location=node)
    before, lines, after = re.fullmatch(r"(.*<pre>)(?:<span></span>)?(.*?)\n?(</pre>.*)", made, re.DOTALL).groups()
    coloured = iter(lines.split("\n"))
    name, others, body = node["name"], node["others"], ""
    for row in node["rows"]:
        body += '<span class="chunk">'
        for pieces in row:
            whole = frozenset.intersection(*[lacking for text, lacking in pieces if text.strip()] or [frozenset()])
            indent = len(pieces[0][0]) - len(pieces[0][0].lstrip()) if pieces else 0
            classes = _lacking("line" if pieces and pieces[0][0] else "line none", whole, others)
            marks = [
                (text, _lacking("word", lacking - whole, others) if lacking - whole else "") for text, lacking in pieces
            ]
            line = _marked(next(coloured), marks, node["breaks"])
            body += f'<span class="{classes}" style="--indent: {indent}">{line}\n</span>'
        body += "</span>"
    self.body.append(
        f'<div class="column column-{name}" data-column="{name}"><p class="column-title">{html.escape(COLUMNS[name])}</p>\n'
        f'<div class="highlight-python notranslate">{before}{body}{after}</div>\n'
    )


def _lacking(kind: str, lacking: frozenset[str], others: list[str]) -> str:
    """Returns the classes of a line or word that some columns lack, in the order of columns."""
    return " ".join([kind, *(f"not-{other}" for other in others if other in lacking)])


def _marked(line: str, marks: list[tuple[str, str]], breaks: str) -> str:
    """Returns a line of HTML with spans around pieces of its text that have classes, inside of the spans it has.

    It may go on below itself behind the signs in `breaks`, as behind a space.

    >>> _marked('<b>f</b>(<i>bc</i>)', [("f(b", ""), ("c", "word"), (")", "")], "(")
    '<b>f</b>(<wbr><i>b<span class="word">c</span></i>)'
    """
    classes = iter([each for text, each in marks for _ in text])
    made, open_ = "", ""
    for tag, sign in re.findall(r"(<[^>]*>)|(&[^;]*;|.)", line):
        wanted = next(classes) if sign else ""
        if wanted != open_:
            made += "</span>" * bool(open_) + (f'<span class="{wanted}">' if wanted else "")
            open_ = wanted
        made += tag or (f"{sign}<wbr>" if sign and sign in breaks else sign)
    return made + "</span>" * bool(open_)


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
