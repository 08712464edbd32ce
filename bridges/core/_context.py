"""The running context: entries, permissions, random streams and flags of one call of a pure function.

A context belongs to the JAX trace it was made under; a side effect under another trace would leak a tracer and is refused.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax

from bridges.core._errors import (
    CollisionError,
    ContextError,
    CreateError,
    LeakError,
    MissingEntryError,
    NamingError,
    PermissionsError,
    SeedError,
    describe,
    hint,
)
from bridges.core._flat import SEPARATOR
from bridges.core._frame import current_frame
from bridges.core._jaxpr import running_transformation, trace_state
from bridges.core._kind import Kind, default_kind, is_transient, kind_type
from bridges.core._leaf import as_leaf, fitted
from bridges.core._rng import Streams
from bridges.core._state import Layout, State

if TYPE_CHECKING:
    from bridges.core._module import Module


def context() -> Context:
    """Returns the running context.

    Raises:
      ContextError: No stateful function is running.
    """
    frame = current_frame()
    if frame is None or frame.context is None:
        raise ContextError(
            "State was used outside of a running context. Wrap the function: state = bridges.init(fn)({}, *args,"
            " seed=0) makes its state, and state, out = bridges.pure(fn)(state, *args) runs it."
        )
    return frame.context


class Context:
    """Entries, permissions, streams and flags of one running call; a mapping from path to value.

    Attributes:
      create: Whether entries may be created.
      modify: Whether existing entries may be modified.
      flags: Values set for the call, read with `flag`.
      created: Path -> value at creation, for the entries created here.
      modified: Paths written after they existed.
      removed: Paths of entries that came with the context and are gone.
    """

    __slots__ = (
        "create", "modify", "flags", "created", "modified", "removed", "owners", "streams", "root",
        "_given", "_entries", "_source", "_layout", "_kinds", "_order", "_trace",
    )  # fmt: skip

    def __init__(
        self,
        entries: Mapping[str, Any],
        *,
        streams: Streams | None = None,
        create: bool = False,
        modify: bool = True,
        flags: Mapping[str, Any] | None = None,
        root: Module | None = None,
        parent: Context | None = None,
    ):
        self._given = entries
        self._source: State | None = entries if isinstance(entries, State) else None
        self._layout = None if self._source is None else self._source._layout
        self._entries = dict(entries) if self._source is None else self._source.as_dict()
        if self._source is None and parent is not None:
            self._source = parent._source
        self._kinds: dict[str, Kind] = parent._kinds if parent is not None else {}
        self._order: list[str] | None = None
        self._trace = trace_state()
        self.streams = streams
        self.create = create
        self.modify = modify
        self.flags = dict(flags) if flags else {}
        self.created: dict[str, Any] = {}
        self.modified: set[str] = set()
        self.removed: set[str] = set()
        self.owners: dict[str, Module] = parent.owners if parent is not None else {}
        self.root = root

    def child(
        self,
        entries: Mapping[str, Any] | None = None,
        streams: Streams | None = None,
        create: bool | None = None,
        modify: bool | None = None,
    ) -> Context:
        """Returns a context for the trace that runs now, with this one's kinds and flags and its own effects."""
        return Context(
            self._entries if entries is None else entries,
            streams=streams,
            create=self.create if create is None else create,
            modify=self.modify if modify is None else modify,
            flags=self.flags,
            root=self.root,
            parent=self,
        )

    # Reading ---------------------------------------------------------------------------------------------------------

    def __contains__(self, path: object) -> bool:
        return path in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._sorted())

    def __len__(self) -> int:
        return len(self._entries)

    def keys(self) -> list[str]:
        """The paths of all entries, sorted."""
        return [*self._sorted()]

    def items(self) -> list[tuple[str, Any]]:
        """All entries, sorted by path."""
        return [(path, self._entries[path]) for path in self._sorted()]

    @property
    def entries(self) -> Mapping[str, Any]:
        """All entries, in no particular order; not to be changed."""
        return self._entries

    def read(self, path: str) -> Any:
        """Returns the value at a path.

        Raises:
          MissingEntryError: There is none.
        """
        try:
            return self._entries[path]
        except KeyError:
            raise MissingEntryError(
                f"There is no state entry {path!r}.{hint(path, self._entries)} Load it into the state, or create it:"
                " state = bridges.init(fn)(state, *args, seed=0)."
            ) from None

    __getitem__ = read

    def under(self, prefix: str) -> dict[str, Any]:
        """Returns the entries strictly below a prefix, by the path that remains, sorted."""
        order, begin = self._sorted(), prefix + SEPARATOR if prefix else ""
        start = bisect.bisect_left(order, begin)
        found = {}
        for i in range(start, len(order)):
            path = order[i]
            if not path.startswith(begin):
                break
            found[path[len(begin) :]] = self._entries[path]
        return found

    def has_below(self, prefix: str) -> bool:
        """Whether any entry lies strictly below a prefix."""
        order, begin = self._sorted(), prefix + SEPARATOR
        i = bisect.bisect_left(order, begin)
        return i < len(order) and order[i].startswith(begin)

    def _sorted(self) -> list[str]:
        if self._order is None:
            source = self._source
            whole = source is not None and source._layout.index.keys() == self._entries.keys()
            self._order = list(source) if whole and source is not None else sorted(self._entries)
        return self._order

    def declared(self, path: str) -> Kind | None:
        """Returns the kind that code has declared for an entry, None if none has."""
        known = self._kinds.get(path)
        if known is None and self._source is not None:
            index = self._source._layout.index.get(path)
            known = None if index is None else self._source._layout.kinds[index]
        return known

    @property
    def layout(self) -> Layout | None:
        """The layout of the state that came with the context, while it is still that of the entries."""
        return None if self._kinds or self.created or self.removed else self._layout

    @property
    def declarations(self) -> Mapping[str, Kind]:
        """The kinds declared by the code that runs, by path; not to be changed."""
        return self._kinds

    def kind(self, path: str) -> Kind | None:
        """Returns the kind of an entry, declared or by its value; None if there is no such entry."""
        known = self.declared(path)
        return default_kind(self._entries[path]) if known is None and path in self._entries else known

    def declare(self, path: str, kind: Kind | None) -> None:
        """Says what kind an entry is; metadata that is known already stays."""
        if kind is None:
            return
        known = self.declared(path)
        if known is None or (known is not kind and not (isinstance(kind, type) and issubclass(kind_type(known), kind))):
            self._kinds[path] = kind

    # Writing ---------------------------------------------------------------------------------------------------------

    def write(self, path: str, value: Any, kind: Kind | None = None) -> Any:
        """Creates or modifies one entry and returns the stored value.

        Args:
          path: The full path.
          value: An array, or a Python number. It is cast to the dtype of an existing entry within one kind of number
            (float64 -> float32), never across (float -> int).
          kind: What the entry is for; `default_kind` of the value for a new entry if not given. An `Intermediate` may
            be created in any context, and follows the shape of what is recorded.

        Raises:
          CreateError: There is no such entry and none may be created here.
          PermissionsError: Entries may not be modified here.
          EntryShapeError: The existing entry has another shape, or a dtype that cannot hold the value.
          LeakError: A JAX transformation runs that the context does not know of.
        """
        self.check_trace(f"write the state entry {path!r}")
        value = as_leaf(path, value)
        if path in self._entries:
            if not self.modify:
                raise PermissionsError(
                    f"The state entry {path!r} may not be modified here: the context was opened with modify=False"
                    " (the predicate of while_loop is such a place). Move the write out, or pass modify=True."
                )
            if not is_transient(self.declared(path)):
                value = fitted(path, value, self._entries[path])
            self.modified.add(path)
        else:
            if not self.create and not is_transient(kind):
                raise CreateError(
                    f"The state entry {path!r} ({describe(value)}) does not exist and may not be created here."
                    f"{hint(path, self._entries)} Create it first, state = bridges.init(fn)(state, *args, seed=0), or"
                    " pass create=True to the pure function."
                )
            self._check_parents(path)
            if path in self.removed:  # It came with the context, and is there again: it was modified.
                self.removed.discard(path)
                self.modified.add(path)
            else:
                self.created[path] = value
            if self._order is not None:
                bisect.insort(self._order, path)
            self._kinds[path] = default_kind(value) if kind is None else kind
            kind = None
        self._entries[path] = value
        self.declare(path, kind)
        return value

    __setitem__ = write

    def remove(self, path: str) -> Any:
        """Removes one entry and returns its value.

        Raises:
          MissingEntryError: There is none.
          PermissionsError: Entries may not be modified here.
          LeakError: A JAX transformation runs that the context does not know of.
        """
        self.check_trace(f"remove the state entry {path!r}")
        value = self.read(path)
        if path in self.created:
            del self.created[path]
        else:
            if not self.modify:
                raise PermissionsError(
                    f"The state entry {path!r} may not be removed here: the context was opened with modify=False. Move"
                    " the removal out, or pass modify=True."
                )
            self.removed.add(path)
        self.modified.discard(path)
        del self._entries[path]
        self._order = None
        return value

    def _check_parents(self, path: str) -> None:
        if not all(path.split(SEPARATOR)):
            raise NamingError(f"The state entry {path!r} has an empty segment: give every entry a name.")
        end = path.find(SEPARATOR)
        while end >= 0:
            if path[:end] in self._entries:
                raise CollisionError(
                    f"The state entry {path!r} would lie below {path[:end]!r}, which is an array itself: rename one of"
                    " the two."
                )
            end = path.find(SEPARATOR, end + 1)

    def update(self, entries: Mapping[str, Any]) -> None:
        """Writes every entry of a mapping."""
        for path, value in entries.items():
            self.write(path, value, entries.kind(path) if isinstance(entries, State) else None)

    def adopt(self, created: Mapping[str, Any]) -> None:
        """Takes over entries that a child context created, with the kinds it declared."""
        for path, value in created.items():
            if path not in self._entries:
                self.write(path, value, self._kinds.get(path))

    def check_trace(self, action: str) -> None:
        """Raises a `LeakError` if another JAX trace runs than the one this context belongs to."""
        if trace_state() != self._trace:
            name = running_transformation()
            instead = f"use bridges.{name}, the lifted function," if name else "use the lifted function of bridges"
            raise LeakError(
                f"tl;dr: {instead} in place of JAX's own.\nReason: you tried to {action} inside"
                " a function that a plain JAX transformation (jax.jit, jax.grad, jax.lax.scan, jax.vmap, …) runs within"
                " a pure function. The value would belong to that inner trace and leak out of it, and with cached or"
                " repeated traces the effect would be lost.\nRemedy: bridges.jit, grad, value_and_grad, scan, cond,"
                " switch, while_loop, fori_loop, vmap and checkpoint take the same arguments and carry the state"
                " through; or make the inner function explicit with bridges.pure and pass its state."
            )

    def snapshot(self, created_only: bool = False) -> State:
        """Returns the entries as a `State`; with `created_only`, existing ones as they came and new ones as created."""
        layout = self.layout
        if layout is not None and not created_only:  # Then the entries are in its order.
            return State._make(layout, [*self._entries.values()])
        source = self._source
        entries = {**self._given, **self.created} if created_only else self._entries
        if source is not None and not self._kinds and len(source) == len(entries):
            return State._make(source._layout, [entries[path] for path in source._layout.paths])
        return State(entries, {path: kind for path in entries if (kind := self.declared(path)) is not None})

    # Streams and flags -----------------------------------------------------------------------------------------------

    @property
    def has_seed(self) -> bool:
        """Whether a seed was given."""
        return self.streams is not None

    @property
    def streams_given(self) -> tuple[str, ...]:
        """The names of the streams, empty when the seed was a single one."""
        return self.streams.named if self.streams is not None else ()

    def is_root(self, path: str) -> bool:
        """Whether the module at this path is itself the function that was given to `pure` or `init`."""
        return self.root is not None and self.root.path == path

    def draw(self, stream: str = "default", path: str | None = None) -> jax.Array:
        """Returns a fresh key of a stream.

        Args:
          stream: The stream's name.
          path: Who draws; the current module by default.

        Raises:
          SeedError: No seed was given, or none for this stream.
          LeakError: As for `write`.
        """
        path = self._drawer(path)
        streams = self._seeded(stream, path)
        return streams.draw(stream, path, self.is_root(path))

    def init_key(self, path: str, stream: str = "params") -> jax.Array:
        """Returns the key with which the part at `path` makes its own variables: the seed itself for a whole model."""
        return self._seeded(stream, path).first(stream, path, self.is_root(path))

    def _drawer(self, path: str | None) -> str:
        frame = current_frame()
        return path if path is not None else frame.path if frame is not None else ""

    def _seeded(self, stream: str, path: str) -> Streams:
        where = f" at {path!r}" if path else ""
        self.check_trace(f"draw a random key{where}")
        if self.streams is None:
            raise SeedError(
                f"A key of the random stream {stream!r} is drawn{where}, and no seed was given. Pass seed=0, a key, or"
                " a dictionary of streams to the pure function. (To need no seed once the state exists, draw inside"
                " the constructor: self.get('w', lambda: init(bridges.rng(), shape)).)"
            )
        return self.streams

    def flag(self, name: str, default: Any = None) -> Any:
        """Returns the value set for the call, or the default."""
        return self.flags.get(name, default)

    def claim(self, module: Module) -> None:
        """Raises a `NamingError` if a module that lives outside of the context has the path of another module."""
        owner = self.owners.setdefault(module.path, module)
        if owner is not module and (owner._outside or module._outside):
            raise NamingError(
                f"Two modules have the path {module.path!r}: {owner!r} and {module!r}. They would share their entries."
                " Give one of them a name: Net(…, name='other'), or pass one instance to both places to share it."
            )
