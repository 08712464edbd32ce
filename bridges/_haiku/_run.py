"""Running a part over stored variables, strictly.

Invariant: no call computes with variables that are missing, misshapen or unknown to the code. What Haiku's own run shows
to be in order (an entry that the code asked for with its shape, a state entry that it wrote with the same shape) costs
nothing; only entries that remain are compared with the structure found abstractly, once.
"""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from bridges._haiku._abstract import abstract_init
from bridges._haiku._frame import Draw, Filler, Place, Reader, Training, Watch, explained
from bridges._haiku._part import Args, Part
from bridges._haiku._tree import PARAMS, STATE, Native, leaves, place
from bridges.core import _flat
from bridges.core._context import Context, context
from bridges.core._errors import (
    BridgeError,
    EntryShapeError,
    MissingEntryError,
    StructureError,
    describe,
    hint,
    listing,
)
from bridges.core._frame import Frame, current_frame, enter
from bridges.core._spec import abstract

Entries = Mapping[str, Any]


class _Missing(MissingEntryError):
    """Raised inside of Haiku code when it asks for what is not stored; it becomes an error that lists all of it."""


class Call(NamedTuple):
    """A call of a part.

    Attributes:
      method: The method to call; None for the default one.
      args: Its arguments, positional and by keyword.
      where: What the part is called in errors.
      prefix: What comes before the paths of its variables in errors: empty, or a path and a slash.
      flags: What the layers inside follow; see `_flags.following`.
    """

    method: str | None
    args: Args
    where: str
    prefix: str = ""
    flags: tuple[tuple[str, Any], ...] = ()


Ran = tuple[Any, dict[str, Any], dict[str, Any]]


