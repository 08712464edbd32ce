"""docs/mapping.md is executed: the Python blocks as one program, the TOML blocks as mappings."""

import pathlib
import re

import pytest

from bridges.param_mapping import OPS, Mapping

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "mapping.md").read_text("utf-8")


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
    assert [name for name in OPS if f"`{name}`" not in table] == []
