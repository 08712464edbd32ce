"""State: a flat, dict-like pytree from path to array, with a kind for each entry.

A `State` is a layout (sorted paths and their kinds, immutable, shared between states of one structure) and a list of
values. JAX flattens it by handing out the list, so that dispatch of a jitted function costs the same whatever the number
of entries is called, and two states have the same tree structure exactly when paths and kinds agree.

What it does not do: it never converts a value; an entry may be an array, a tracer or a `jax.ShapeDtypeStruct`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import jax

from bridges.core._errors import CollisionError, FilterError, MissingEntryError, StructureError, hint, listing
from bridges.core._filter import Filter, predicates
from bridges.core._flat import PathKey, flatten, under, unflatten
from bridges.core._kind import COLLECTIONS, Kind, default_kind, kind_type
from bridges.core._leaf import as_leaf, fitted


class Layout:
    """The sorted paths of a state and their kinds: immutable, hashable, shared by every state of that structure.

    A kind is None where nobody has declared it (an entry of a plain dictionary): it then follows from the value.
    """

    __slots__ = ("paths", "kinds", "index", "_hash")

    def __init__(self, paths: tuple[str, ...], kinds: tuple[Kind | None, ...]):
        self.paths = paths
        self.kinds = kinds
        self.index = {path: i for i, path in enumerate(paths)}
        self._hash: int | None = None

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Layout) and self.paths == other.paths and self.kinds == other.kinds)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash((self.paths, self.kinds))
        return self._hash

    def __repr__(self) -> str:
        # What JAX shows of two states whose structures differ.
        shown = [
            path if kind is None else f"{path}: {kind.__name__ if isinstance(kind, type) else kind!r}"
            for path, kind in zip(self.paths[:50], self.kinds, strict=False)
        ]
        return f"Layout({len(self.paths)} entries: {', '.join(shown)}{', …' * (len(self.paths) > 50)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Layout, (self.paths, self.kinds)


class State(MutableMapping[str, Any]):
    """A flat mapping from path to value, with a kind for each entry; a pytree.

    Args:
      entries: A mapping or pairs of path and value. The kinds of another `State` are kept.
      kinds: Kinds by path. An entry with none is taken for `default_kind` of its value until code declares it.

    >>> import numpy as np
    >>> from bridges.core import Param
    >>> state = State({'net/w': np.ones(2, np.float32), 'net/n': np.int32(0)})
    >>> state.kind('net/w').__name__, state.kind('net/n').__name__
    ('Param', 'Variable')
    >>> params, rest = state.partition(Param, ...)
    >>> list(params), list(rest)
    (['net/w'], ['net/n'])
    """

    __slots__ = ("_layout", "_values", "_base", "__weakref__")

    def __init__(
        self,
        entries: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        kinds: Mapping[str, Kind] | None = None,
    ):
        given = dict(entries)
        known = {**(entries.declared if isinstance(entries, State) else {}), **(kinds or {})}
        if any(not isinstance(path, str) for path in given):
            wrong = next(path for path in given if not isinstance(path, str))
            raise StructureError(
                f"An entry of a State has a path, a string; got {wrong!r}. Flatten nested trees first."
            )
        paths = tuple(sorted(given))
        self._layout = Layout(paths, tuple(known.get(p) for p in paths))
        self._values = [given[p] for p in paths]
        self._base = ""

    @classmethod
    def _make(cls, layout: Layout, values: list[Any], base: str = "") -> State:
        self = object.__new__(cls)
        self._layout, self._values, self._base = layout, values, base
        return self

    # Mapping ---------------------------------------------------------------------------------------------------------

    def _find(self, path: str) -> int | None:
        index = self._layout.index.get(path)
        if index is None and self._base and isinstance(path, str):
            index = self._layout.index.get(self._base + path)
        return index

    def __getitem__(self, path: str) -> Any:
        index = self._find(path)
        if index is None:
            raise MissingEntryError(
                f"There is no entry {path!r} among {len(self)} entries." + hint(str(path), self._layout.paths)
            )
        return self._values[index]

    def __setitem__(self, path: str, value: Any) -> None:
        index = self._find(path)
        if index is not None:
            self._values[index] = value
        else:
            path = path if not self._base or under(path + "/", self._base[:-1]) else self._base + path
            self._replace({**dict(self), path: value}, self.declared)

    def __delitem__(self, path: str) -> None:
        index = self._find(path)
        if index is None:
            raise MissingEntryError(f"There is no entry {path!r} to delete." + hint(str(path), self._layout.paths))
        full = self._layout.paths[index]
        self._replace({p: v for p, v in self.items() if p != full}, self.declared)

    def update(self, *others: Any, **entries: Any) -> None:
        """Sets many entries at once, as `dict.update`; a `State` given brings its kinds for new entries."""
        given, kinds = dict(self), self.declared
        for other in (*others, entries):
            new = {self._full(path): value for path, value in dict(other).items()}
            given.update(new)
            if isinstance(other, State):
                kinds = {**other.declared, **kinds}
        self._replace(given, kinds)

    def _full(self, path: str) -> str:
        index = self._find(path)
        return path if index is None else self._layout.paths[index]

    def _replace(self, entries: dict[str, Any], kinds: Mapping[str, Kind]) -> None:
        new = State(entries, kinds)
        self._layout, self._values = new._layout, new._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout.paths)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self._find(path) is not None

    def as_dict(self) -> dict[str, Any]:
        """Returns a dictionary of the entries, by full path."""
        return dict(zip(self._layout.paths, self._values, strict=True))

    def copy(self) -> State:
        """Returns a state that can be changed without changing this one; the arrays are shared."""
        return State._make(self._layout, [*self._values], self._base)

    __copy__ = copy

    def __or__(self, other: Mapping[str, Any]) -> State:
        new = self.copy()
        new.update(other)
        return new

    def __ror__(self, other: Mapping[str, Any]) -> State:
        return State(other) | self

    def __repr__(self) -> str:
        lines = ", ".join(f"{p!r}: {v!r}" for p, v in self.items())
        return f"State({{{lines}}})"

    def __reduce__(self) -> tuple[Any, ...]:
        return State._make, (self._layout, self._values, self._base)

    # Kinds -----------------------------------------------------------------------------------------------------------

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of every entry, by path."""
        items = zip(self._layout.paths, self._layout.kinds, self._values, strict=True)
        return {path: default_kind(value) if kind is None else kind for path, kind, value in items}

    @property
    def declared(self) -> dict[str, Kind]:
        """The kinds that code has declared, by path; `kinds` takes the others from the values."""
        return {p: kind for p, kind in zip(self._layout.paths, self._layout.kinds, strict=True) if kind is not None}

    def kind(self, path: str) -> Kind:
        """Returns the kind of one entry: a `Variable` subclass, or an instance that carries metadata."""
        index = self._find(path)
        if index is None:
            raise MissingEntryError(f"There is no entry {path!r}." + hint(path, self._layout.paths))
        kind = self._layout.kinds[index]
        return default_kind(self._values[index]) if kind is None else kind

    # Filters ---------------------------------------------------------------------------------------------------------

    def _select(self, indices: list[int]) -> State:
        layout = Layout(tuple(self._layout.paths[i] for i in indices), tuple(self._layout.kinds[i] for i in indices))
        return State._make(layout, [self._values[i] for i in indices], self._base)

    def _group(self, filters: tuple[Filter, ...]) -> tuple[list[list[int]], list[int]]:
        tests = predicates(filters)
        groups: list[list[int]] = [[] for _ in tests]
        rest = []
        items = zip(self._layout.paths, self._values, self._layout.kinds, strict=True)
        for i, (path, value, kind) in enumerate(items):
            known = default_kind(value) if kind is None else kind
            for group, matches in zip(groups, tests, strict=True):
                if matches(path, value, known):
                    group.append(i)
                    break
            else:
                rest.append(i)
        for given, group in zip(filters, groups, strict=True):
            kind = COLLECTIONS.get(given) if isinstance(given, str) and not group else None
            if kind is not None and any(issubclass(kind_type(k), kind) for k in self._layout.kinds if k is not None):
                raise FilterError(
                    f"{given!r} is a path in a filter, and no entry lies there; a collection is a kind here: pass"
                    f" bridges.{kind.__name__}. (For an empty state where there may be none: bridges.PathMatches.)"
                )
        return groups, rest

    def filter(self, *filters: Filter) -> Any:
        """Returns a state for each filter; an entry goes to the first filter that matches it, or to none.

        Args:
          *filters: Kinds, `...`, paths or prefixes, modules, predicates `(path, value) -> bool`, `Not`, `All`,
            `PathMatches`, `PathContains`, `arrays`, types of array, or tuples of these (any of them). None: `...`.

        Returns:
          One `State` for one filter, a tuple of them for several.

        Raises:
          FilterError: One is no filter, or stands behind `...`.
        """
        groups, _ = self._group(filters or (...,))
        states = tuple(self._select(group) for group in groups)
        return states[0] if len(states) == 1 else states

    def partition(self, *filters: Filter) -> Any:
        """As `filter`, and raises a `FilterError` if an entry matches none; end with `...` to catch the rest."""
        groups, rest = self._group(filters or (...,))
        if rest:
            kinds = self.kinds
            paths = [f"{p!r} ({kind_type(kinds[p]).__name__})" for p in (self._layout.paths[i] for i in rest)]
            raise FilterError(
                "These entries match no filter:\n" + listing(paths) + "\nEnd the filters with ... to catch the rest."
            )
        states = tuple(self._select(group) for group in groups)
        return states[0] if len(states) == 1 else states

    def merge(self, *others: Mapping[str, Any]) -> State:
        """Returns the union of states with disjoint paths, the inverse of `partition`.

        Raises:
          CollisionError: A path is in two of them. To replace entries, write `state | other`.
        """
        entries, kinds = dict(self), self.declared
        for other in others:
            both = [path for path in other if path in entries]
            if both:
                raise CollisionError(
                    "These entries are in more than one of the states to merge:\n"
                    + listing(map(repr, both))
                    + "\nTo replace entries by those of another state write `state | other`."
                )
            entries.update(other)
            if isinstance(other, State):
                kinds.update(other.declared)
        return State(entries, kinds)

    def pop(self, *filters: Any) -> Any:
        """Removes entries and returns them.

        Args:
          *filters: An exact path (and a default), as `dict.pop`; or filters other than a string, as in `filter`.

        Returns:
          The entry's value for a path; a `State` for one filter, a tuple of them for several.
        """
        if filters and isinstance(filters[0], str):
            return super().pop(*filters)
        if not filters:
            raise FilterError("Nothing was named to remove. Pass a path or filters: state.pop(bridges.Intermediate).")
        groups, rest = self._group(filters)
        states = tuple(self._select(group) for group in groups)
        kept = self._select(sorted(rest))
        self._layout, self._values = kept._layout, kept._values
        return states[0] if len(states) == 1 else states

    def restore(self, tree: Mapping[str, Any]) -> State:
        """Returns a state with the paths and kinds of this one, and the values of a tree, such as a file holds.

        Args:
          tree: Nested dictionaries (what `converters.load` gives), or a flat mapping from path to array, with exactly
            these entries. A typed key may be given as `jax.random.key_data` of it.

        Raises:
          StructureError: Entries are missing, or there are others; all are listed.
          EntryShapeError: Shapes differ, or a dtype that cannot hold the value.

        >>> import numpy as np
        >>> from bridges.core import BatchStat
        >>> like = State({'bn/mean': np.zeros(2)}, {'bn/mean': BatchStat})
        >>> like.restore({'bn': {'mean': np.ones(2)}}).kind('bn/mean').__name__
        'BatchStat'
        """
        nested = any(isinstance(value, Mapping) for value in tree.values())
        flat = {path: as_leaf(path, value) for path, value in (flatten(tree) if nested else tree).items()}
        for path, wanted in self.items():
            if path in flat and _is_key(wanted) and not _is_key(flat[path]):
                flat[path] = jax.random.wrap_key_data(flat[path], impl=_implementation(wanted))
        new = unflatten(flat, self)
        return State._make(self._layout, [fitted(p, v, w) for (p, v), w in zip(new.items(), self._values, strict=True)])


def _is_key(value: Any) -> bool:
    return hasattr(value, "dtype") and bool(jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key))


def _implementation(key: Any) -> Any:
    """Returns what `jax.random.key_impl` does, of an abstract key too."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), key)
    return found[0]


def _flatten_with_keys(state: State) -> tuple[list[tuple[PathKey, Any]], Layout]:
    keys = [PathKey(path) for path in state._layout.paths]
    return list(zip(keys, state._values, strict=True)), state._layout


jax.tree_util.register_pytree_with_keys(
    State,
    _flatten_with_keys,
    lambda layout, values: State._make(layout, list(values)),
    lambda state: (state._values, state._layout),
)
