"""Ledger: what went through a conversion: checksums of each leaf, taken when a writer pulls it, beside the writing.

One leaf is summed in a thread while it is written; the next one waits for it, so that one is in memory. What is summed
are the elements in row-major order, little endian; of a typed random key, its data; of a text, its UTF-8. CRC-32 tells
whether an array is what it was at twice the speed of SHA-256, which is taken as well where a decision hangs on it.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import pathlib
import zlib
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import numpy as np

from converters._tracked import Leaf, Plain
from converters.formats import LazyLeaf, read_leaf
from converters.formats._entries import blocks

_PIECE = 1 << 20
SMALL = 256 << 20
Sums = concurrent.futures.Future[dict[str, str]]


def checksums(leaf: Any, strong: bool = False) -> dict[str, str]:
    """Returns the checksums of a leaf, which is read if it is lazy.

    Args:
      leaf: An array, a number or a text, lazy or not.
      strong: Whether SHA-256 is wanted beside CRC-32.

    >>> checksums('abc')
    {'crc32': '352441c2'}
    """
    value = read_leaf(leaf.value if isinstance(leaf, Plain) else leaf)
    if isinstance(value, (str, bytes)):
        parts: Iterable[Any] = [value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")]
    else:
        if jax.dtypes.issubdtype(getattr(value, "dtype", np.float64), jax.dtypes.extended):
            value = jax.random.key_data(value)
        array = np.asarray(value)
        # An integer beyond 64 bits, such as the state of NumPy's PCG64, is no array; its digits are summed.
        parts = [str(value).encode()] if array.dtype == object else blocks(array, array.dtype)
    crc, sha = 0, hashlib.sha256()
    for part in parts:
        crc = zlib.crc32(part, crc)
        if strong:
            sha.update(part)
    return {"crc32": f"{crc:08x}", **({"sha256": sha.hexdigest()} if strong else {})}


def checksums_of_file(path: pathlib.Path, strong: bool | None = None) -> dict[str, Any]:
    """Returns the size and the checksums of a file; of a directory, of its files' names and checksums in order.

    Args:
      path: The file or directory.
      strong: Whether SHA-256, which takes longer than copying a file does, is among them; if None, up to `SMALL` bytes.
    """
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        strong = sum(file.stat().st_size for file in files) <= SMALL if strong is None else strong
        found = [(file.relative_to(path).as_posix(), checksums_of_file(file, strong)) for file in files]
        text = "".join(f"{sums['crc32']}  {sums.get('sha256', '')}  {name}\n" for name, sums in found)
        return {"bytes": sum(sums["bytes"] for _, sums in found), **checksums(text, strong)}
    count, crc, sha = path.stat().st_size, 0, hashlib.sha256()
    strong = count <= SMALL if strong is None else strong
    buffer = memoryview(bytearray(_PIECE))
    with open(path, "rb", buffering=0) as file:
        while got := file.readinto(buffer):
            crc = zlib.crc32(buffer[:got], crc)
            if strong:
                sha.update(buffer[:got])
    return {"bytes": count, "crc32": f"{crc:08x}", **({"sha256": sha.hexdigest()} if strong else {})}


class Ledger:
    """Watches leaves as they are read.

    Args:
      progress: Called with the size in bytes of each leaf that was pulled by a writer.
      sums: Whether to take checksums.
      strong: Paths of pulled leaves for which SHA-256 is wanted.
      contiguous: Whether a writer wants its arrays in one piece: it would make a copy, and keep what it copied from.
    """

    def __init__(
        self,
        progress: Callable[[int], None] | None = None,
        sums: bool = True,
        strong: Collection[str] = frozenset(),
        contiguous: bool = False,
    ):
        self._progress, self._strong, self._contiguous = progress, strong, contiguous
        self._pool = concurrent.futures.ThreadPoolExecutor(1) if sums else None
        self._pending: list[Sums] = []
        self._pulled: dict[str, Sums] = {}
        self._read: dict[str, Sums] = {}

    def pulled(self, path: str, leaf: Any) -> Any:
        """Returns the leaf as a writer is to pull it."""
        if isinstance(leaf, Plain):
            self._sum(self._pulled, path, leaf.value)
            return leaf.value

        def read() -> Any:
            concurrent.futures.wait(self._pending)  # one leaf in memory at a time
            self._pending.clear()
            value = read_leaf(leaf)
            if self._contiguous and isinstance(value, np.ndarray):
                value = np.asarray(value, order="C")
            self._sum(self._pulled, path, value)
            if self._progress:
                self._progress(int(getattr(leaf, "nbytes", 0)))
            return value

        return LazyLeaf(leaf.shape, leaf.dtype, read, getattr(leaf, "where", path))

    def read(self, path: str, leaf: Any) -> None:
        """Has the leaf of a source summed when it is read the first time."""
        if isinstance(leaf, Plain):
            self._sum(self._read, path, leaf.value)
        elif isinstance(leaf, Leaf):
            leaf.seen = lambda value: None if path in self._read else self._sum(self._read, path, value)

    def _sum(self, into: dict[str, Sums], path: str, value: Any) -> None:
        if self._pool:
            # The task gives its array up before it is done: one that lives on keeps the file's pages mapped.
            strong = into is self._pulled and path in self._strong
            into[path] = self._pool.submit(lambda box: checksums(box.pop(), strong), [value])
            self._pending.append(into[path])

    def sums(self) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
        """Returns the checksums by path: of the leaves that were pulled, and of those of the source that were read."""
        return tuple({path: future.result() for path, future in found.items()} for found in (self._pulled, self._read))  # type: ignore[return-value]

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._pool:
            self._pool.shutdown()
