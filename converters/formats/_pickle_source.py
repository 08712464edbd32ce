"""Source: the bytes of a pickle, plain or compressed, read in pieces and bounded.

A plain file's arrays are mapped, as those of the other formats are (`_source`). A compressed one has no places to jump to:
it is unpacked once, into a temporary file that has no name, and refused where it grows beyond a limit.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pathlib
import tempfile
import threading
import weakref
import zlib
from typing import IO, Any, Protocol

import numpy as np

from converters._errors import CheckpointError
from converters.formats import _source

_CHUNK = 1 << 18
_IN_MEMORY = 1 << 20  # What unpacks to less stays in memory.
# What a compressed file may unpack to when nobody says: weights hardly shrink, and moments that are all zero go to
# about a thousandth, so that 64 times the file leaves room for any mix of the two.
_RATIO, _FREE = 64, 64 << 20
_DICTIONARY = 128 << 20  # `xz -9` needs 65 MiB.

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


class _Lzma:
    """An xz or lzma file, also of several streams, which cannot ask for more memory than the strongest preset does."""

    def __init__(self, file: IO[bytes]):
        self._file, self._stream = file, lzma.LZMADecompressor(memlimit=_DICTIONARY)

    def read(self, size: int) -> bytes:
        while True:
            piece = b""
            if self._stream.eof:  # Streams may be padded with zeros.
                piece = self._stream.unused_data.lstrip(b"\0") or self._file.read(_CHUNK).lstrip(b"\0")
                if not piece:
                    return b""
                self._stream = lzma.LZMADecompressor(memlimit=_DICTIONARY)
            elif self._stream.needs_input:
                piece = self._file.read(_CHUNK)
                if not piece:
                    raise EOFError("it ends within the compressed stream")
            if out := self._stream.decompress(piece, size):
                return out


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
    return _Lzma(file)


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


def opened(path: pathlib.Path, max_bytes: int | None = None) -> Source:
    """Returns the bytes of a file.

    Args:
      path: The file.
      max_bytes: What it may unpack to if it is compressed; 64 times its size and 64 MiB if None.

    Raises:
      CheckpointError: It cannot be read, its compressed stream is damaged, or it unpacks to more than is allowed.
    """
    plain = Plain(path)
    kind = compression(plain.bytes(0, min(6, plain.size)))
    return plain if kind is None else Unpacked(plain, kind, max_bytes)


class Source(Protocol):
    """The bytes of an opened file.

    Attributes:
      path: The file.
      size: The number of bytes, of the unpacked content for a compressed file.
    """

    path: pathlib.Path
    size: int

    def open(self) -> IO[bytes]:
        """Returns the content as a file to go through once, before any array is asked for."""

    def array(self, at: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Returns the array whose bytes begin at `at`; it must not be written to.

        Raises:
          CheckpointError: The file was changed since it was opened, or cannot be read.
        """

    def place(self, at: int, shape: tuple[int, ...], dtype: np.dtype) -> _source.Place | None:
        """Returns the place of an array in the file; None if it is not to be found there."""


def error(source: Source, offset: int, text: str) -> CheckpointError:
    """Returns the error of something wrong at a place."""
    unpacked = ", unpacked" if isinstance(source, Unpacked) else ""
    return CheckpointError(f"{source.path}, byte {offset}{unpacked}: {text}")


class Plain(_source.Source):
    """A file that is not compressed: its arrays are mapped, and refused where it has changed in the meantime."""

    def __init__(self, path: pathlib.Path):
        super().__init__(path)
        self._stamp = self._now()

    def _now(self) -> tuple[int, int]:
        about = os.fstat(self._handle)
        return about.st_size, about.st_mtime_ns

    def open(self) -> IO[bytes]:
        return io.BufferedReader(io.FileIO(self._handle, closefd=False), _CHUNK)

    def array(self, at: int, shape: tuple[int, ...], dtype: np.dtype, fortran: bool = False) -> np.ndarray:
        if self._now() != self._stamp:
            raise CheckpointError(f"{self.path} was changed since it was opened. Open it again.")
        return super().array(at, shape, dtype, fortran)


class Unpacked:
    """A compressed file, unpacked into a temporary one that goes with this object."""

    def __init__(self, packed: Plain, kind: str, max_bytes: int | None):
        self.path, self.size = packed.path, 0
        self._lock = threading.Lock()
        self._file: Any = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        limit = _RATIO * packed.size + _FREE if max_bytes is None else max_bytes
        with packed.open() as file:
            stream = unpacked(file, kind)
            while piece := self._piece(stream, kind):
                self.size += len(piece)
                if self.size > limit:
                    raise CheckpointError(
                        f"{self.path} has {packed.size} bytes and unpacks to more than {limit}: more than weights do. If"
                        " it is yours and this is right, allow more with max_bytes=…, or unpack it first."
                    )
                with _source.reading(f"{self.path}, unpacked into a temporary file,"):
                    self._file.write(piece)

    def _piece(self, stream: Any, kind: str) -> bytes:
        try:
            return stream.read(_CHUNK)
        except _DAMAGED as err:
            raise CheckpointError(
                f"{self.path}: its {kind} stream is damaged or cut after {self.size} unpacked bytes ({err}). Copy it anew."
            ) from err

    def open(self) -> IO[bytes]:
        self._file.seek(0)
        return _Kept(self._file)  # type: ignore[return-value]

    def place(self, at: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        return None

    def array(self, at: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        found = np.empty(shape, dtype)
        view, done = found.reshape(-1).view(np.uint8).data, 0
        with self._lock:
            self._file.seek(at)
            while done < len(view):
                count = self._file.readinto(view[done:])
                assert count, "what was unpacked is there"
                done += count
        return found


class _Kept:
    """A file that leaving a `with` block does not close."""

    def __init__(self, file: IO[bytes]):
        self.read, self.seek, self.tell, self.readline = file.read, file.seek, file.tell, file.readline

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *error: object) -> None:
        pass
