"""A file or directory that appears whole or not at all: written beside its place, flushed, and renamed.

Whatever kills the process, what stood at the path before is still there, and the path never holds a part. What a killed
attempt leaves is a sibling `.part-<process>-<name>`, which the next attempt at the same path removes: the name says which
process wrote it, and one that still runs is let alone.

What belongs beside a file (its manifest) goes away before the file is replaced and comes when the new one is there, so
that it never speaks of another file than the one it lies beside.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import os
import pathlib
import platform
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence

from converters._errors import CheckpointError

_TEXTS = {
    errno.ENOSPC: "the disk is full: free space, or write elsewhere",
    errno.EDQUOT: "the disk quota is used up: free space, or write elsewhere",
    errno.EFBIG: "it would be larger than files may be here (a limit of the process or the file system)",
    errno.EACCES: "permission is denied: choose a directory that you may write to",
    errno.EPERM: "permission is denied: choose a directory that you may write to",
    errno.EROFS: "the file system is read-only: write elsewhere",
    errno.ENAMETOOLONG: "the name is too long",
}
_NOREPLACE, _EXCHANGE, _AT_FDCWD = 1, 2, -100  # linux/fs.h and linux/fcntl.h


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[pathlib.Path]:
    """Gives a path beside `path` to write to; on leaving without an error it takes the place of `path`.

    Raises:
      CheckpointError: Something stands at `path` and `overwrite` is false, or it is a device or a pipe; its directory does
        not exist, or the system refuses (disk full, read-only, no permission). Nothing is left behind.
    """
    with replacing_all([path], overwrite) as (temporary,):
        yield temporary


@contextlib.contextmanager
def replacing_all(paths: Sequence[str | os.PathLike[str]], overwrite: bool = False) -> Iterator[list[pathlib.Path]]:
    """Gives paths to write to; on leaving without an error they take the places of `paths`.

    The first is the file or directory itself, and must be written. The others belong to it: what stands there goes away
    first, and what was written comes last, in order.

    Raises:
      CheckpointError: As `replacing`.
    """
    final, *others = finals = [pathlib.Path(path) for path in paths]
    for there in finals:
        refuse_special(there)
        if not overwrite and os.path.lexists(there):
            raise CheckpointError(
                f"{there} exists. Choose another name, or say that it may be overwritten (--overwrite)."
            )
    if not final.parent.is_dir():
        raise CheckpointError(f"{final} cannot be written: the directory {final.parent} does not exist. Make it first.")
    temporaries = [_beside(there) for there in finals]
    try:
        for there in finals:
            clean(there)
        yield temporaries
        for there in others:
            remove(there)
        _put(temporaries[0], final, overwrite)
        for temporary, there in zip(temporaries[1:], others, strict=True):
            if temporary.exists():
                os.replace(temporary, there)
        sync(final.parent)
    except OSError as err:
        _discard(temporaries)
        names = {temporary.name for temporary in temporaries}
        ours = any(name in str(err.filename or "") for name in names)
        if isinstance(err, FileNotFoundError) and not ours:
            raise
        raise CheckpointError(
            f"{final} was not written: {_TEXTS.get(err.errno or 0, err.strerror or err)}. Nothing was changed."
        ) from err
    except CheckpointError as err:
        _discard(temporaries)
        text = str(err)
        for temporary, there in zip(temporaries, finals, strict=True):  # nobody knows a file by its temporary name
            text = text.replace(temporary.name, there.name)
        if text == str(err):
            raise
        raise CheckpointError(text) from err
    except BaseException:
        _discard(temporaries)
        raise


def _discard(temporaries: Sequence[pathlib.Path]) -> None:
    """Removes what was written, and what a writer had beside it under a longer name (Orbax, until it is done)."""
    for temporary in temporaries:
        for path in (temporary, *temporary.parent.glob(glob.escape(temporary.name) + ".*")):
            remove(path)


def refuse_special(path: pathlib.Path) -> None:
    """Raises a `CheckpointError` if a device, a pipe or a socket is there, or a link leads to one.

    A rename would put a file in the place of `/dev/null`, for everybody.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise CheckpointError(
            f"{path} is a device, a pipe or a socket, which is never replaced: choose the name of a file."
        )


def _put(temporary: pathlib.Path, final: pathlib.Path, overwrite: bool) -> None:
    """Renames, whatever stands at the final path: a file, a full directory, nothing."""
    if not overwrite:
        if not _renamed(temporary, final, _NOREPLACE):
            if os.path.lexists(final):  # since it was last looked at
                raise CheckpointError(f"{final} has come into being in the meantime, and was left as it is.")
            os.rename(temporary, final)
        return
    if not (temporary.is_dir() or (final.is_dir() and not final.is_symlink())) or not os.path.lexists(final):
        os.replace(temporary, final)
        return
    # A plain rename puts neither a directory in the place of a full one, nor a file in that of a directory.
    if _renamed(temporary, final, _EXCHANGE):
        remove(temporary)  # what stood there before
        return
    old = _beside(final, "old")
    os.rename(final, old)
    try:
        os.replace(temporary, final)
    except BaseException:
        os.rename(old, final)
        raise
    remove(old)


def _renamed(a: pathlib.Path, b: pathlib.Path, flag: int) -> bool:
    """Renames by Linux's renameat2; returns whether the system and the file system know how.

    Args:
      a, b: The two paths.
      flag: `_EXCHANGE`: each takes the other's place, at once. `_NOREPLACE`: fails if `b` exists.
    """
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if call(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    if code == errno.EEXIST:
        raise CheckpointError(f"{b} has come into being in the meantime, and was left as it is.")
    raise OSError(code, os.strerror(code), str(a))


def _beside(final: pathlib.Path, what: str = "part") -> pathlib.Path:
    # The final name's end stays the end, since writers may look at it; a name has at most 255 bytes.
    pid = os.getpid()
    return final.with_name(f".{what}-{_where()}-{pid}-{_started(pid)}-{secrets.token_hex(4)}-{_tail(final)}")


def _where() -> str:
    """Returns what tells the places apart in which one process number means one process: machines and containers."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _started(pid: int) -> str:
    """Returns when a process began, in the system's own unit; '0' where that cannot be known, '' if there is none."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return text.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    if os.path.isdir("/proc/self"):
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "0"


def clean(final: pathlib.Path) -> None:
    """Removes what killed processes left beside a path; puts back what one of them had moved aside."""
    here, tail = _where(), _tail(final)
    for left in [*final.parent.glob(".part-*"), *final.parent.glob(".old-*")]:
        what, place, pid, began, _, name = [*left.name[1:].split("-", 5), "", "", "", "", ""][:6]
        # A writer may add something to the name while it works.
        if place != here or not (name == tail or (what == "part" and name.startswith(tail + "."))):
            continue
        if not pid.isdigit() or _started(int(pid)) == began:
            continue  # it runs still
        if what == "old" and not os.path.lexists(final):
            os.rename(left, final)
        else:
            remove(left)


def _tail(final: pathlib.Path) -> str:
    return os.fsencode(final.name)[-150:].decode(sys.getfilesystemencoding(), "ignore")


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
