"""Damaged files for every reader: strategies of damage, and the one thing that must come of them."""

from __future__ import annotations

import pathlib
import tempfile
from types import ModuleType
from typing import Any

from hypothesis import strategies as st

from bridges.core._errors import UnsupportedError
from converters import CheckpointError


def outcome(module: ModuleType, content: bytes, name: str = "file") -> Any:
    """Returns what a reader makes of a file's bytes: the loaded tree, or the text of its one error.

    Anything else that is raised fails the test that called.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / name
        path.write_bytes(content)
        module.recognises(path)
        try:
            return module.read(path).load()
        except (CheckpointError, UnsupportedError) as err:
            assert str(path) in str(err)
            assert 20 < len(str(err)) < 3000
            return str(err)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes of a valid file, damaged: cut off, bits flipped, bytes put in, taken out or written over."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        kind = draw(st.sampled_from(["cut", "flip", "flip", "byte", "insert", "remove", "overwrite"]))
        if kind == "cut":
            del found[at:]
        elif kind == "flip" and found:
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and found:
            found[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0xC1, 0xDF, 0xDD, 0xC9]))
        elif kind == "insert":
            found[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "remove":
            del found[at : at + draw(st.integers(1, 9))]
        else:
            new = draw(st.binary(min_size=1, max_size=9))
            found[at : at + len(new)] = new
    return bytes(found)
