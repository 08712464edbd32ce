"""What is known of one wrapped model: the templates of its module, by the entries that there are and the flags.

The entries decide which template fits: that of the constructor, with the random streams that the entries show, with the
Variables that calls have created (a decoding cache), without recorded ones that were taken out of the state. Everything
that does not fit is listed in one error.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from bridges._nnx._call import Call
from bridges._nnx._instance import Instance, is_recorded
from bridges._nnx._kept_streams import KeptStream, asked_streams, kept_streams
from bridges._nnx._leaves import Leaf
from bridges._nnx._maker import Maker
from bridges._nnx._template import Flags, Template
from bridges.core import _flat
from bridges.core._errors import MissingEntryError, SeedError, StructureError, describe, hint, listing
from bridges.core._kind import Kind
from bridges.core._spec import abstract
from bridges.core._state import Layout

Streams = tuple[str, ...]


class Last(NamedTuple):
    """The last call: one like it, in a state of that layout, needs not look for its template and entries again.

    Attributes:
      layout: The layout of the state.
      situation: The wrapper's path, the flags, and the names of the streams.
      template: The template.
      places: The entries that are given to the module: path below the wrapper, full path.
    """

    layout: Layout
    situation: tuple[str, Flags, Streams]
    template: Template
    places: tuple[tuple[str, str], ...]


class Memory:
    """What one wrapper has learned; only ever grows, so that threads may share it.

    Args:
      maker: What makes the module.
    """

    __slots__ = ("maker", "bases", "templates", "created", "asked", "kept", "last")

    def __init__(self, maker: Maker):
        self.maker = maker
        self.bases: dict[Streams, tuple[Template, bool]] = {}
        self.templates: dict[Any, Template] = {}
        self.created: dict[str, Leaf] = {}  # Variables that calls have created, by the paths of their entries.
        self.asked: Streams | None = None  # The streams that the constructor asks for.
        self.kept: dict[Streams, tuple[KeptStream, ...]] = {}
        self.last: Last | None = None

    def pure(self) -> Memory:
        """Returns what is known of the same model where each call stands for itself, as in Linen.

        Variables are not placed on a mesh as they are made, and the modes that a call sets last as long as the call.

        Equal classes with equal arguments share it: a Linen module is made anew at every trace.
        """
        ctor, args, kwargs = self.maker.ctor, self.maker.args, self.maker.kwargs
        given = (*args, *kwargs.values())
        if isinstance(ctor, type) and all(map(_plain, given)):
            return _pure(ctor, *args, **kwargs)
        return _purely(self)

    def base(self, streams: Streams = ()) -> tuple[Template, bool]:
        """Returns the template of what the constructor makes with such streams, and whether that needs a key."""
        if not self.maker.takes_rngs:
            streams = ()
        if streams not in self.bases:
            keyed: list[bool] = []

            def make() -> Any:
                module, drawn = self.maker.watched(streams)
                keyed.append(drawn)
                return module

            self.bases[streams] = Template.traced(make), keyed[-1]
        return self.bases[streams]

    def kept_streams(self, given: Iterable[str] | None) -> tuple[KeptStream, ...]:
        """Returns the random streams that the module keeps, when those given and those that it asks for are there.

        With None they are those of a module that one key was given to.
        """
        if given is None:
            streams: Streams = ()
        else:
            if self.asked is None:
                self.asked = asked_streams(self.maker)
            streams = tuple(sorted({*given, *self.asked, "default"}))
        if streams not in self.kept:
            self.kept[streams] = kept_streams(self.base(streams)[0])
        return self.kept[streams]

    def given(self, path: str, kind: Kind | None) -> bool:
        """Whether an entry is given to the module; what calls record is not, unless the constructor made a place for it."""
        recorded = path.startswith("intermediates/") if kind is None else is_recorded(kind)
        return not recorded or path in self.base()[0].entries

    def learn(self, leaves: Iterable[Leaf]) -> None:
        """Remembers Variables that a call has created."""
        self.created.update({path: leaf for leaf in leaves if not is_recorded(leaf.kind) for path in leaf.entries})

    def constructed(self, keys: Mapping[str, str | None], streams: Streams) -> Streams:
        """Returns the random streams with which the constructor makes a state's keys, as nearly as can be told.

        Args:
          keys: Path -> the stream's name, or None if it is not known, of the entries that are random keys.
          streams: The streams of the running call.
        """
        if not self.maker.takes_rngs:
            return ()
        if not keys:  # They are still to be made, or the module keeps none.
            return streams if self._keys(()) else ()
        tags = tuple(sorted({tag or _flat.split(path)[-2] for path, tag in keys.items()}))
        best: Streams = ()
        distance: int | None = None
        for candidate in dict.fromkeys((*list(self.bases), (), streams, tags, (*tags, "params"), ("default", *tags))):
            with contextlib.suppress(SeedError):
                made = self._keys(candidate)
                if made.keys() == keys.keys() and all(tag in (None, made[path]) for path, tag in keys.items()):
                    return candidate
                if distance is None or len(made.keys() ^ keys.keys()) < distance:
                    best, distance = candidate, len(made.keys() ^ keys.keys())
        return best

    def _keys(self, streams: Streams) -> dict[str, str]:
        kinds = self.base(streams)[0].kinds
        return {path: str(tag_of(kind)) for path, kind in kinds.items() if path.startswith("RngKey/")}

    def fitting(self, present: Mapping[str, Any], streams: Streams, flags: Flags, call: Call, where: str) -> Template:
        """Returns the template for entries.

        Args:
          present: The entries that are given to the module, below the wrapper.
          streams: The random streams with which the constructor makes them.
          flags: What to set before the call.
          call: The call at hand.
          where: The wrapper's path.

        Raises:
          MissingEntryError: There are too few entries; all that are missing are listed.
          StructureError: There are entries that the module has no use for; all are listed.
        """
        key = (streams, flags, tuple(present))
        template = self.templates.get(key)
        if template is None:
            template = self._fitted(present, streams, call, where).flagged(flags)
            self.templates[key] = template
        return template

    def _fitted(self, present: Mapping[str, Any], streams: Streams, call: Call, where: str) -> Template:
        base = self.base(streams)[0]
        missing = [path for path in base.entries if path not in present]
        unknown = [path for path in present if path not in base.entries]
        taken_out = [path for path in missing if is_recorded(base.kinds[path])]
        added: dict[str, Leaf] = {}
        for path in unknown:
            found = self.created.get(path) or _created(base, path, present[path])
            if found is not None:
                added.update(dict.fromkeys(found.entries, found))
        if len(missing) == len(taken_out) and not added.keys() >= set(unknown):
            self._rehearse(base, call, present)
            added.update({path: self.created[path] for path in unknown if path in self.created})
        unknown = [path for path in unknown if path not in added]
        missing = [path for path in [*missing, *added] if path not in present and path not in taken_out]
        if missing or unknown:
            raise _misfit(self.maker.name, base, missing, unknown, where)
        template = base.without(taken_out) if taken_out else base
        return template.extended(dict.fromkeys(added.values())) if added else template

    def _rehearse(self, base: Template, call: Call, present: Mapping[str, Any]) -> None:
        """Finds out, in abstract, which Variables such a call creates."""

        def dry(call: Call, entries: Mapping[str, Any]) -> None:
            instance = Instance(base, entries)
            call.run(instance.module, base.sows)
            self.learn(instance.changes(passing=self.maker.passing).leaves)

        with contextlib.suppress(Exception):  # The call itself will say what is wrong with it.
            call.abstract(dry, {path: present[path] for path in base.entries})


def _created(base: Template, path: str, value: Any) -> Leaf | None:
    """Returns the leaf of an entry that only a call can have created, if its collection says that it is such a one."""
    collection, *parents, name = _flat.split(path)
    with contextlib.suppress(ValueError):
        cls = nnx.variable_type_from_name(collection)
        nodes = base.nodes()
        above = _flat.join(parents)
        if issubclass(cls, (nnx.Cache, nnx.Perturbation)) and above in nodes and name.isidentifier():
            return Leaf.of((*nodes[above], name), cls(abstract(value)))
    return None


def _misfit(name: str, base: Template, missing: list[str], unknown: list[str], where: str) -> Exception:
    lines = [
        f"missing {at(where, path)!r} ({describe(base.entries.get(path))}){hint(path, unknown)}" for path in missing
    ]
    lines += [f"unexpected {at(where, path)!r}{hint(path, missing)}" for path in unknown]
    if not missing:
        return StructureError(
            f"{name} at {where!r} has no use for these entries:\n"
            + listing(lines)
            + "\nRename them, or remove them from the state: state.pop(path)."
        )
    return MissingEntryError(
        f"The state lacks entries that {name} at {where!r} needs:\n"
        + listing(lines)
        + "\nLoad them, or create them: state = bridges.init(fn)(state, *args, seed=0)."
    )


def tag_of(kind: Kind | None) -> str | None:
    """Returns the name of the random stream that a kind remembers."""
    return None if kind is None or isinstance(kind, type) else kind.metadata.get("tag")


def at(where: str, path: str) -> str:
    """Returns the full path of an entry below a wrapper."""
    return f"{where}{_flat.SEPARATOR}{path}" if where else path


@functools.lru_cache(maxsize=512, typed=True)
def _pure(ctor: type, /, *args: Any, **kwargs: Any) -> Memory:
    return _purely(Memory(Maker(ctor, args, kwargs)))


def _purely(memory: Memory) -> Memory:
    memory.maker.places = False
    memory.maker.passing = frozenset(("deterministic", "use_running_average"))
    return memory


def _plain(value: Any) -> bool:
    """Whether equal arguments make equal modules, and hold no array: functions and types are equal if they are the same."""
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, type, types.FunctionType, np.dtype, jnp.dtype))
