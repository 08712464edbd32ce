"""docs/mapping.md is executed: the Python blocks as one program, the TOML blocks as mappings."""

import dataclasses
import os
import pathlib
import re

import pytest

from bridges.mapping._verdicts import markdown
from bridges.param_mapping import OPS, Mapping, verdicts

FILE = pathlib.Path(__file__).parents[2] / "docs" / "mapping.md"
PAGE = FILE.read_text("utf-8")
WRITE = "BRIDGES_WRITE_DOCS"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_python_examples_run():
    assert len(blocks("python")) >= 5
    exec(compile("\n".join(blocks("python")), "docs/mapping.md", "exec"), {})


@pytest.mark.parametrize("text", blocks("toml"))
def test_the_toml_examples_are_mappings(text):
    mapping = Mapping.loads(text)
    assert Mapping.loads(mapping.dumps()) == mapping


def test_every_op_is_described():
    table = PAGE[PAGE.index("### Ops") : PAGE.index("## Exceptions")]
    rows = {
        name: row
        for row in table.splitlines()
        for name in re.findall(r"`(\w+)`", row.partition(" | ")[0])
        if row[0] == "|"
    }
    for name, op in OPS.items():
        arguments = {field.name for field in dataclasses.fields(op)} - {"part"}  # of which the text says what it is
        assert [argument for argument in arguments if f"`{argument}`" not in rows[name]] == [], name


def test_the_verdicts_are_those_of_the_conventions():
    """The table is made from the conventions, never typed."""
    before, marker, rest = re.split(r"(<!-- verdicts.*?-->\n)", PAGE)
    written, end, after = re.split(r"(<!-- end of verdicts -->)", rest)
    made = f"\n{markdown()}\n"
    if os.environ.get(WRITE):
        FILE.write_text(before + marker + made + end + after, "utf-8")
        written = made
    assert written == made, f"docs/mapping.md is not what the conventions say: {WRITE}=1 pytest {__file__}"


def test_the_table_of_verdicts():
    table = {(v.layer, v.src, v.dst): v.verdict for v in verdicts()}
    assert table["LSTM", "haiku", "linen"] == "exact to rounding"
    assert table["GRUCell", "linen", "nnx"] == "refused"
    assert table["Linear", "haiku", "nnx"] == "exact"
    assert {v.verdict for v in verdicts()} == {"exact", "exact to rounding", "exact for evaluation only", "refused"}
    assert all(v.reason for v in verdicts() if v.verdict != "exact")
