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
            start = max(0, self.tell() - self._waiting)  # after a seek: about there
            os.posix_fadvise(self.fileno(), start, self._waiting, os.POSIX_FADV_DONTNEED)
            self._waiting = 0
        return count


def begin(folder: str | os.PathLike[str], begun: set[str]) -> None:
    """Has the files below a folder sent to the disk, without waiting; once each, their names are added to `begun`."""
    for parent, _, names in os.walk(folder):
        for path in (os.path.join(parent, name) for name in names):
            if path not in begun and hasattr(os, "posix_fadvise"):
                begun.add(path)
                with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:  # one that is renamed just now
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def output(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Gives a file to write to that does not exist yet; on leaving without an error its bytes are on the disk."""
    with io.BufferedWriter(_Eager(path, "xb"), 1 << 18) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
