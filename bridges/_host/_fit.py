"""Whether entries fit a core part: those that a wrapper has, it checks itself; nobody else knows a core part's own.

Which entries are compared is the caller's: `check_fit` has a call to compare with, `ToNNX` what its calls made before. What
is said of those that do not fit is `misfit`, for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from bridges._host._host import Host
from bridges.core import Cache, Module, RngState, State
from bridges.core._context import Context
from bridges.core._errors import EntryShapeError, MissingEntryError, StructureError, describe, hint, listing
from bridges.core._frame import Frame, enter
from bridges.core._kind import Kind, is_transient, kind_type
from bridges.core._rng import Streams


def check_fit(
    host: Host,
    entries: Mapping[str, Any],
    run: Callable[[], Any],
    flags: Mapping[str, Any],
    shown: Callable[[str, Kind], str] = lambda path, kind: path,
) -> State | None:
    """Compares the entries of a core part with those that a call makes, found in abstract; nothing is computed.

    Entries that the call does not make are an error only where no other call could: the part has one public method.

    Args:
      host: The part; nothing is checked if it is not a core part.
      entries: By path in the running context.
      run: Makes the call.
      flags: For the call.
      shown: What errors call an entry of a path and kind.

    Returns:
      Shapes and kinds of the entries that the call makes; None if that cannot be told, or is not looked at.

    Raises:
      MissingEntryError, EntryShapeError, StructureError: They do not fit. All that is wrong is listed.
    """
    if not host.core:
        return None
    expected = abstract_entries(host, run, flags)
    if expected is None:  # It cannot be made with nothing; the call itself will say what it lacks.
        return None
    kinds = {**State(entries).kinds, **expected.kinds}
    name = {path: shown(path, kind) for path, kind in kinds.items()}
    lasting = {p: want for p, want in expected.items() if not _apart(kinds[p])}
    missing = [p for p in lasting if p not in entries]
    fixed = [p for p in lasting if p in entries and not issubclass(kind_type(expected.kind(p)), Cache)]
    wrong = [p for p in fixed if tuple(entries[p].shape) != tuple(lasting[p].shape)]
    extra = [p for p in entries if p not in expected and not _apart(kinds[p])]
    if extra and not _other_methods(type(host.module)):
        for train in (True, False):  # What only a training call records is not unknown.
            extra = [p for p in extra if p not in (abstract_entries(host, run, {**flags, "train": train}) or extra)]
    else:
        extra = []
    if missing or wrong or extra:
        raise misfit(
            f"The entries of {host.module!r} are not those that its call makes",
            {name[p]: lasting[p] for p in missing},
            {name[p]: (entries[p], lasting[p]) for p in wrong},
            [name[p] for p in extra],
        )
    return expected


def misfit(
    what: str, missing: Mapping[str, Any], wrong: Mapping[str, tuple[Any, Any]], unknown: Sequence[str]
) -> MissingEntryError | EntryShapeError | StructureError:
    """Returns the error that lists all entries that do not fit.

    Args:
      what: The sentence about them, without its end.
      missing: What is wanted, by name.
      wrong: What there is and what is wanted, by name.
      unknown: Names of what nothing asks for.
    """
    lines = [f"missing {n!r} ({describe(want)}){hint(n, unknown)}" for n, want in missing.items()]
    lines += [f"{n!r}: got {describe(got)}, wanted {describe(want)}" for n, (got, want) in wrong.items()]
    lines += [f"unexpected {n!r}{hint(n, missing)}" for n in unknown]
    error = MissingEntryError if missing else EntryShapeError if wrong else StructureError
    return error(f"{what}:\n{listing(lines)}\nLoad what is missing or misshapen, and remove what is unexpected.")


def abstract_entries(host: Host, run: Callable[[], Any], flags: Mapping[str, Any]) -> State | None:
    """Returns shapes and kinds of the entries that a call makes of nothing; None if it cannot."""
    kinds: dict[str, Any] = {}

    def make() -> dict[str, Any]:
        ctx = Context({}, streams=Streams.of(0), create=True, flags=flags, root=host.module)
        with enter(Frame(ctx, None)):
            run()
        kinds.update({path: kind for path in ctx.created if (kind := ctx.kind(path)) is not None})
        return ctx.created

    try:
        return State(jax.eval_shape(make), kinds)
    except Exception:
        return None


def _apart(kind: Kind) -> bool:
    """Whether entries of a kind are not compared: records; and random streams, which follow the streams that are given."""
    return is_transient(kind) or issubclass(kind_type(kind), RngState)


def _other_methods(cls: type) -> bool:
    """Whether a core part has public methods beside its call."""
    bases = [base for base in cls.__mro__ if issubclass(base, Module) and base is not Module]
    names = {
        name for base in bases for name, value in vars(base).items() if callable(value) or isinstance(value, property)
    }
    fields = set(getattr(cls, "_all_fields", ()))
    return any(not name.startswith("_") for name in names - fields)
