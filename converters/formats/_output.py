"""A new file that is on the disk when it is closed, and on its way there while it is written.

The system starts to write only when much has gathered, and waits for all of it at the end. Asked from time to time, it
writes while the next leaf is read and summed, and the end has little left to wait for.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

_STEP = 8 << 20


class _Eager(io.FileIO):
    """A file whose bytes are sent to the disk every few megabytes."""

    _waiting = 0

    def write(self, data: Any) -> int:
        count = super().write(data)
        self._waiting += count
        if self._waiting >= _STEP and hasattr(os, "posix_fadvise"):
            # Of pages that wait to be written, this asks for just that: to begin (mm/fadvise.c of Linux).
            os.posix_fadvise(self.fileno(), self.tell() - self._waiting, self._waiting, os.POSIX_FADV_DONTNEED)
            self._waiting = 0
        return count


@contextlib.contextmanager
def output(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Gives a file to write to that does not exist yet; on leaving without an error its bytes are on the disk."""
    with io.BufferedWriter(_Eager(path, "xb"), 1 << 18) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
