"""Source: an open file from which arrays are mapped or read at their places, and the one error of a damaged file.

Large arrays are views into a memory map of the file, so that nothing is copied on the way into another file; small ones
are read. A map goes with its array, and only a few are alive at a time, because each takes a file handle; who asks for
more arrays before letting go of the first gets copies. The file stays open: one renamed over it later changes nothing.

Invariant: nothing outside of the file's bounds is asked for, whatever the numbers in the file say.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import pathlib
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from bridges.core._errors import BridgeError
from converters._errors import CheckpointError

# Below this many bytes a copy costs less than the page faults of a view.
SMALL = 1 << 17
MAPS = 4  # alive at a time
LARGE = 1 << 20  # bytes of an array from which on its checksum is not taken twice; below, bookkeeping costs as much


@contextlib.contextmanager
def reading(where: Any) -> Iterator[None]:
    """Whatever goes wrong inside, other than an error that already has its text, becomes a `CheckpointError`.

    A reader runs on bytes that anybody may have written: each library raises what it likes on nonsense.

    Args:
      where: The file, and the place in it.
    """
    try:
        yield
    except BridgeError:
        raise
    except OSError as err:
        if err.errno is None:
            raise damaged(where, str(err)) from err
        raise CheckpointError(f"{where} cannot be read: {err.strerror}.") from err
    except MemoryError as err:
        raise CheckpointError(f"{where} cannot be read: there is not enough memory for it.") from err
    except Exception as err:
        raise damaged(where, f"{type(err).__name__}: {err}" if str(err) else type(err).__name__) from err


def damaged(where: Any, reason: str) -> CheckpointError:
    """Returns the error of a file that is not what it claims to be."""
    reason = " ".join(reason.split())[:500].rstrip(".")
    return CheckpointError(f"{where} is damaged: {reason}. Take another copy of the file, or write it again.")


class Place(NamedTuple):
    """Where an array's bytes lie.

    Attributes:
      source: The file.
      at: The position of the first byte.
      size: How many there are.
    """

    source: Source
    at: int
    size: int


class Source:
    """A file, open for reading.

    Args:
      path: Where it is.

    Raises:
      CheckpointError: It cannot be opened.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        with reading(path):
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._handle)
        self.size = os.fstat(self._handle).st_size
        self._maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def bytes(self, at: int, count: int) -> bytes:
        """Returns `count` bytes from the position `at`."""
        self._check(at, count)
        with reading(self.path):
            found = os.pread(self._handle, count, at)
        if len(found) < count:
            raise damaged(self.path, f"it ends at byte {at + len(found):,} where {at + count:,} were expected")
        return found

    def place(self, at: int, shape: tuple[int, ...], dtype: np.dtype) -> Place | None:
        """Returns the place of an array in row-major order; None if it is small, or not little endian."""
        count = math.prod(shape) * dtype.itemsize
        return Place(self, at, count) if count >= LARGE and dtype == dtype.newbyteorder("<") else None

    def array(self, at: int, shape: tuple[int, ...], dtype: np.dtype, fortran: bool = False) -> np.ndarray:
        """Returns the array whose bytes begin at `at`, in the native byte order; it must not be written to.

        Args:
          at: The position of its first byte, of any alignment.
          shape: Its shape.
          dtype: Its dtype in the file, of either byte order.
          fortran: Whether the first axis varies fastest.
        """
        size = math.prod(shape)
        count = size * dtype.itemsize
        self._check(at, count)
        native = dtype.newbyteorder("=")
        order: Any = "F" if fortran else "C"
        with reading(self.path):  # NumPy refuses some shapes of arrays without elements
            if not count:
                return np.empty(shape, native, order)
            found = self._mapped(at, size, dtype) if count >= SMALL and dtype == native else None
            if found is None:
                found = np.empty(size, dtype)
                self.fill(at, found)
                if dtype != native:
                    found = found.byteswap(inplace=True).view(native)
            return found.reshape(shape, order=order)

    def fill(self, at: int, array: np.ndarray) -> None:
        """Reads the bytes from `at` on into a contiguous array of one axis."""
        target = array.view(np.uint8).data
        self._check(at, len(target))
        done = 0
        with reading(self.path):
            while done < len(target):
                count = os.preadv(self._handle, [target[done:]], at + done)
                if not count:
                    raise damaged(self.path, f"it ends at byte {at + done:,} where {at + len(target):,} were expected")
                done += count

    def _mapped(self, at: int, size: int, dtype: np.dtype) -> np.ndarray | None:
        # A map of a file that has become shorter kills the process when it is touched.
        if os.fstat(self._handle).st_size < self.size:
            raise damaged(self.path, "it has become shorter since it was opened")
        if len(self._maps) >= MAPS:
            return None
        skip = at % mmap.ALLOCATIONGRANULARITY
        try:
            count = skip + size * dtype.itemsize
            # All of it is about to be read: one call for all its pages costs a fifth of a fault for every few.
            flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
            found = mmap.mmap(self._handle, count, flags, mmap.PROT_READ, offset=at - skip)
        except OSError:  # a limit on address space or open files: reading needs neither
            return None
        self._maps.add(found)
        return np.frombuffer(found, dtype, size, skip)

    def _check(self, at: int, count: int) -> None:
        if at < 0 or count < 0 or at + count > self.size:
            raise damaged(
                self.path, f"{count:,} bytes from byte {at:,} on are asked for, and it has {self.size:,} bytes"
            )