class Runner:
    """A part, and what is known about the structure of its variables; the arrays are the caller's.

    Args:
      part: The part.
    """

    def __init__(self, part: Part):
        self.part = part
        self._known: dict[str, tuple[int, ...]] = {}  # path -> shape, of entries seen to be right
        self._seen: set[Any] = set()  # signatures of calls and entries that were seen to be right together
        self._trees: dict[Place, tuple[Any, list[str]]] = {}  # state leaves that are pytrees -> structure, paths

    def make(self, stored: Entries, key: Callable[[], Any] | None, call: Call) -> dict[str, Any]:
        """Returns the entries that a first call makes and that are not stored, as they are at their creation.

        Args:
          stored: What is there; it is not made anew. When something is there the key is another one than for a part made
            whole, so that two methods that initialise one after the other do not draw the same numbers.
          key: Gives the key to initialise with; None if there is no seed.
          call: The call that is to be run.
        """
        first = None if key is None else key()
        if stored and first is not None:
            first = jax.random.fold_in(first, zlib.crc32((call.method or "__call__").encode()))
        try:
            native, created = self._made_natively(stored, first, call, Watch())
        except ValueError as err:  # BatchNorm makes its state in training only: Haiku cannot initialise other calls.
            if not _lacks_state(err):
                raise
            native, created = self._made_natively(stored, first, call, Training())
        if created:
            context().adopt(created)
        self._learn(native)
        return {path: value for path, value in leaves(*native).items() if path not in stored}

    def _made_natively(self, stored: Entries, key: Any, call: Call, watch: Watch) -> tuple[Native, Mapping[str, Any]]:
        """Returns the variables that a call makes, and the entries of other modules inside that it makes."""
        with rehearsal() as rehearsed:
            if self.part.has_init(call.method):
                native = init_explained(self.part, key, call, watch)
            else:
                filler = Filler(self._nest(stored), _missing)
                draw = None if key is None else lambda: key
                try:
                    _, state = self.part.apply(self._nest(stored), draw, call.method, call.args, filler)
                except Exception as err:
                    _raise(explained(err, call.where, "to initialise itself"), err)
                native = _made(filler, state)
        return native, {} if rehearsed is None else rehearsed.created

    def run(self, stored: Entries, draw: Draw | None, call: Call, create: bool = False) -> Ran:
        """Returns the output of a call, the entries that it changed, and those that it made, as they were made.

        Args:
          stored: All entries of the part, by path.
          draw: Gives a key, called only where the code draws; None if there is no seed.
          call: The call.
          create: Whether state entries may be made.

        Raises:
          MissingEntryError: The code asks for what is not stored. The text lists all problems there are.
          EntryShapeError: Entries have other shapes than the code asks for.
          StructureError: Entries are stored that the code has no use for.
          SeedError: The code draws and there is no seed.
        """
        try:
            return self._attempt(stored, draw, call, create)
        except _Missing as err:
            before = self._trees
            problems = self._problems(stored, call, True)
            if self._trees is not before and not problems:  # A state entry is a tree, as its paths alone did not say.
                return self._attempt(stored, draw, call, create)
            self._complain(problems or {"missing": [str(err)]}, call, err)
            raise

    def attempt(self, stored: Entries, draw: Draw | None, call: Call, create: bool = False) -> Ran | None:
        """Returns what `run` returns, or None if the code asks for what is not stored or has effects of its own."""
        with rehearsal() as rehearsed:
            try:
                ran = self._attempt(stored, draw, call, create)
            except _Missing:
                return None
        return None if rehearsed is not None and (rehearsed.created or rehearsed.modified) else ran

    def _attempt(self, stored: Entries, draw: Draw | None, call: Call, create: bool) -> Ran:
        native = self._nest(stored)
        shapes = {path: getattr(value, "shape", ()) for path, value in stored.items()}
        seen = _signature(shapes, call)
        if seen is not None and seen in self._seen:
            with contextlib.suppress(Exception):  # What is wrong after all, the watched run finds.
                out, state = self.part.apply(native, draw, call.method, call.args, Watch())
                return out, self._changed(native[1], state, stored, set()), {}
        reader = Reader(native, _missing, create)
        try:
            out, state = self.part.apply(native, draw, call.method, call.args, reader)
        except BridgeError:
            raise
        except Exception as err:
            if _lacks_state(err):
                raise _Missing(str(err)) from err
            problems = self._problems(stored, call, True)
            if "missing" in problems:
                raise _Missing("; ".join(problems["missing"])) from err
            self._complain(problems, call, err)
            _raise(explained(err, call.where, "in its call"), err)
        changed = self._changed(native[1], state, stored, reader.verified)
        fresh = {} if create else _new(native[1], state)
        if fresh:
            raise _Missing(", ".join(f"missing {call.prefix + p!r} ({describe(v)})" for p, v in fresh.items()))
        if any(shapes[p] != self._known.get(p) for p in stored if place(p) not in reader.verified):
            self._complain(self._problems(stored, call), call, None)
        self._known.update(shapes)
        made: dict[str, Any] = {}
        for (module, leaf), value in reader.created.items():
            made.update(leaves({}, {module: {leaf: value}}))
        if seen is not None and not made:
            self._seen = {*self._seen, seen}
        return out, changed, made

    # Structure -------------------------------------------------------------------------------------------------------

    def _nest(self, stored: Entries) -> Native:
        bundles: dict[str, dict[str, Any]] = {PARAMS: {}, STATE: {}}
        inside: set[str] = set()
        for (collection, module, leaf), (tree, paths) in self._trees.items():
            if all(path in stored for path in paths):
                value = jax.tree.unflatten(tree, [stored[path] for path in paths])
                bundles[collection].setdefault(module, {})[leaf] = value
                inside.update(paths)
        for path, value in stored.items():
            if path not in inside and (found := place(path)) is not None:
                collection, module, leaf = found
                bundles[collection].setdefault(module, {})[leaf] = value
        return bundles[PARAMS], bundles[STATE]

    def _learn(self, native: Native) -> None:
        for path, value in leaves(*native).items():
            self._known[path] = tuple(np.shape(value))
        self._learn_trees(native)

    def _learn_trees(self, native: Native) -> None:
        found = {}
        for module, inner in native[1].items():  # A parameter is an array: Haiku asks for its shape.
            for leaf, value in inner.items():
                tree = jax.tree.structure(value)
                if not jax.tree_util.treedef_is_leaf(tree):
                    found[STATE, module, leaf] = (tree, list(leaves({}, {module: {leaf: value}})))
        if found:
            self._trees = {**self._trees, **found}

    def _changed(self, old: Any, new: Any, stored: Entries, verified: set[Place]) -> dict[str, Any]:
        """Returns the state entries that a call wrote, by path, and notes which of them kept their shape."""
        changed: dict[str, Any] = {}
        for module, inner in new.items():
            before = old.get(module, {})
            for leaf, value in inner.items():
                if value is before.get(leaf):
                    continue
                entries = (
                    {_path(module, leaf): value} if hasattr(value, "shape") else leaves({}, {module: {leaf: value}})
                )
                changed.update((p, v) for p, v in entries.items() if v is not stored.get(p))
                if all(p in stored and np.shape(stored[p]) == np.shape(v) for p, v in entries.items()):
                    verified.add((STATE, module, leaf))
        return changed

    def _problems(self, stored: Entries, call: Call, absent: bool = False) -> dict[str, list[str]]:
        """Returns what is wrong with the stored entries for a call, by sort, from its structure found abstractly."""
        foreign = [f"unexpected {call.prefix + path!r}." for path in stored if place(path) is None]
        try:
            native = abstract_init(self.part, call.method, call.args).native
        except Exception:  # The code cannot be initialised with these arguments, so nothing is known.
            return {"unexpected": foreign} if foreign else {}
        wanted = leaves(*native)
        self._learn_trees(native)
        missing = [p for p in wanted if p not in stored]
        unknown = [p for p in stored if p not in wanted] if self.part.whole else []
        shapes = [p for p, want in wanted.items() if p in stored and _differ(stored[p], want)]
        at = call.prefix
        problems = {
            "missing": [f"missing {at + p!r} ({describe(wanted[p])}).{hint(p, unknown)}" for p in missing if absent],
            "shape": [
                f"{at + p!r} is {describe(abstract(stored[p]))} and must be {describe(wanted[p])}." for p in shapes
            ],
            "unexpected": [f"unexpected {at + p!r}.{hint(p, missing)}" for p in unknown] or foreign,
        }
        return {sort: lines for sort, lines in problems.items() if lines}

    def _complain(self, problems: Mapping[str, list[str]], call: Call, cause: Exception | None) -> None:
        if not problems:
            return
        error = (
            MissingEntryError if "missing" in problems else EntryShapeError if "shape" in problems else StructureError
        )
        remedies = {
            "missing": "load it, or create it: state = bridges.init(fn)(state, *args, seed=0)",
            "shape": "convert the values, or build the part with the sizes they have",
            "unexpected": "remove it from the state, or rename it to the entry that it was meant for",
        }
        raise error(
            f"The variables of {call.where} do not fit its Haiku code ({self.part.name}):\n"
            + listing(line for lines in problems.values() for line in lines)
            + "\nTo mend: "
            + "; ".join(f"what is {'misshapen' if s == 'shape' else s}, {remedies[s]}" for s in problems)
            + "."
        ) from cause


