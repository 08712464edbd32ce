"""Ledger: what went through a conversion: checksums of each leaf, taken when a writer pulls it, beside the writing.

One leaf is summed in a thread while it is written; the next one waits for it, so that one is in memory. What is summed
are the elements in row-major order, little endian; of a typed random key, its data; of a text, its UTF-8. CRC-32 tells
whether an array is what it was at twice the speed of SHA-256, which is taken as well where a decision hangs on it.

One sum serves all who ask for one: the checksum that a source has of its own array, that which the target's format keeps,
and that of the source's file, which is put together from its arrays' and of what lies between them (`_crc`).
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import pathlib
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from converters._tracked import Leaf, Plain
from converters.formats import LazyLeaf, _crc, read_leaf
from converters.formats._entries import blocks
from converters.formats._source import Place, Source

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
    return File(Source(path), (), strong).read().sums({})


class File:
    """The checksums of a file, of which some pieces are summed by others.

    Args:
      source: The file.
      places: Where those pieces lie.
      strong: Whether SHA-256, which takes longer than copying a file does, is among them; if None, up to `SMALL` bytes.
    """

    def __init__(self, source: Source, places: Iterable[Place] = (), strong: bool | None = None):
        self._source = source
        strong = source.size <= SMALL if strong is None else strong
        self._sha = hashlib.sha256() if strong else None
        self._pieces: list[tuple[int, int, int | None]] = []  # position, size, checksum
        at = 0
        for place in sorted(places, key=lambda place: place.at):
            if place.at >= at:  # arrays of odd files overlap
                self._pieces += [(at, place.at - at, 0), (place.at, place.size, None)]
                at = place.at + place.size
        self._pieces.append((at, source.size - at, 0))

    def read(self) -> File:
        """Returns this, having read what nobody else does; for SHA-256, all."""
        for i, (at, count, crc) in enumerate(self._pieces):
            for part in self._parts(at, count) if self._sha or crc is not None else ():
                if self._sha is not None:
                    self._sha.update(part)
                if crc is not None:
                    crc = zlib.crc32(part, crc)
            self._pieces[i] = at, count, crc
        return self

    def sums(self, known: Mapping[int, int]) -> dict[str, Any]:
        """Returns the size and the checksums.

        Args:
          known: CRC-32 of the pieces that others summed, by position; those that nobody did are read now.
        """
        out = 0
        for at, count, crc in self._pieces:
            crc = known.get(at) if crc is None else crc
            if crc is None:
                crc = functools.reduce(lambda crc, part: zlib.crc32(part, crc), self._parts(at, count), 0)
            out = _crc.joined(out, crc, count)
        strong = {} if self._sha is None else {"sha256": self._sha.hexdigest()}
        return {"bytes": self._source.size, "crc32": f"{out:08x}", **strong}

    def _parts(self, at: int, count: int) -> Iterator[memoryview]:
        buffer = np.empty(min(_PIECE, count), np.uint8)
        for start in range(at, at + count, _PIECE):
            part = buffer[: min(_PIECE, at + count - start)]
            self._source.fill(start, part)
            yield part.data


def summed(
    path: pathlib.Path, leaves: Mapping[str, Any], pool: concurrent.futures.Executor
) -> Callable[[Mapping[str, Mapping[str, str]]], dict[str, Any]]:
    """Returns what gives `checksums_of_file` of a source from those of its leaves, having begun with the rest of it.

    Args:
      path: The file or directory.
      leaves: Its leaves by path.
      pool: Where it is read.
    """
    if path.is_dir():
        whole = pool.submit(checksums_of_file, path)
        return lambda sums: whole.result()
    found = {name: leaf.place for name, leaf in leaves.items() if getattr(leaf, "place", None) is not None}
    places = {name: place for name, place in found.items() if place.source.path == path}
    source = next((place.source for place in places.values()), None) or Source(path)
    file = pool.submit(File(source, places.values()).read)
    return lambda sums: file.result().sums(
        {place.at: int(sums[name]["crc32"], 16) for name, place in places.items() if name in sums}
    )


class Pulled(LazyLeaf):
    """A leaf for a writer.

    Attributes:
      crc: Gives the CRC-32 of the elements, once they were read; None where they are not summed.
    """

    __slots__ = ("crc",)

    crc: Callable[[], int] | None


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
        self._checks: dict[str, Callable[[int], None]] = {}

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

        made = Pulled(leaf.shape, leaf.dtype, read, getattr(leaf, "where", path))
        made.crc = (lambda: int(self._pulled[path].result()["crc32"], 16)) if self._pool else None
        return made

    def read(self, path: str, leaf: Any) -> None:
        """Has the leaf of a source summed, and checked, when it is read the first time."""
        if isinstance(leaf, Plain):
            self._sum(self._read, path, leaf.value)
        elif isinstance(leaf, Leaf):
            check = leaf.check
            leaf.seen = lambda value: None if path in self._read else self._sum(self._read, path, value, check)

    def same(self, path: str, leaf: Any) -> None:
        """Has the leaf of a source checked by the sum of the target's leaf at a path, which has the same bytes."""
        if self._pool and isinstance(leaf, Leaf) and leaf.check is not None:
            self._checks[path] = leaf.check
            leaf.seen = lambda value: None

    def _sum(self, into: dict[str, Sums], path: str, value: Any, check: Callable[[int], None] | None = None) -> None:
        if self._pool:
            strong = into is self._pulled and path in self._strong
            check = self._checks.get(path) if into is self._pulled else check
            # The task gives its array up before it is done: one that lives on keeps the file's pages mapped.
            into[path] = self._pool.submit(_checked, [value], strong, check)
            self._pending.append(into[path])

    def sums(self) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
        """Returns the checksums by path: of the leaves that were pulled, and of those of the source that were read."""
        pulled, read = ({path: one.result() for path, one in found.items()} for found in (self._pulled, self._read))
        return pulled, read

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._pool:
            self._pool.shutdown()


def _checked(box: list[Any], strong: bool, check: Callable[[int], None] | None) -> dict[str, str]:
    found = checksums(box.pop(), strong)
    if check is not None:
        check(int(found["crc32"], 16))
    return found
