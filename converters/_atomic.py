"""A file or directory that appears whole or not at all: written beside its place, flushed, and renamed.

Whatever kills the process, what stood at the path before is still there, and the path never holds a part. What is left
of a killed attempt is a sibling whose name begins with a dot and ends with `.part`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator

from converters._errors import CheckpointError

_TEXTS = {
    errno.ENOSPC: "the disk is full: free space, or write elsewhere",
    errno.EDQUOT: "the disk quota is used up: free space, or write elsewhere",
    errno.EACCES: "permission is denied: choose a directory that you may write to",
    errno.EPERM: "permission is denied: choose a directory that you may write to",
    errno.EROFS: "the file system is read-only: write elsewhere",
    errno.ENAMETOOLONG: "the name is too long",
}


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[pathlib.Path]:
    """Gives a path beside `path` to write to; on leaving without an error it takes the place of `path`.

    Raises:
      CheckpointError: Something stands at `path` and `overwrite` is false, its directory does not exist, or the system
        refuses (disk full, read-only, no permission). Nothing is left behind.
    """
    final = pathlib.Path(path)
    if os.path.lexists(final) and not overwrite:
        raise CheckpointError(f"{final} exists. Choose another name, or say that it may be overwritten (--overwrite).")
    if not final.parent.is_dir():
        raise CheckpointError(f"{final} cannot be written: the directory {final.parent} does not exist. Make it first.")
    temporary = final.with_name(f".{final.name[:100]}.{secrets.token_hex(6)}.part")
    try:
        yield temporary
        _exchange(temporary, final)
    except OSError as err:
        remove(temporary)
        if isinstance(err, FileNotFoundError) and str(err.filename or "").find(temporary.name) < 0:
            raise
        raise CheckpointError(
            f"{final} was not written: {_TEXTS.get(err.errno or 0, err.strerror or err)}. Nothing was changed."
        ) from err
    except BaseException:
        remove(temporary)
        raise


def _exchange(temporary: pathlib.Path, final: pathlib.Path) -> None:
    old = None
    # A rename puts neither a directory in the place of a full one, nor a file in that of a directory.
    if os.path.lexists(final) and (temporary.is_dir() or final.is_dir()):
        old = final.with_name(f".{final.name[:100]}.{secrets.token_hex(6)}.old")
        os.rename(final, old)
    try:
        os.replace(temporary, final)
    except BaseException:
        if old is not None:
            os.rename(old, final)
        raise
    sync(final.parent)
    if old is not None:
        remove(old)


def remove(path: pathlib.Path) -> None:
    """Removes a file or a directory with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: pathlib.Path) -> None:
    """Waits until a file's content, or a directory's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
