"""The progress bar: on a terminal, for what takes longer than a second; nowhere else."""

import os
import subprocess
import sys

import pytest

WORK = """
import time
from converters import _progress
_progress.PATIENCE = {patience}
with _progress.Progress("converting", 3_000_000) as progress:
    for _ in range(3):
        progress(1_000_000)
"""


def shown(patience, terminal):
    """What the work writes to its standard error."""
    reader, writer = os.openpty() if terminal else os.pipe()
    done = subprocess.run([sys.executable, "-c", WORK.format(patience=patience)], stderr=writer, stdout=subprocess.PIPE)
    os.set_blocking(reader, False)
    try:
        text = os.read(reader, 100_000).decode()
    except BlockingIOError:
        text = ""
    os.close(reader)
    os.close(writer)
    assert done.returncode == 0 and done.stdout == b""
    return text


def test_on_a_terminal_it_shows_bytes():
    text = shown(0, True)
    assert "converting" in text and "2.00 MB of 3.00 MB" in text and "100%" in text


@pytest.mark.parametrize(("patience", "terminal"), [(60, True), (0, False)])
def test_nothing_for_what_is_quick_or_no_terminal(patience, terminal):
    assert shown(patience, terminal) == ""
