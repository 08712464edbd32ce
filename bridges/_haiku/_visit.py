"""One call of a hosted part in a Haiku frame: its entries from Haiku, what it makes and modifies to Haiku."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk

from bridges._haiku._frame import sequence
from bridges._haiku._kept import Kept
from bridges._haiku._one_key import OneKey, once
from bridges._haiku._places import Place, found, path_of, place_of, taken, written
from bridges._haiku._tree import PARAMS, STATE
from bridges._host._fit import abstract_entries, check_fit
from bridges._host._host import OUTSIDE, Host
from bridges._host._training import told
from bridges.core import Param
from bridges.core._context import Context
from bridges.core._errors import (
    BridgeError,
    CreateError,
    MissingEntryError,
    SeedError,
    StructureError,
    UnsupportedError,
    listing,
)
from bridges.core._flat import SEPARATOR, under
from bridges.core._frame import Frame, enter
from bridges.core._kind import Kind, kind_type
from bridges.core._pure import running
from bridges.core._state import State


def visit(module: hk.Module, host: Host, method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Returns the output of a call of a part.

    Args:
      module: The Haiku module below whose name the entries stand.
      host: The part.
      method, args, kwargs: The call.
    """
    kwargs, flags = told(host, method, args, kwargs)
    return Visit(module, host, flags, functools.partial(host.call, method, args, kwargs))()


