"""Stacked entries: those of which every member of a `vmap`, or every step of a `scan`, has its own.

In the state such an entry has one axis more, over the members; a member sees its slice. `state_axes` says which entries
these are and where that axis is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bridges.core._context import Context
from bridges.core._errors import EntryShapeError, FilterError, MissingEntryError, describe, hint, listing
from bridges.core._filter import is_filter
from bridges.core._flat import under
from bridges.core._kind import is_transient
from bridges.core._rng import Streams, fold
from bridges.core._targets import each


class Stack:
    """Which entries of a running context are stacked over how many members; `path in stack` tells it of one.

    Args:
      outer: The context.
      axes: Module, path, prefix, or several of these -> axis, None for shared; the longest that fits decides.
      count: The number of members.
    """

    def __init__(self, outer: Context, axes: Mapping[Any, int | None], count: int):
        self.outer, self.count = outer, count
        named = [(only, axis) for target, axis in axes.items() for only in each(target)]
        if wrong := [only for only, _ in named if is_filter(only)]:
            raise FilterError(
                f"state_axes names modules, paths and prefixes, and got {wrong[0]!r}: of what kind an entry is, is not known"
                " before it is made. Name the module, and with None what its members share, {net: 0, 'net/norm': None}."
            )
        self.axes = {only if isinstance(only, str) else only.path: axis for only, axis in named}
        self.texts = [only for only, _ in named if isinstance(only, str)]

    def axis(self, path: str) -> int | None:
        """Returns the axis along which an entry is stacked, None for one that is shared."""
        found = [prefix for prefix in self.axes if under(path, prefix)]
        return self.axes[max(found, key=len)] if found else None

    def __contains__(self, path: str) -> bool:
        return bool(self.axes) and self.axis(path) is not None

    def entries(self) -> dict[str, Any]:
        """Returns the stacked entries `[members, …]`, whatever their axis; recorded values are no input of a member.

        Raises:
          EntryShapeError: Some have no axis of that length; all are listed.
        """
        found, wrong = {}, []
        for path, value in self.outer.entries.items():
            axis = self.axis(path) if self.axes else None
            if axis is None or is_transient(self.outer.declared(path)):
                continue
            if not -value.ndim <= axis < value.ndim or value.shape[axis] != self.count:
                wrong.append(f"{path!r} is {describe(value)}: axis {axis} should have the length {self.count}")
            else:
                found[path] = jnp.moveaxis(value, axis, 0)
        if wrong:
            raise EntryShapeError(
                "Entries that state_axes names are not stacked so:\n"
                + listing(wrong)
                + "\nStack the layers' values along that axis, or initialise the state anew."
            )
        return found

    def whole(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """Returns stacked entries `[members, …]` as they lie in the state; the inverse of `entries`."""
        outer, found = self.outer, {}
        for path, value in entries.items():
            recorded = is_transient(outer.declared(path))
            found[path] = value if recorded else jnp.moveaxis(value, 0, self.axis(path) or 0)
        return found

    def check(self) -> None:
        """Raises if a path or prefix, given as text, names no entry after the call: what it meant would be shared.

        Raises:
          MissingEntryError: The texts.
        """
        entries = self.outer.entries
        if lost := [text for text in self.texts if not any(under(path, text) for path in entries)]:
            raise MissingEntryError(
                "state_axes names what has no entries, so that nothing is stacked there:\n"
                + listing(f"{text!r}{hint(text, entries)}" for text in lost)
                + "\nName a path or prefix as it is in the state, or the module itself."
            )

    def create(
        self, run: Callable[[Context, Any], Any], args: Any, first: Any, axes: Any = 0, axis_name: Any = None
    ) -> None:
        """Creates what a member needs: its own entries for every member, with distinct keys, and then the shared ones.

        Args:
          run: Runs the member in a context, on its arguments.
          args: The arguments of all members, a tuple.
          first: Those of one member, which creates the shared entries, with axes of length 1.
          axes: Where the members' axes are in the arguments, as `in_axes` of `jax.vmap`.
          axis_name: As in `jax.vmap`.
        """
        outer = self.outer
        keys, counters = (None, {}) if outer.streams is None else (outer.streams.given(), outer.streams.counters)

        def create(index: Any, stacked: dict[str, Any], args: Any) -> dict[str, Any]:
            folded = fold(keys, index)
            streams = None if folded is None else Streams(folded, counters)
            known = {path: value for path, value in outer.entries.items() if path not in self}
            # The containers are copied, so that a function that empties its arguments does so once.
            run(ctx := outer.child({**known, **stacked}, streams, create=True), jax.tree.map(lambda x: x, args))
            return {path: value for path, value in ctx.created.items() if not is_transient(ctx.declared(path))}

        index, mapped = jnp.arange(self.count), jax.vmap(create, (0, 0, axes), axis_name=axis_name)
        if self.axes:
            made = mapped(index, self.entries(), args)
            outer.adopt(self.whole({path: value for path, value in made.items() if path in self}))
        one = {path: value[:1] for path, value in self.entries().items()}
        outer.adopt({path: value[0] for path, value in mapped(index[:1], one, first).items()})