@contextlib.contextmanager
def rehearsal() -> Iterator[Context | None]:
    """Runs a `with` block in a copy of the running context, if there is one, and yields the copy.

    Haiku code that runs more than once for one call may hold other modules of this project, whose effects count once.
    """
    frame = current_frame()
    if frame is None or frame.context is None:
        yield None
        return
    running = frame.context
    copy = running.child(streams=None if running.streams is None else running.streams.fork())
    with enter(Frame(copy, frame.module, frame.scopes, frame.prefix)):
        yield copy


def _new(old: Any, new: Any) -> dict[str, Any]:
    """Returns the state entries that only the new state has."""
    added = {m: {leaf: v for leaf, v in inner.items() if leaf not in old.get(m, {})} for m, inner in new.items()}
    return leaves({}, added) if any(added.values()) else {}


def _missing(module: str, leaf: str, shape: Any, dtype: Any) -> Exception:
    return _Missing(f"missing {_path(module, leaf, PARAMS)!r} ({describe(jax.ShapeDtypeStruct(shape, dtype))})")


def init_explained(part: Part, key: Any, call: Call, watch: Watch | None = None) -> Native:
    """Returns what `part.init` returns; a missing key is a `SeedError`."""
    try:
        return part.init(key, call.method, call.args, watch or Watch())
    except Exception as err:
        _raise(explained(err, call.where, "to initialise itself"), err)


def _raise(err: Exception, cause: Exception) -> NoReturn:
    """Raises the error, from the cause if that is another one."""
    if err is cause:
        raise err
    raise err from cause


def _signature(shapes: Mapping[str, Any], call: Call) -> Any:
    """Returns a value that is equal for calls and entries of the same shapes; None if there is none."""
    found, tree = jax.tree.flatten(call.args)
    signature = (
        call.method,
        tree,
        tuple([getattr(x, "shape", x) for x in found]),
        tuple(shapes.items()),
        call.flags,
    )
    try:
        hash(signature)
    except TypeError:
        return None
    return signature


def _lacks_state(err: Exception) -> bool:
    """Whether Haiku says that `hk.get_state` without an initialiser found nothing; no hook sees that."""
    return isinstance(err, ValueError) and "perhaps set an init function?" in str(err)


def _made(filler: Filler, state: Any) -> Native:
    params: dict[str, dict[str, Any]] = {}
    for (module, leaf), value in filler.params.items():
        params.setdefault(module, {})[leaf] = value
    begun = {m: {leaf: filler.created.get((m, leaf), v) for leaf, v in inner.items()} for m, inner in state.items()}
    return params, begun


@functools.lru_cache(maxsize=1 << 16)
def _path(module: str, leaf: str, collection: str = STATE) -> str:
    return _flat.join([collection, *module.split(_flat.SEPARATOR), leaf])


def _differ(value: Any, want: Any) -> bool:
    """Whether shapes differ, where a typed key and an old-style one are the same."""
    keys = [jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) for x in (value, want) if hasattr(x, "dtype")]
    return tuple(np.shape(value)) != tuple(want.shape) and not any(keys)
