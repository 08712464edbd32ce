"""Sphinx directives that show the case study: what each step changes, compared and counted from the very files.

- `{changes} STEP`: the differences between a step's folder and the one before it, file by file.
- `{changed-lines}`: a table of all steps: lines that came and went, files touched, lines in all.

A file that came under another name unchanged is said to be that one, and a file that is gone is not shown.
"""

from __future__ import annotations

import dataclasses
import difflib
import pathlib

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "case_study"
STEPS = sorted(folder.name for folder in FOLDER.glob("step*") if (folder / "train.py").exists())


@dataclasses.dataclass(frozen=True)
class Change:
    """What became of one file: its lines before and after, None where there was or is no such file."""

    name: str
    before: list[str] | None
    after: list[str] | None
    was: str | None = None  # the name of the same lines before

    @property
    def diff(self) -> list[str]:
        """The differing lines with some of those around, marked by ' ', '+' and '-'.

        >>> Change("a.py", ["x", "y"], ["x", "z"]).diff
        ['@@ -1,2 +1,2 @@', ' x', '-y', '+z']
        """
        return list(difflib.unified_diff(self.before or [], self.after or [], lineterm=""))[2:]

    @property
    def counts(self) -> tuple[int, int]:
        """How many lines came, and how many went."""
        if self.was:
            return 0, 0
        return sum(line[0] == "+" for line in self.diff), sum(line[0] == "-" for line in self.diff)


def changes(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[Change]:
    """Returns what became of each file, those that nothing happened to left out.

    >>> [(c.name, c.was, c.counts) for c in changes({"a": ["x"], "b": ["y"]}, {"c": ["x"], "a": ["z"], "b": ["y"]})]
    [('a', None, (1, 0)), ('c', 'a', (0, 0))]
    """
    moved = {
        name: next((old for old, lines in before.items() if lines == after[name] and after.get(old) != lines), None)
        for name in after.keys() - before.keys()
    }
    found = []
    for name in sorted(before.keys() | after.keys()):
        old = None if name in moved.values() else before.get(name)
        if old != after.get(name):
            found.append(Change(name, old, after.get(name), moved.get(name)))
    return found


def files(step: str) -> dict[str, list[str]]:
    """Returns the lines of each file of a step."""
    kept = [file for file in (FOLDER / step).iterdir() if file.suffix in (".py", ".toml")]
    return {file.name: file.read_text("utf-8").splitlines() for file in sorted(kept)}


def counted() -> list[tuple[str, ...]]:
    """Returns a row for each step: its name, lines that came, went, files touched, lines in all."""
    rows = []
    for number, step in enumerate(STEPS):
        now = files(step)
        row = ["", "", ""]
        if number:
            made = changes(files(STEPS[number - 1]), now)
            came, went = (sum(change.counts[i] for change in made) for i in (0, 1))
            row = [f"+{came}", f"−{went}", ", ".join(change.name for change in made if not change.was)]
        rows.append((step, *row, str(sum(map(len, now.values())))))
    return rows


class Changes(SphinxDirective):
    """`{changes} STEP`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        step = self.arguments[0]
        if step not in STEPS[1:]:
            raise self.error(f"no step {step!r} with one before it: {', '.join(STEPS)}")
        before = STEPS[STEPS.index(step) - 1]
        for file in [*(FOLDER / step).iterdir(), *(FOLDER / before).iterdir()]:
            if file.is_file():
                self.env.note_dependency(str(file))
        shown: list[nodes.Node] = []
        for change in changes(files(before), files(step)):
            line = nodes.paragraph("", "", nodes.literal("", f"{step}/{change.name}"))
            came, went = change.counts
            if change.was:
                line += nodes.Text(f" is {change.was} of before, unchanged")
            elif change.after is None:
                line += nodes.Text(f" is gone, {went} lines")
            else:
                line += nodes.Text(f": {came} lines, new" if change.before is None else f": +{came} −{went} lines")
            shown.append(line)
            if change.was or change.after is None:
                continue
            language = "diff" if change.before else "toml" if change.name.endswith(".toml") else "python"
            text = "\n".join(change.diff if change.before else change.after)
            shown.append(nodes.literal_block(text, text, language=language))
        return shown


class ChangedLines(SphinxDirective):
    """`{changed-lines}`."""

    def run(self) -> list[nodes.Node]:
        head = ("step", "came", "went", "files touched", "lines in all")
        group = nodes.tgroup(cols=len(head))
        group += [nodes.colspec(colwidth=1) for _ in head]
        group += nodes.thead("", self._row(head))
        group += nodes.tbody("", *map(self._row, counted()))
        return [nodes.table("", group)]

    def _row(self, cells: tuple[str, ...]) -> nodes.row:
        return nodes.row("", *(nodes.entry("", nodes.paragraph("", cell)) for cell in cells))


def setup(app: Sphinx) -> dict[str, object]:
    app.add_directive("changes", Changes)
    app.add_directive("changed-lines", ChangedLines)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
