"""CRC-32 of bytes one behind the other, from the CRC-32 of each: what was summed once need not be read again.

A checksum is a polynomial over GF(2) modulo P, bit-reflected: bytes that follow multiply it by x^(8 n). (zlib's
`crc32_combine` does the same, and Python does not have it.)
"""

from __future__ import annotations

import functools

_P = 0xEDB88320  # of zip, gzip and PNG; the highest power is the lowest bit


def joined(first: int, second: int, count: int) -> int:
    """Returns the CRC-32 of two pieces of bytes, from those of each.

    Args:
      first, second: The pieces' own.
      count: The number of bytes of the second piece.

    >>> import zlib
    >>> joined(zlib.crc32(b'one'), zlib.crc32(b'two'), 3) == zlib.crc32(b'onetwo')
    True
    """
    return _times(_shift(count), first) ^ second


@functools.lru_cache(1024)
def _shift(count: int) -> int:
    """Returns x^(8 count) modulo P."""
    out, power = 1 << 31, 1 << 23  # x^0, x^8
    while count:
        if count & 1:
            out = _times(out, power)
        power, count = _times(power, power), count >> 1
    return out


def _times(a: int, b: int) -> int:
    out = 0
    while a:
        if a & 1 << 31:
            out ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_P if b & 1 else 0)
    return out
