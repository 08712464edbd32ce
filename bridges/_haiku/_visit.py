"""One call of a hosted part in a Haiku frame: its entries from Haiku, what it makes and modifies to Haiku."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from bridges._haiku._frame import sequence
from bridges._haiku._one_key import OneKey, once
from bridges._haiku._places import Place, found, path_of, place_of, taken, written
from bridges._haiku._tree import PARAMS
from bridges._host._fit import abstract_entries, check_fit
from bridges._host._host import OUTSIDE, Host
from bridges.core import Param
from bridges.core._context import Context
from bridges.core._errors import BridgeError, MissingEntryError, SeedError, UnsupportedError, listing
from bridges.core._flat import SEPARATOR, under
from bridges.core._frame import Frame, enter
from bridges.core._kind import Kind, kind_type
from bridges.core._pure import running
from bridges.core._state import State


class Visit:
    """A call of a part.

    Args:
      module: The Haiku module below whose name the entries stand.
      host: The part.
      run: Calls it.
      flags: For the call; those of a context around the Haiku function come beside them.
    """

    def __init__(self, module: hk.Module, host: Host, run: Callable[[], Any], flags: Mapping[str, bool]):
        self.module, self.host, self.run = module, host, run
        outer = running()
        self.flags = {**(outer.flags if outer is not None else {}), **flags}
        self.random = host.random_state()
        keys = sequence()
        self.streams = None if keys is None else OneKey(once(keys))

    def __call__(self) -> Any:
        """Returns the output."""
        try:
            return self._visited()
        except BridgeError as err:
            _note(err, self.module, self.host)
            raise

    def _visited(self) -> Any:
        places = taken(self.module, found(self.module))
        entries = {self._path(place): value for place, value in places.items()}
        try:
            return self._over(entries)
        except MissingEntryError as err:
            given = {} if hk.running_init() else self._not_stored(entries)
            if not given:
                raise err
        return self._over({**entries, **given})

    def _over(self, entries: dict[str, Any]) -> Any:
        """Returns the output of a call over these entries."""
        if not hk.running_init():
            check_fit(self.host, entries, self.run, self.flags)
        ctx, out = self._passed(entries, hk.running_init())
        stored = ctx
        if ctx.created and ctx.create:
            new = {self._place(p, ctx): v for p, v in ctx.created.items() if p not in self.random}
            given = taken(self.module, new)
            if any(
                given[place] is not value for place, value in new.items()
            ):  # Somebody has registered a creator or getter.
                entries |= {self._path(place): value for place, value in given.items()}
                ctx, out = self._passed(entries, False)
        self._write(ctx, stored)
        return out

    def _not_stored(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the parameters that Haiku has without storing them: a creator said `DO_NOT_STORE`, a getter gives them."""
        made = abstract_entries(self.host, self.run, self.flags)
        if made is None:
            return {}
        missing = {p: self._at(p, made.kind(p)) for p in made if p not in entries}
        places = {place: made[p] for p, place in missing.items() if place[0] == PARAMS}
        try:
            return {self._path(place): value for place, value in taken(self.module, places).items()}
        except ValueError:  # Haiku has none either.
            return {}

    def _passed(self, entries: Mapping[str, Any], create: bool) -> tuple[Context, Any]:
        """Returns the context in which the part has run over these entries, and the output."""
        seed = self._seed(entries, create)
        ctx = self._context({**entries, **_filled(self.random, seed)}, create, self.streams)
        with enter(Frame(ctx, None)):
            out = self.run()
        if seed is None and (drawn := self._drawn(ctx)):
            raise SeedError(f"The part draws from the random stream of {drawn[0]!r}, and there is no key.")
        return ctx, out

    def _context(self, entries: Mapping[str, Any], create: bool, streams: OneKey | None) -> Context:
        state = State(entries, self.random.declared)
        return Context(state, create=create, streams=streams, flags=self.flags, root=self.host.module)

    # Random streams that an NNX part keeps ---------------------------------------------------------------------------

    def _seed(self, entries: Mapping[str, Any], create: bool) -> jax.Array | None:
        """Returns what the part's own random streams begin with; None if it has none, or does not draw from them."""
        if not self.random or self.streams is None or not (create or self._draws(entries)):
            return None
        return self.streams.stream("default")

    def _draws(self, entries: Mapping[str, Any]) -> bool:
        drawn: list[bool] = []

        def trial(entries: Mapping[str, Any]) -> None:
            ctx = self._context({**entries, **_filled(self.random, None)}, False, None)
            with enter(Frame(ctx, None)):
                self.run()
            drawn.append(bool(self._drawn(ctx)))

        try:
            jax.eval_shape(trial, dict(entries))
        except Exception:  # The call itself will say what is wrong with it.
            return True
        return drawn[-1]

    def _drawn(self, ctx: Context) -> list[str]:
        return [path for path in ctx.modified if path in self.random]

    # Entries ---------------------------------------------------------------------------------------------------------

    def _write(self, ctx: Context, stored: Context) -> None:
        changed = {
            path: ctx.entries[path]
            for path in (*ctx.created, *sorted(ctx.modified))
            if path not in self.random and ctx.entries[path] is not stored.created.get(path, _NOTHING)
        }
        new = {self._place(path, ctx): value for path, value in changed.items()}
        params = [self._path(place) for place in new if place[0] == PARAMS]
        if params:
            raise UnsupportedError(
                "A call in Haiku cannot set parameters, and this one modifies:\n"
                + listing(map(repr, params))
                + "\nGive these entries another kind, self.get(…, kind=bridges.BatchStat), or update them outside of the"
                " Haiku function."
            )
        written(self.module, new)

    def _place(self, path: str, ctx: Context) -> Place:
        return self._at(path, ctx.kind(path))

    def _at(self, path: str, kind: Kind | None) -> Place:
        outside = OUTSIDE + SEPARATOR + path
        if not self.host.core:
            outer = self.host.outer(path)
        else:
            base = self.host.module.path
            outer = path[len(base) + 1 :] if under(path, base) else outside
        return place_of(outer, kind is not None and issubclass(kind_type(kind), Param), self.host.framework)

    def _path(self, place: Place) -> str:
        path = path_of(place, self.host.framework)
        if not self.host.core:
            return self.host.inner(path)
        return path[len(OUTSIDE) + 1 :] if under(path, OUTSIDE) else f"{self.host.module.path}{SEPARATOR}{path}"


