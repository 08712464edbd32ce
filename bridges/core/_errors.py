"""The errors of the project, and the nearest-name hint that most of them carry.

Every error that a user can cause is a `BridgeError`: it says what went wrong, where (a path), what came and what was
wanted, and what to do next. The children exist so that callers can catch one cause; each also derives from the built-in
exception that Python programmers would expect there.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable

HELP = "docs/errors.md"


class BridgeError(Exception):
    """Base of every error that this project raises on purpose.

    A traceback ends with a note that says where its kind is explained.

    >>> MappingError("no").help
    'docs/errors.md#mappingerror'
    """

    def __init__(self, *args: object):
        super().__init__(*args)
        self.add_note(f"What it means and how to mend it: {self.help}")

    @property
    def help(self) -> str:
        """The page and section, in this project's documentation, that explain this error."""
        public = next(cls for cls in type(self).__mro__ if re.fullmatch("[A-Z][A-Za-z]*Error", cls.__name__))
        return f"{HELP}#{public.__name__.lower()}"

    def __str__(self) -> str:  # KeyError would print the repr of its argument.
        return str(self.args[0]) if self.args else ""


class ContextError(BridgeError, RuntimeError):
    """State was used with no running context: the function was not wrapped in `pure`, `init` or `jit`."""


class MissingEntryError(BridgeError, KeyError):
    """A state entry was read that does not exist and may not be created here."""


class PermissionsError(BridgeError, RuntimeError):
    """An entry was created or modified where the running context does not allow it."""


class CreateError(PermissionsError):
    """A state entry does not exist and may not be created here: the state was not initialised for this call."""


class EntryShapeError(BridgeError, ValueError):
    """A value does not have the shape, the dtype or the structure of the entry it is meant for."""


class LeakError(BridgeError, RuntimeError):
    """State was written, created, or a key drawn, under a JAX transformation that the context does not know of."""


class SeedError(BridgeError, ValueError):
    """A random key was drawn and no seed (or no stream of that name) was given."""


class NamingError(BridgeError, ValueError):
    """A module or entry name is malformed, or taken by another."""


class FieldError(BridgeError, TypeError, AttributeError):
    """A typed hyperparameter is missing, unknown, of the wrong type, or was assigned to."""


class CollisionError(BridgeError, ValueError):
    """Two leaves would land on one path."""


class StructureError(BridgeError, ValueError):
    """A flat state does not have exactly the entries of the structure it should fill."""


class FilterError(BridgeError, ValueError):
    """A filter is malformed, or a partition leaves entries unmatched."""


class MappingError(BridgeError, ValueError):
    """A mapping or a plan made from it is wrong; the text lists every problem found."""


class UnsupportedError(BridgeError, NotImplementedError):
    """What was asked for cannot be done, for the reason given."""


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Returns up to `count` of `names` that look like `name`, best first.

    Args:
      name: What was asked for.
      names: What exists. Only the first 2,000 are compared, so that an error about a large model stays cheap.
      count: How many to return at most.
    """
    return difflib.get_close_matches(name, list(itertools.islice(names, 2000)), n=count, cutoff=0.5)


def hint(name: str, names: Iterable[str]) -> str:
    """Returns ` Did you mean …?` for an error's end, or an empty string."""
    found = nearest(name, names)
    return f" Did you mean {', '.join(repr(n) for n in found)}?" if found else ""


def listing(lines: Iterable[str], most: int = 20) -> str:
    """Returns the lines as an indented list, cut after `most` with a count of the rest."""
    lines = list(lines)
    shown = "\n".join(f"  - {line}" for line in lines[:most])
    return shown if len(lines) <= most else f"{shown}\n  … and {len(lines) - most} more"


def describe(value: object) -> str:
    """Returns `float32[3,4]` for anything that has a shape and a dtype, its type's name otherwise."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    return type(value).__name__
