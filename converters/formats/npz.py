"""NumPy archives (.npz): a zip file of .npy members, read and written without pickle.

`np.load` reads what is written. A value of a dtype that NumPy has no letters for (bfloat16, float8, int4) is kept as raw
bytes in a structured dtype whose one field is called after it, so that the file itself says what it holds:
`np.load(file)[key].view(ml_dtypes.bfloat16)`. None and empty dictionaries are members without elements, by the same means.

How the members' names spell the tree is recognised, see `_layout`, and written to `Checkpoint.metadata['layout']`; texts
live in the archive's comment, where `np.load` does not see them. A member's checksum is compared when it is read.
"""

from __future__ import annotations

import functools
import io
import json
import math
import pathlib
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from bridges.core._errors import UnsupportedError
from converters._errors import CheckpointError
from converters.formats import _crc, _entries, _layout
from converters.formats._checkpoint import Checkpoint
from converters.formats._dtypes import EXTENDED
from converters.formats._lazy import LazyLeaf
from converters.formats._output import output
from converters.formats._source import LARGE, Place, Source, damaged, reading

_LIMIT = 0xFFFF  # bytes of a comment or a name, as the zip format has it
_HEADER = 16_384  # bytes in which a .npy header must fit
_EMPTY: dict[str, Any] = {"None": None, "{}": {}}
_DAMAGED = "its bytes do not have the checksum that was written with them"


def recognises(path: pathlib.Path) -> bool:
    """Whether a file is a zip archive of .npy members, or may be one that was cut off."""
    if not path.is_file():
        return False
    with reading(path), open(path, "rb") as file:
        if file.read(4) not in (b"PK\3\4", b"PK\5\6"):
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged: `read` says how
        return True
    return not names or any(name.endswith(".npy") for name in names)


def read(path: pathlib.Path) -> Checkpoint:
    """Returns what an archive holds: the names and headers of its members now, their values when asked for.

    Raises:
      CheckpointError: It is damaged, or holds what is no array.
    """
    source = Source(path)
    with reading(path):
        archive = zipfile.ZipFile(path)
        metadata = _comment(archive.comment)
        flat: dict[str, Any] = {}
        for info in archive.infolist():
            key = info.filename.removesuffix(".npy")
            if "\0" in info.orig_filename or key in flat:
                raise damaged(path, f"it has two members {key!r}")
            if not info.is_dir():
                flat[key] = _member(source, archive, info)
    tree, metadata["layout"] = _layout.tree(flat, metadata.get("layout"))
    raw = [key for key, leaf in flat.items() if isinstance(leaf, LazyLeaf) and leaf.dtype.type is np.void]
    if lost := [key for key in raw if flat[key].dtype.names is None]:
        metadata["dtypes"] = (
            f"{len(lost)} arrays are raw bytes ({lost[0]!r}: {flat[lost[0]].dtype.str}), which is how NumPy stores a dtype"
            " that it does not know, such as bfloat16. Its name is lost: view them, array.view(ml_dtypes.bfloat16)."
        )
    return Checkpoint(path, "npz", tree, metadata)


def problems(tree: Any) -> list[str]:
    """Returns what an archive cannot hold."""
    return _entries.problems(tree, _problem)