class Visit:
    """A call of a part.

    Args:
      module: The Haiku module below whose name the entries stand.
      host: The part.
      flags: For the call; those of a context around the Haiku function come beside them.
      run: Makes the call.
    """

    def __init__(self, module: hk.Module, host: Host, flags: Mapping[str, bool], run: Callable[[], Any]):
        self.module, self.host, self.run = module, host, run
        outer = running()
        self.flags = {**(outer.flags if outer is not None else {}), **flags}
        self.kept = Kept(host)
        keys = sequence()
        self.streams = None if keys is None else OneKey(once(keys))
        self.places: dict[str, Place] = {}

    def __call__(self) -> Any:
        """Returns the output."""
        try:
            entries = self._entries()
            try:
                return self._over(entries)
            except MissingEntryError:
                given = {} if hk.running_init() else self._not_stored(entries)
                if not given:
                    raise
            return self._over({**entries, **given})
        except BridgeError as err:
            _note(err, self.module, self.host)
            raise

    def _over(self, entries: dict[str, Any]) -> Any:
        """Returns the output of a call over these entries."""
        if not hk.running_init():
            self._check(entries)
        ctx, out = self._passed(entries, hk.running_init())
        stored = ctx
        if ctx.created and ctx.create:
            new = {self._at(p, ctx.kind(p)): v for p, v in ctx.created.items()}
            given = taken(self.module, new)
            if any(
                given[place] is not value for place, value in new.items()
            ):  # Of a creator or getter that is registered.
                ctx, out = self._passed(entries | {self._path(place): v for place, v in given.items()}, False)
        self._write(ctx, stored)
        return out

    def _passed(self, entries: Mapping[str, Any], create: bool) -> tuple[Context, Any]:
        """Returns the context in which the part has run over these entries, and the output."""
        drawing = bool(self.kept.keys) and self.streams is not None
        drawing = drawing and (
            create or self.kept.draws(entries, lambda state: self._context(state, False, None), self.run)
        )
        seed = self.streams.stream("default") if drawing and self.streams is not None else None
        ctx = self._context(State(entries) | self.kept.entries(seed), create, self.streams)
        with enter(Frame(ctx, None)):
            out = self.run()
        if seed is None:
            self.kept.refuse(ctx)
        return ctx, out

    def _context(self, state: State, create: bool, streams: OneKey | None) -> Context:
        return Context(state, create=create, streams=streams, flags=self.flags, root=self.host.module)

    # Entries ---------------------------------------------------------------------------------------------------------

    def _entries(self) -> dict[str, Any]:
        """Returns the entries that Haiku has for the part, by path in the running context."""
        places = found(self.module)
        where = {place: self._path(place) for place in places}
        self.places = {path: place for place, path in where.items()}
        strange = [p for p in places if p[0] == STATE and not self.host.core and under(p[1], PARAMS)]
        strange += [place for place, path in where.items() if self.places[path] != place]
        if strange:
            raise StructureError(
                f"These entries of {self.module.module_name!r} are no state, but have the places of parameters:\n"
                + listing(repr(self._flat(place)) for place in strange)
                + "\nMove them into params."
            )
        return {where[place]: value for place, value in taken(self.module, places).items()}

    def _not_stored(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the parameters that Haiku has without storing them: a creator said `DO_NOT_STORE`, a getter gives them."""
        made = abstract_entries(self.host, self.run, self.flags) or State()
        missing = {p: self._at(p, made.kind(p)) for p in made if p not in entries}
        try:
            given = taken(self.module, {place: made[p] for p, place in missing.items() if place[0] == PARAMS})
        except ValueError:  # Haiku has none either.
            return {}
        return {self._path(place): value for place, value in given.items()}

    def _check(self, entries: Mapping[str, Any]) -> None:
        """Compares the entries of a core part with those that the call makes; those of a wrapper, it checks itself."""

        def shown(path: str, kind: Kind) -> str:
            return self._flat(self.places.get(path) or self._at(path, kind))

        made = check_fit(self.host, entries, self.run, self.flags, shown)
        wrong = (
            []
            if made is None
            else [p for p in made if p in self.places and self.places[p] != self._at(p, made.kind(p))]
        )
        if wrong and made is not None:
            raise StructureError(
                f"Entries of {self.module.module_name!r} are in the wrong one of Haiku's dictionaries:\n"
                + listing(f"{shown(p, Param)!r} belongs into {self._flat(self._at(p, made.kind(p)))!r}" for p in wrong)
            )

    def _write(self, ctx: Context, stored: Context) -> None:
        changed = {
            self._at(path, ctx.kind(path)): ctx.entries[path]
            for path in (*ctx.created, *sorted(ctx.modified))
            if path not in self.kept.paths and ctx.entries[path] is not stored.created.get(path, _NOTHING)
        }
        params = [self._flat(place) for place in changed if place[0] == PARAMS]
        if params:
            raise UnsupportedError(
                "A call in Haiku cannot set parameters, and this one modifies:\n"
                + listing(map(repr, params))
                + "\nGive these entries another kind, self.get(…, kind=bridges.BatchStat), or update them outside of the"
                " Haiku function."
            )
        written(self.module, changed)

    # Places ----------------------------------------------------------------------------------------------------------

    def _at(self, path: str, kind: Kind | None) -> Place:
        """Returns the place of an entry of the running context."""
        if not self.host.core:
            outer = self.host.outer(path)
        else:
            base = self.host.module.path
            outer = path[len(base) + 1 :] if under(path, base) else OUTSIDE + SEPARATOR + path
        return place_of(outer, kind is not None and issubclass(kind_type(kind), Param), self.host.framework)

    def _path(self, place: Place) -> str:
        """Returns the path in the running context of the entry at a place; the inverse of `_at`."""
        path = path_of(place, self.host.framework)
        if not self.host.core:
            return self.host.inner(path)
        return path[len(OUTSIDE) + 1 :] if under(path, OUTSIDE) else f"{self.host.module.path}{SEPARATOR}{path}"

    def _flat(self, place: Place) -> str:
        """Returns the path of a place as `haiku_adapter.flatten` has it."""
        collection, module, leaf = place
        return SEPARATOR.join([collection, self.module.module_name, *([module] if module else []), leaf])


_NOTHING = object()


def _note(err: BridgeError, module: hk.Module, host: Host) -> None:
    """Says in Haiku's terms where the entries of an error are."""
    name, root = module.module_name, f"{host.module.path}/…"
    below = root if host.core else f"{host.module.path}/params/…"
    err.add_note(
        f"This happened in the Haiku module {name!r}. The entry {below!r} is params[{name + '/…'!r}] there, and {root!r} is"
        f" state[{name + '/…'!r}] if it is no parameter."
        + (" A key goes to init(key, …) and apply(params, key, …)." if isinstance(err, SeedError) else "")
        + (
            " What a call creates is made where init runs that call too: `if hk.running_init(): net.start(…)`."
            if isinstance(err, CreateError)
            else ""
        )
    )
