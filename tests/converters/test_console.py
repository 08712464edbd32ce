"""What the README, the first steps and the page about the command line show of a terminal is what it shows.

A block is ```console; lines that begin with `$ ` are commands, run one after the other in a folder of files by
`tests/wheel/make_files.py`; the lines below them are the output, where a line of `…` stands for any lines.
"""

import pathlib
import re
import shlex

import pytest

from converters import cli
from tests.wheel import make_files

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md", "docs/start.md"])
def test_terminal(page, tmp_path, monkeypatch, capsys):
    make_files.main(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    commands = 0
    for block in re.findall(r"^```console\n(.*?)^```$", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL):
        for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, flags=re.MULTILINE):
            commands += 1
            program, *args = shlex.split(command, comments=True)
            if program == "cat":
                out = pathlib.Path(args[0]).read_text()
            else:
                assert program == "bridges"
                status = cli.main(args)
                captured = capsys.readouterr()
                out = captured.out + captured.err
                if args[0] != "completion":
                    assert status == 0 or "# exit status" in command, out
                if "# exit status" in command:
                    assert command.endswith(f"# exit status {status}")
            pattern = "".join(
                r"(?:.*\n)*?" if line == "…\n" else _line(line) for line in shown.splitlines(keepends=True)
            )
            assert re.fullmatch(pattern, out if out.endswith("\n") or not out else out + "\n"), (
                f"{page}: $ {command}\nshows\n{out}"
            )
    assert commands >= 4


def _line(line: str) -> str:
    """Seconds differ from run to run, and within a line `…` stands for any text."""
    text = re.escape(line.rstrip("\n")).replace("…", ".*")
    return re.sub(r"[0-9]+\\\.[0-9]{2}\\ s\b", r"[0-9]+\\.[0-9]{2}\\ s", text) + r"[ ]*\n"