def write(path: pathlib.Path, tree: Any, metadata: Mapping[str, str]) -> None:
    """Writes an archive, uncompressed, one leaf at a time.

    Raises:
      CheckpointError: The metadata does not fit into an archive's comment.
    """
    layout, keys = _layout.keys(_entries.entries(tree))
    texts = {**{k: v for k, v in metadata.items() if k != "dtypes"}, "layout": layout}
    comment = json.dumps(texts, ensure_ascii=False, separators=(",", ":")).encode()
    if len(comment) > _LIMIT:
        raise CheckpointError(
            f"The metadata has {len(comment):,} bytes, and an npz archive keeps {_LIMIT:,}: shorten it, or keep it beside."
        )
    with output(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = comment
        for key, leaf in keys.items():
            empty = _entries.is_empty(leaf)
            mark = "None" if leaf is None else "{}"
            shape, dtype = ((0,), np.dtype([(mark, "V1")])) if empty else _entries.spec(leaf)
            _append(archive, file, f"{key}.npy", _header(shape, dtype), None if empty else leaf, dtype)
        archive.start_dir = file.tell()


def _append(archive: zipfile.ZipFile, file: BinaryIO, name: str, header: bytes, leaf: Any, dtype: np.dtype) -> None:
    """Writes a member as `archive.open(info, "w")` does, but for the checksum of a leaf that is summed already."""
    count = dtype.itemsize * math.prod(_entries.spec(leaf)[0]) if leaf is not None else 0
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.file_size = info.compress_size = len(header) + count
    info.CRC, info.external_attr = 0, 0o600 << 16
    info.header_offset = file.tell()
    zip64 = info.file_size * 1.05 > zipfile.ZIP64_LIMIT
    file.write(info.FileHeader(zip64))
    file.write(header)
    crc, taken = zlib.crc32(header), getattr(leaf, "crc", None) if count >= LARGE else None
    for block in _entries.blocks(leaf, dtype) if leaf is not None else ():
        file.write(block)
        crc = zlib.crc32(block, crc) if taken is None else crc
    info.CRC = crc if taken is None else _crc.joined(crc, taken(), count)
    end = file.tell()
    file.seek(info.header_offset)
    file.write(info.FileHeader(zip64))
    file.seek(end)
    archive.filelist.append(info)


def _comment(comment: bytes) -> dict[str, str]:
    """Returns the texts of an archive's comment; a comment that is not ours is one text."""
    try:
        found = json.loads(comment) if comment else {}
    except (ValueError, RecursionError):
        return {"comment": comment.decode(errors="replace")}
    texts = isinstance(found, dict) and all(isinstance(v, str) for v in found.values())
    return found if texts else {"comment": comment.decode(errors="replace")}


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Returns the header of a .npy file in row-major order."""
    if dtype.name in EXTENDED:
        dtype = np.dtype([(dtype.name, f"V{dtype.itemsize}")])
    fields = {"descr": np.lib.format.dtype_to_descr(_entries.little(dtype)), "fortran_order": False, "shape": shape}
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def _problem(path: str, leaf: Any) -> str | None:
    if path == "":
        return "is no dictionary: an archive's arrays have names, put it into a dictionary"
    if "\0" in path or len(path.encode(errors="replace")) > _LIMIT - 10:
        return "has a name that a zip archive cannot hold: it may be 65,525 bytes long, without the character NUL"
    if _entries.is_empty(leaf):
        return None
    if isinstance(leaf, bytes):
        return "is bytes, which NumPy would cut at trailing zeros: store np.frombuffer(value, np.uint8)"
    if isinstance(leaf, str) and leaf.endswith("\0"):
        return "is a text that ends in NUL, which NumPy would cut off"
    dtype = _entries.spec(leaf)[1]
    if dtype.hasobject:
        return f"is an array of Python objects ({dtype}), which only pickle holds: store numbers"
    if dtype.names and len(dtype.names) == 1 and (dtype.names[0] in EXTENDED or dtype.names[0] in _EMPTY):
        return f"has the structured dtype {dtype}, which here stands for {dtype.names[0]}: rename its field"
    try:
        _header(_entries.spec(leaf)[0], dtype)
        if dtype.name not in EXTENDED and np.lib.format.descr_to_dtype(np.lib.format.dtype_to_descr(dtype)) != dtype:
            return f"has the dtype {dtype}, which NumPy would store as raw bytes: convert it first"
    except ValueError as err:
        return f"has the dtype {dtype}, which a .npy header cannot hold: {err}"
    return None


def _member(source: Source, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    """Returns the leaf of an archive's member; of its bytes only the header is read."""
    where = f"{source.path}, member {info.filename!r}"
    if info.flag_bits & 1:
        raise UnsupportedError(f"{where} is encrypted: decrypt the archive first.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnsupportedError(f"{where} is compressed by method {info.compress_type}, which np.savez never uses.")
    stored = info.compress_type == zipfile.ZIP_STORED
    # Deflate makes at most 1,032 bytes of one.
    if info.file_size > (info.compress_size if stored else 1032 * info.compress_size + 1032):
        raise damaged(where, f"{info.file_size:,} bytes cannot come out of {info.compress_size:,}")
    at = _place(source, info) if stored else 0
    with reading(where), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a header of Python 2 is read and warned of
        if stored:
            head = io.BytesIO(source.bytes(at, min(info.file_size, _HEADER)))
        else:
            with archive.open(info) as member:
                head = io.BytesIO(member.read(_HEADER))
        shape, fortran, dtype = _parse(head, where)
    start = head.tell()
    size = start + dtype.itemsize * math.prod(shape)
    if size != info.file_size or any(n < 0 or n >= 1 << 62 for n in shape):
        raise damaged(where, f"its header promises {dtype}{list(shape)} and it has {info.file_size:,} bytes")
    mark = dtype.names[0] if dtype.names and len(dtype.names) == 1 else ""
    if mark in _EMPTY and shape == (0,):
        return _EMPTY[mark] and {}
    kept = EXTENDED[mark] if mark in EXTENDED and EXTENDED[mark].itemsize == dtype.itemsize else dtype
    place = source.place(at + start, shape, dtype) if stored and not fortran else None
    check = None if place is None else functools.partial(_check, place, info, start, where)
    pull = functools.partial(_deflated, archive, info)
    if stored:
        pull = functools.partial(_stored, source, info, at, check is None)
    pull = functools.partial(pull, start, shape, dtype, fortran, kept, where)
    leaf = LazyLeaf(shape, kept.newbyteorder("="), pull, where, place, check)
    if dtype.kind != "U" or shape or leaf.nbytes > _HEADER:
        return leaf
    with reading(where):
        return str(leaf.read())


def _place(source: Source, info: zipfile.ZipInfo) -> int:
    """Returns where a member's bytes begin: behind its local header, as long as that says (APPNOTE.TXT, 4.3.7)."""
    magic, name, extra = struct.unpack("<4s22xHH", source.bytes(info.header_offset, 30))
    if magic != b"PK\3\4":
        raise damaged(source.path, f"at byte {info.header_offset:,} there is no member {info.filename!r}")
    return info.header_offset + 30 + name + extra


def _parse(head: io.BytesIO, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(head)
    if version not in ((1, 0), (2, 0)):
        raise UnsupportedError(f"{where} is a .npy file of version {version}: save it with plain dtypes.")
    parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = parse(head)
    if dtype.hasobject:
        raise UnsupportedError(
            f"{where} is a pickled array of Python objects, which is not read because reading it runs code."
            " Save it as numbers (np.savez with an array of a plain dtype)."
        )
    return tuple(map(int, shape)), bool(fortran), dtype


def _check(place: Place, info: zipfile.ZipInfo, start: int, where: str, crc: int) -> None:
    """Raises a `CheckpointError` if a member whose array has a checksum does not have its own."""
    head = zlib.crc32(place.source.bytes(place.at - start, start))
    if _crc.joined(head, crc, place.size) != info.CRC:
        raise damaged(where, _DAMAGED)


def _stored(
    source: Source,
    info: zipfile.ZipInfo,
    at: int,
    checked: bool,
    start: int,
    shape: tuple[int, ...],
    dtype: np.dtype,
    fortran: bool,
    kept: np.dtype,
    where: str,
) -> np.ndarray:
    count = info.file_size - start
    if dtype == kept.newbyteorder("="):
        array = source.array(at + start, (count,), np.dtype(np.uint8))
    else:  # to be turned in its place
        array = np.empty(count, np.uint8)
        source.fill(at + start, array)
    if checked and zlib.crc32(array.data, zlib.crc32(source.bytes(at, start))) != info.CRC:
        raise damaged(where, _DAMAGED)
    with reading(where):
        return _shaped(array, shape, dtype, fortran, kept)


def _deflated(
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    start: int,
    shape: tuple[int, ...],
    dtype: np.dtype,
    fortran: bool,
    kept: np.dtype,
    where: str,
) -> np.ndarray:
    array = np.empty(info.file_size - start, np.uint8)
    target = array.data
    with reading(where), archive.open(info) as member:
        member.read(start)
        done = 0
        while part := member.read(_entries.BLOCK):  # up to the end, where the checksum is compared
            target[done : done + len(part)] = part
            done += len(part)
        if done != len(target):
            raise damaged(where, f"it ends after {start + done:,} of {info.file_size:,} bytes")
        return _shaped(array, shape, dtype, fortran, kept)


def _shaped(array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, fortran: bool, kept: np.dtype) -> np.ndarray:
    """Returns the array of given bytes, in the native byte order."""
    native = kept.newbyteorder("=")
    if not array.size:
        return np.empty(shape, native)
    found = array.view(dtype if kept == dtype else kept).reshape(shape, order="F" if fortran else "C")
    if found.dtype == native:
        return found
    return found.astype(native) if dtype.names else found.byteswap(inplace=True).view(native)