_NOTHING = object()


def _filled(random: State, seed: jax.Array | None) -> dict[str, Any]:
    """Returns values for the random streams that an NNX part keeps: the n-th key is the seed folded with n."""
    with jax.ensure_compile_time_eval():
        blank = jax.random.key(0)
    if seed is not None and not jax.dtypes.issubdtype(seed.dtype, jax.dtypes.prng_key):
        seed = jax.random.wrap_key_data(seed)
    values: dict[str, Any] = {}
    keys = 0
    for path, want in random.items():
        if jax.dtypes.issubdtype(want.dtype, jax.dtypes.prng_key):
            key = blank if seed is None else jax.random.fold_in(seed, keys)
            values[path] = jax.random.split(key, want.shape) if want.shape else key
            keys += 1
        else:
            values[path] = jnp.zeros(want.shape, want.dtype)
    return values


def _note(err: BridgeError, module: hk.Module, host: Host) -> None:
    """Says in Haiku's terms where the entries of an error are."""
    name, at = module.module_name, host.module.path
    params = f"{at}/…" if host.core else f"{at}/params/…"
    err.add_note(
        f"This happened in the Haiku module {name!r}: {params} is params[{name + '/…'!r}] there, what is no parameter"
        f" state[{name + '/…'!r}]."
        + (" A key goes to init(key, …) and apply(params, key, …)." if isinstance(err, SeedError) else "")
    )
