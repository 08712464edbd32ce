"""Frames: where the program is, kept in the one context variable, so that every thread and asyncio task has its own."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bridges.core._errors import NamingError
from bridges.core._flat import SEPARATOR

if TYPE_CHECKING:
    from bridges.core._context import Context
    from bridges.core._module import Module


class Frame:
    """Where the program is: the module whose method runs, the scope below it, and the names given there so far.

    Attributes:
      context: The running context, None while modules are built outside of one.
      module: The module whose method runs, None in a plain function.
      scopes: Segments entered with `scope` below the module (or below the root).
      prefix: What automatic names of modules made in this frame begin with (`'encode_'` in a method `encode`).
      names: Names taken in this frame, relative to the module: those of modules made in a scope begin with it.
    """

    __slots__ = ("context", "module", "scopes", "prefix", "names")

    def __init__(
        self,
        context: Context | None,
        module: Module | None,
        scopes: tuple[str, ...] = (),
        prefix: str = "",
        names: set[str] | None = None,
    ):
        self.context = context
        self.module = module
        self.scopes = scopes
        self.prefix = prefix
        self.names = set() if names is None else names

    @property
    def path(self) -> str:
        """The path under which this frame makes entries and modules; empty at the root."""
        parts = (self.module.path, *self.scopes) if self.module is not None else self.scopes
        return SEPARATOR.join(parts)


_FRAME: contextvars.ContextVar[Frame | None] = contextvars.ContextVar("bridges_frame", default=None)


# Plain names for what the innermost frame is asked at every call: the frame of this thread or task; a new one, for a token;
# and with the token, the one before it again.
current_frame, push, pop = _FRAME.get, _FRAME.set, _FRAME.reset


class enter:  # A context manager, which a generator would make at twice the price.
    """Makes `frame` the innermost one for the length of a `with` block."""

    __slots__ = ("_frame", "_token")

    def __init__(self, frame: Frame):
        self._frame = frame

    def __enter__(self) -> Frame:
        self._token = _FRAME.set(self._frame)
        return self._frame

    def __exit__(self, *error: object) -> None:
        _FRAME.reset(self._token)


@contextlib.contextmanager
def scope(name: str) -> Iterator[str]:
    """Enters a name scope for a `with` block and yields its path: entries and modules made inside lie below it."""
    check_name(name)
    outer = _FRAME.get()
    if outer is None:
        outer = Frame(None, None)
    with enter(Frame(outer.context, outer.module, (*outer.scopes, name), outer.prefix, outer.names)) as frame:
        yield frame.path


def check_name(name: Any) -> str:
    """Returns the name if it can be one segment of a path.

    Raises:
      NamingError: It is empty, no string, or holds `/`, `%`, `{` or white space.
    """
    if not isinstance(name, str) or not name:
        raise NamingError(f"A name must be a string that is not empty; got {name!r}.")
    bad = [c for c in name if c in "/%{}" or c.isspace()]
    if bad:
        raise NamingError(
            f"The name {name!r} holds {bad[0]!r}. A name is one segment of a path: no '/', '%', braces or spaces."
            + (" Did you forget the f of an f-string?" if "{" in name else "")
        )
    return name
