"""Source: the bytes of a pickle, plain or compressed, read in pieces and bounded.

A plain file is opened anew for every piece: no handle stays open, several threads may read, and a file that was changed
or cut in the meantime is an error and not a crash. A compressed one has no places to jump to: it is unpacked once, into
a temporary file that has no name, and refused where it grows beyond a limit.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pathlib
import tempfile
import threading
import weakref
import zlib
from typing import IO, Any

from converters._errors import CheckpointError

_CHUNK = 1 << 18
_IN_MEMORY = 1 << 20  # What unpacks to less stays in memory.
# What a compressed file may unpack to when nobody says: weights hardly shrink, and moments that are all zero go to
# about a thousandth, so that 64 times the file leaves room for any mix of the two.
_RATIO, _FREE = 64, 64 << 20

# First bytes -> what the compression is called.
_COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"]\x00\x00", "lzma"),
    (b"\x78\x01", "zlib"),
    (b"\x78\x5e", "zlib"),
    (b"\x78\x9c", "zlib"),
    (b"\x78\xda", "zlib"),
)
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


class _Zlib:
    """A bare zlib stream (joblib's default compression) with the `read` of the other decompressors."""

    def __init__(self, file: IO[bytes]):
        self._file, self._stream = file, zlib.decompressobj()

    def read(self, size: int) -> bytes:
        while not self._stream.eof:
            piece = self._stream.unconsumed_tail or self._file.read(_CHUNK)
            if not piece:
                raise EOFError("it ends within the compressed stream")
            if out := self._stream.decompress(piece, size):
                return out
        return b""


def compression(head: bytes) -> str | None:
    """Returns the name of the compression whose signature the first bytes are, or None."""
    return next((name for signature, name in _COMPRESSED if head.startswith(signature)), None)


def unpacked(file: IO[bytes], kind: str) -> Any:
    """Returns something with `read(size)` that gives the content of a compressed file."""
    if kind == "gzip":
        return gzip.GzipFile(fileobj=file)
    if kind == "bz2":
        return bz2.BZ2File(file)
    if kind == "zlib":
        return _Zlib(file)
    return lzma.LZMAFile(file)


def head(path: pathlib.Path, size: int) -> bytes:
    """Returns the first bytes of a file, unpacked if it is compressed; what can be had where it is damaged."""
    try:
        with path.open("rb") as file:
            start = file.read(max(size, 6))
            kind = compression(start)
            if kind is None:
                return start[:size]
            file.seek(0)
            return unpacked(file, kind).read(size)
    except _DAMAGED:
        return b""


class Source:
    """The bytes of an opened file.

    Args:
      path: The file.
      max_bytes: What it may unpack to if it is compressed; 64 times its size and 64 MiB if None.

    Attributes:
      path: The file.
      size: The number of bytes, of the unpacked content for a compressed file.

    Raises:
      CheckpointError: It cannot be read, its compressed stream is damaged, or it unpacks to more than is allowed.
    """

    def __init__(self, path: pathlib.Path, max_bytes: int | None = None):
        self.path = path
        self._unpacked: IO[bytes] | None = None
        self._lock = threading.Lock()
        try:
            with path.open("rb") as file:
                self._stamp = _stamp(file)
                self.size = self._stamp[2]
                kind = compression(file.read(6))
                if kind is not None:
                    file.seek(0)
                    self._unpack(file, kind, max_bytes)
        except OSError as err:
            raise CheckpointError(f"{path} cannot be read: {err.strerror or err}.") from err

    def _unpack(self, file: IO[bytes], kind: str, max_bytes: int | None) -> None:
        limit = _RATIO * self.size + _FREE if max_bytes is None else max_bytes
        spool: Any = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        weakref.finalize(self, spool.close)
        stream, size = unpacked(file, kind), 0
        while True:
            try:
                piece = stream.read(_CHUNK)
            except _DAMAGED as err:
                raise CheckpointError(
                    f"{self.path}: its {kind} stream is damaged or cut after {size} unpacked bytes ({err}). Copy it anew."
                ) from err
            if not piece:
                break
            size += len(piece)
            if size > limit:
                raise CheckpointError(
                    f"{self.path} has {self.size} bytes and unpacks to more than {limit}: more than weights do. If it is"
                    " yours and this is right, allow more with max_bytes=…, or unpack it first."
                )
            spool.write(piece)
        self._unpacked, self.size = spool, size

    def error(self, offset: int, text: str) -> CheckpointError:
        """Returns the error of something wrong at a place."""
        unpacked = ", unpacked" if self._unpacked is not None else ""
        return CheckpointError(f"{self.path}, byte {offset}{unpacked}: {text}")

    def open(self) -> IO[bytes]:
        """Returns the content as a file to read once from the start; closing it is the caller's."""
        if self._unpacked is None:
            return self.path.open("rb", buffering=_CHUNK)
        self._unpacked.seek(0)
        return _Kept(self._unpacked)  # type: ignore[return-value]

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fills `view` with the bytes from `offset` on.

        Raises:
          CheckpointError: The file was changed, cut or removed since it was opened.
        """
        if self._unpacked is not None:
            with self._lock:
                self._unpacked.seek(offset)
                _fill(self._unpacked, view)
            return
        try:
            with self.path.open("rb", buffering=0) as file:
                if _stamp(file) != self._stamp:
                    raise CheckpointError(f"{self.path} was changed since it was opened. Open it again.")
                file.seek(offset)
                _fill(file, view)
        except OSError as err:
            raise CheckpointError(f"{self.path} cannot be read any more: {err.strerror or err}.") from err
        except EOFError as err:
            raise CheckpointError(f"{self.path} was cut since it was opened. Open it again.") from err


class _Kept:
    """A file that leaving a `with` block does not close."""

    def __init__(self, file: IO[bytes]):
        self.read, self.seek, self.tell, self.readline = file.read, file.seek, file.tell, file.readline

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _stamp(file: IO[bytes]) -> tuple[int, int, int, int]:
    about = os.fstat(file.fileno())
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def _fill(file: IO[bytes], view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        done += count
