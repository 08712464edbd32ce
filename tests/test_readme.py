"""The README's programs run as they stand, and what it says of the commands is so."""

from __future__ import annotations

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_there_are_three_programs():
    assert len(BLOCKS) == 3


@pytest.mark.smoke
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_program_runs_as_it_stands(number, capsys):
    exec(compile(BLOCKS[number], f"README.md, program {number}", "exec"), {"__name__": "readme"})
    if number == 0:
        assert "4 entries -> 4 entries" in capsys.readouterr().out  # Two layers of a kernel and a bias.


@pytest.mark.parametrize("command", ["demo", "test"])
def test_commands_exist_in_the_makefile(command):
    assert f"make {command}" in README
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_local_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
