"""What a call of a part needs, found out in abstract; and whether the entries at hand are that.

Wrappers of frameworks check their entries themselves. A core part says only at each `get` what it wants, one after the
other, and takes what is there: here its entries are compared as a whole. What has once been right is not looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from bridges._host._host import Host
from bridges._host._training import has_other_methods
from bridges.core._context import Context
from bridges.core._errors import EntryShapeError, MissingEntryError, StructureError, describe, hint, listing
from bridges.core._frame import Frame, enter
from bridges.core._kind import BatchStat, Kind, Param, RngState, default_kind, is_transient, kind_type
from bridges.core._rng import Streams
from bridges.core._spec import abstract
from bridges.core._state import State

Fingerprint = frozenset[tuple[str, tuple[int, ...] | None]]


def expected(
    host: Host, method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], flags: Mapping[str, Any]
) -> State | None:
    """Returns the entries that a call makes where there are none, as `jax.ShapeDtypeStruct`; None if it cannot be told."""
    leaves, treedef = jax.tree.flatten((args, kwargs))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")}
    found: list[State] = []

    def run(arrays: dict[int, Any]) -> None:
        args, kwargs = jax.tree.unflatten(treedef, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
        ctx = Context({}, streams=Streams.of(0), create=True, flags=flags, root=host.module)
        with enter(Frame(ctx, None)):
            host.call(method, args, kwargs)
        created = {path: abstract(value) for path, value in ctx.created.items()}
        found.append(State(created, {p: kind for p in created if (kind := ctx.kind(p)) is not None}))

    try:
        jax.eval_shape(run, arrays)
    except Exception:  # It cannot be initialised this way: what is missing, the call itself will say.
        return None
    return found[-1]


def check_core(
    host: Host,
    entries: State,
    make: Callable[[], State | None],
    method: Any,
    shown: Callable[[str, Kind], str],
    placed: Callable[[str, Kind], str],
    remedy: str,
) -> None:
    """Compares the entries of a core part with those that a call needs.

    Args:
      host: The part.
      entries: What there is.
      make: Gives what the call needs, as `expected` does.
      method: The method that is called.
      shown: Returns what an entry that is there is called in errors.
      placed: Returns what an entry of a path and kind is to be called.
      remedy: What to do about missing entries.

    Raises:
      MissingEntryError, EntryShapeError, StructureError: They are not those; all are listed. Entries that the call has no
        use for are an error only if the part has no other methods.
    """
    have = method, fingerprint(entries)
    if have in host.fitting:
        return
    wanted = make()
    if wanted is None:
        return
    known = {p: (v, kind) for p, v in wanted.items() if _lasting(kind := wanted.kind(p))}
    missing = [path for path in known if path not in entries]
    other = method is not None or has_other_methods(type(host.module))
    extra = [p for p in entries if p not in known and _lasting(_kind(entries, p))]
    wrong = [
        f"{placed(path, kind)!r}: got {describe(entries[path])}, wanted {describe(want)}"
        for path, (want, kind) in known.items()
        if path in entries and _fixed(kind) and tuple(entries[path].shape) != tuple(want.shape)
    ]
    wrong += [
        f"{shown(path, kind)!r} belongs into {placed(path, kind)!r}"
        for path, (_, kind) in known.items()
        if path in entries and shown(path, kind) != placed(path, kind)
    ]
    lines = [f"missing {placed(p, known[p][1])!r} ({describe(known[p][0])}){hint(p, extra)}" for p in missing] + wrong
    if not other or missing:
        lines += [f"unexpected {shown(p, _kind(entries, p))!r}{hint(p, missing)}" for p in extra]
    if lines:
        error = MissingEntryError if missing else EntryShapeError if wrong else StructureError
        raise error(
            f"The variables of {host!r} are not those that its call needs:\n"
            + listing(lines)
            + f"\n{remedy} Convert what is misshapen, and remove what is unexpected."
        )
    host.fitting = {*host.fitting, have}


def fingerprint(entries: Mapping[str, Any]) -> Fingerprint:
    """Returns the paths of entries, with the shapes of those whose shapes are fixed."""
    state = entries if isinstance(entries, State) else State(entries)
    kinds = {path: _kind(state, path) for path in state}
    return frozenset(
        (path, tuple(state[path].shape) if _fixed(kind) else None) for path, kind in kinds.items() if _lasting(kind)
    )


def _kind(entries: State, path: str) -> Kind:
    found = entries.declared.get(path)
    return default_kind(entries[path]) if found is None else found


def _lasting(kind: Kind) -> bool:
    return not is_transient(kind) and not issubclass(kind_type(kind), RngState)


def _fixed(kind: Kind) -> bool:
    return issubclass(kind_type(kind), (Param, BatchStat))
