"""The heads of msgpack values: what follows, how long it is, where it begins.

The library hands out whole objects, arrays included; to leave those in the file, their places must be known. A head is
the first one to six bytes of a value, by the table of the specification (github.com/msgpack/msgpack/blob/master/spec.md);
what a head announces is decoded by the library. A test compares this table with the library over all kinds of values.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from converters.formats._source import Source, damaged

_WINDOW = 1 << 16

# First byte: what it announces ('plain' includes its value), the format of the length (or of the value) that follows.
_HEADS: dict[int, tuple[str, str]] = {
    0xC0: ("plain", ""),
    0xC2: ("plain", ""),
    0xC3: ("plain", ""),
    0xC4: ("bin", ">B"),
    0xC5: ("bin", ">H"),
    0xC6: ("bin", ">I"),
    0xC7: ("ext", ">B"),
    0xC8: ("ext", ">H"),
    0xC9: ("ext", ">I"),
    0xCA: ("plain", ">f"),
    0xCB: ("plain", ">d"),
    0xCC: ("plain", ">B"),
    0xCD: ("plain", ">H"),
    0xCE: ("plain", ">I"),
    0xCF: ("plain", ">Q"),
    0xD0: ("plain", ">b"),
    0xD1: ("plain", ">h"),
    0xD2: ("plain", ">i"),
    0xD3: ("plain", ">q"),
    0xD9: ("str", ">B"),
    0xDA: ("str", ">H"),
    0xDB: ("str", ">I"),
    0xDC: ("array", ">H"),
    0xDD: ("array", ">I"),
    0xDE: ("map", ">H"),
    0xDF: ("map", ">I"),
}


class Head(NamedTuple):
    """What stands at a place of a file.

    Attributes:
      kind: plain (nil, a boolean or a number), str, bin, ext, array or map.
      length: The number of bytes of a str, bin or ext, of elements of an array, of pairs of a map.
      code: The type of an ext.
      at: Where it begins.
      body: Where what it announces begins; the end of a plain value.
    """

    kind: str
    length: int
    code: int
    at: int
    body: int

    @property
    def end(self) -> int:
        """Where the value ends, for those that have no elements."""
        return self.body if self.kind in ("plain", "array", "map") else self.body + self.length


class Heads:
    """Reads the heads of a file, through a window so that many small ones cost one read."""

    def __init__(self, source: Source):
        self.source = source
        self._from, self._window = 0, b""

    def head(self, at: int, end: int) -> Head:
        """Returns the head at `at`, of a value that lies before `end` in full.

        Raises:
          CheckpointError: Nothing can begin so, or it would reach beyond `end`.
        """
        if at >= end:
            raise damaged(self.source.path, f"it ends at byte {end:,}, inside of a value")
        found = self._parse(at, end)
        # Each element takes one byte at least, each pair two.
        if found.end > end or (found.kind in ("array", "map") and found.body + found.length > end):
            raise damaged(
                self.source.path,
                f"at byte {at:,} a value of kind {found.kind} and length {found.length:,} begins, and"
                f" {max(0, end - found.body):,} bytes follow",
            )
        return found

    def peek(self, at: int, count: int) -> bytes:
        """Returns up to `count` bytes, fewer at the file's end; for small counts."""
        if not self._from <= at <= at + count <= self._from + len(self._window):
            self._from = at
            self._window = self.source.bytes(at, min(max(_WINDOW, count), self.source.size - at))
        return self._window[at - self._from : at - self._from + count]

    def _parse(self, at: int, end: int) -> Head:
        first = self.peek(at, 1)[0]
        if first < 0x80 or first >= 0xE0:
            return Head("plain", 0, 0, at, at + 1)
        if first < 0xA0:
            return Head("map" if first < 0x90 else "array", first & 0x0F, 0, at, at + 1)
        if first < 0xC0:
            return Head("str", first & 0x1F, 0, at, at + 1)
        if 0xD4 <= first <= 0xD8:
            return Head("ext", 1 << (first - 0xD4), self._number(at + 1, ">b", end), at, at + 2)
        if first not in _HEADS:
            raise damaged(self.source.path, f"at byte {at:,} stands {first:#x}, which begins no msgpack value")
        kind, form = _HEADS[first]
        body = at + 1 + struct.calcsize(form)
        if kind == "plain":
            return Head(kind, 0, 0, at, body)
        count = self._number(at + 1, form, end)
        if kind != "ext":
            return Head(kind, count, 0, at, body)
        return Head(kind, count, self._number(body, ">b", end), at, body + 1)

    def _number(self, at: int, form: str, end: int) -> int:
        size = struct.calcsize(form)
        if at + size > min(end, self.source.size):
            raise damaged(self.source.path, f"it ends at byte {end:,}, inside of a value")
        return struct.unpack(form, self.peek(at, size))[0]


def bin_head(count: int) -> bytes:
    """Returns the head of `count` bytes (bin)."""
    if count < 1 << 8:
        return struct.pack(">BB", 0xC4, count)
    return struct.pack(">BH", 0xC5, count) if count < 1 << 16 else struct.pack(">BI", 0xC6, count)


def ext_head(code: int, count: int) -> bytes:
    """Returns the head of an ext of `count` bytes."""
    if count in (1, 2, 4, 8, 16):
        return struct.pack(">Bb", 0xD4 + count.bit_length() - 1, code)
    if count < 1 << 8:
        return struct.pack(">BBb", 0xC7, count, code)
    return struct.pack(">BHb", 0xC8, count, code) if count < 1 << 16 else struct.pack(">BIb", 0xC9, count, code)
