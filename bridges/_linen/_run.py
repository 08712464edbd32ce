"""A Linen call over the entries of a running context: made at first use, given what it needs, written back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax import errors as flax_errors
from flax import linen as nn
from flax.core import DenyList

from bridges._linen._call import Call
from bridges._linen._keys import Keys
from bridges._linen._memory import Learned, Memory
from bridges._linen._observe import RECORDED, Settled, Spy, Traits, missing_stream, modified_collection, settle
from bridges._linen._structure import Expected, Template, at, check_known, expect, needs_model
from bridges._linen._variables import entry_of, kind_of, leaves
from bridges.core import _flat
from bridges.core._context import Context
from bridges.core._errors import (
    EntryShapeError,
    MissingEntryError,
    PermissionsError,
    StructureError,
    describe,
    hint,
    listing,
)
from bridges.core._kind import Intermediate, Kind, kind_type

_MISSING = (
    flax_errors.ScopeParamNotFoundError,
    flax_errors.ScopeCollectionNotFound,
    flax_errors.ScopeVariableNotFoundError,
    flax_errors.ScopeParamShapeError,
)
_CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def perform(ctx: Context, where: str, memory: Memory, call: Call, keys: Keys, mutable: Any = None) -> Any:
    """Returns the output of a call, with the entries below `where` as its variables.

    Args:
      ctx: The running context.
      where: The wrapper's path; empty for a state that holds nothing else.
      memory: What the wrapper has learned.
      call: The module, method and arguments.
      keys: Where random keys come from.
      mutable: Collections that may be modified, as in `Module.apply`; None: those that the call itself modifies.
    """
    learned = memory.of(call, mutable)
    present = ctx.under(where) if where else dict(ctx.items())
    kinds = _kept(ctx, where, present)
    if ctx.create and (not learned.expected or not learned.expected.entries.keys() <= kinds.keys()):
        if not kinds:
            return _create(ctx, where, memory, call, keys, learned, mutable)
        _complete(ctx, where, call, keys, learned, kinds)
        present = ctx.under(where) if where else dict(ctx.items())
        kinds = _kept(ctx, where, present)
    run = _Run(ctx, where, memory, call, mutable, keys, learned, present, kinds)
    with _explained(run):
        out, updates = run()
    if updates:
        run.write(updates)
    return out


def _kept(ctx: Context, where: str, present: Mapping[str, Any]) -> dict[str, Kind]:
    """Returns the kinds of the entries that a call is given: all below a collection that no earlier call recorded.

    Entries that came without a kind (from a plain dictionary) are declared to be what their collection says.
    """
    prefix = where + _flat.SEPARATOR if where else ""
    kinds: dict[str, Kind] = {}
    for path in present:
        collection, _, rest = path.partition(_flat.SEPARATOR)
        if not rest:
            continue  # An entry of the wrapper itself.
        kind = ctx.declared(prefix + path)
        if kind is None:
            kind = kind_of(_flat.unescape(collection))
            ctx.declare(prefix + path, kind)
        if collection != RECORDED and not issubclass(kind_type(kind), Intermediate):
            kinds[path] = kind
    return kinds


def _create(ctx: Context, where: str, memory: Memory, call: Call, keys: Keys, learned: Learned, mutable: Any) -> Any:
    """Makes all variables of a call as Linen's own `init` does, and returns the output of that same run.

    The output is that of `init_with_output`, because there are models that can be initialised with inputs that they
    cannot be called with: an autoregressive cache is made with the whole sequence and then called a token at a time.
    """
    spy = Spy()
    with keys.explained(), _watching(spy):
        out, variables = call.init(keys.initial(), mutable=True)
    traits = Traits(sown=frozenset(spy.sown))
    for path, leaf in leaves(variables).items():
        value, metadata = entry_of(leaf)
        collection = _flat.split(path)[0]
        ctx.write(at(where, path), value, kind_of(collection, traits.sows(path), **metadata))
    kept = {col: tree for col, tree in variables.items() if col != RECORDED}
    learned.expected = Expected.of(kept, spy)
    if learned.traits is None and any(not path.startswith("params/") for path in learned.expected.entries):
        present = ctx.under(where) if where else dict(ctx.items())
        run = _Run(ctx, where, memory, call, mutable, keys, learned, present, _kept(ctx, where, present))
        with contextlib.suppress(Exception):  # The first call will say what is wrong, if it is made this way at all.
            settled = run.rehearse()
            learned.traits = None if settled is None else settled.traits
    return out


def _complete(ctx: Context, where: str, call: Call, keys: Keys, learned: Learned, kinds: Mapping[str, Kind]) -> None:
    """Makes the variables of a call that are not there yet; those that are stay as they are."""
    learned.expected = expect(call, keys.abstract()) or False
    if not learned.expected:
        return  # Such a call cannot begin with nothing; if something is missing it says so.
    check_known(call, kinds, learned.expected, where)
    missing = learned.expected.entries.keys() - kinds.keys()
    if not missing:
        return
    with keys.explained():
        _, variables = call.init(keys.initial())
    for path, leaf in leaves(variables).items():
        if path in missing:
            value, metadata = entry_of(leaf)
            ctx.write(at(where, path), value, kind_of(_flat.split(path)[0], **metadata))


class _Run:
    """One call over entries that are there."""

    def __init__(
        self,
        ctx: Context,
        where: str,
        memory: Memory,
        call: Call,
        mutable: Any,
        keys: Keys,
        learned: Learned,
        present: Mapping[str, Any],
        kinds: Mapping[str, Kind],
    ):
        self.ctx, self.where, self.memory, self.call, self.keys = ctx, where, memory, call, keys
        self.mutable, self.learned, self.present, self.kinds = mutable, learned, present, kinds
        self.traits = learned.traits or Traits()

    @property
    def name(self) -> str:
        """The module's class and where it is, for errors."""
        return type(self.call.model).__name__ + (f" at {self.where!r}" if self.where else "")

    def __call__(self) -> tuple[Any, Any]:
        learned, kinds = self.learned, self.kinds
        if learned.expected is None and needs_model(kinds):
            learned.expected = self.memory.fitting(self.call, self.present) or self._expect()
        if learned.expected and (wrong := learned.expected.misshapen(self.present)):
            # Perhaps another batch than the one that the expectation was made for.
            wrong = (self._expect() or learned.expected).misshapen(self.present)
            _flat.check_shapes([(at(self.where, path), value, want) for path, value, want in wrong])
        if learned.traits is not None and self._checked():
            try:
                return self._apply(self.call, learned.traits, self.present, self.keys.draw(learned.traits.streams))
            except (flax_errors.ModifyScopeVariableError, flax_errors.InvalidRngError):
                pass  # The call goes another way than before, for reasons that its signature does not show.
        return self._learn()

    def _checked(self) -> bool:
        """Whether there are no entries but those that such a call was found to be fine with."""
        checked, expected, paths = self.learned.checked, self.learned.expected, tuple(self.kinds)
        if paths not in checked and expected and expected.entries.keys() <= self.kinds.keys():
            with contextlib.suppress(StructureError):  # Unless the call is seen to ask for them.
                check_known(self.call, paths, expected, self.where)
                checked.add(paths)
        return paths in checked

    def _learn(self) -> tuple[Any, Any]:
        """Finds out what the call does, in abstract where it has state that it might modify, and runs it."""
        settled = self.rehearse() if self._stateful() or not self.keys.free else None
        if settled is not None:
            result = self._apply(self.call, settled.traits, self.present, self.keys.draw(settled.traits.streams))
        else:
            with self.keys.trial() as release:
                keys = self.keys.draw(None)
                settled = self._confirmed(self._settle(self.call, self.present, keys))
                release(settled.traits.streams)
            result = settled.result
        kept = [path for path in self.kinds if not settled.traits.sows(path)]
        unseen = [path for path in kept if not any(_flat.under(path, variable) for variable in settled.touched)]
        if self.learned.expected is None and unseen:
            self.learned.expected = self._expect()
        if self.learned.expected:
            check_known(self.call, unseen, self.learned.expected, self.where)
        self.learned.traits = self.traits = settled.traits
        self.learned.checked.add(tuple(self.kinds))
        return result

    def _stateful(self) -> bool:
        return any(not path.startswith("params/") for path in self.kinds)

    def _settle(self, call: Call, entries: Mapping[str, Any], keys: Any) -> Settled:
        recorded = {_flat.split(path)[0] for path in self.present if path not in self.kinds and "/" in path}
        begin = Traits(mutable=Traits().mutable | recorded)
        paths = list(self.kinds)
        return settle(lambda t: self._apply(call, t, entries, keys), begin, paths, self.mutable is not None)

    def rehearse(self) -> Settled | None:
        """Finds out what the call does without running it, so that no attempt at it leaves anything in the trace.

        None if the call looks at the values of its inputs, as an eager one may.
        """
        keys = self.keys.abstract()
        entries = {path: self.present[path] for path in self.kinds}
        found: list[Settled] = []

        def dry(call: Call, entries: Mapping[str, Any], keys: Any) -> None:
            found.append(dataclasses.replace(self._settle(call, entries, keys), result=None))

        try:
            self.call.abstract(dry, entries, keys)
        except _CONCRETE:
            return None
        return self._confirmed(found[-1])

    def _confirmed(self, settled: Settled) -> Settled:
        """Returns the settled call with all streams that it needs: those that were not seen to be used are taken away."""
        streams = settled.traits.streams
        if not self.keys.metered or settled.stock:
            return settled
        entries = {path: self.present[path] for path in self.kinds}

        def dry(call: Call, entries: Mapping[str, Any], keys: Any) -> None:
            self._apply(call, settled.traits, entries, keys)

        every = frozenset(self.keys.abstract() or ())
        while self.keys.abstract(streams) != self.keys.abstract():
            try:
                self.call.abstract(dry, entries, self.keys.abstract(streams))
                break
            except flax_errors.InvalidRngError as err:
                streams |= {missing_stream(err)} if missing_stream(err) not in streams else every
            except _CONCRETE:
                streams |= every
        return dataclasses.replace(settled, traits=dataclasses.replace(settled.traits, streams=streams))

    def _apply(self, call: Call, traits: Traits, entries: Mapping[str, Any], keys: Any) -> tuple[Any, Any]:
        self.traits = traits
        return call.apply(self._template(traits).build(entries), keys, self._filter(traits))

    def _template(self, traits: Traits) -> Template:
        key = self._shape_key(traits)
        template = self.learned.templates.get(key)
        if template is None:
            kinds = {path: kind for path, kind in self.kinds.items() if not traits.sows(path)}
            template = Template(kinds, self.learned.expected.parts if self.learned.expected else {})
            self.learned.templates[key] = template
        return template

    def _shape_key(self, traits: Traits) -> Any:
        return tuple(self.kinds.items()), traits.sown

    def _filter(self, traits: Traits) -> Any:
        mutable = self.mutable
        if mutable is None:
            return traits.mutable
        if isinstance(mutable, (bool, DenyList)):
            return mutable
        return {mutable, *_recorded(traits)} if isinstance(mutable, str) else {*mutable, *_recorded(traits)}

    def _asked(self, collection: str) -> bool:
        """Whether the caller named a collection of which there is nothing, as one makes a cache in Linen."""
        named = isinstance(self.mutable, (str, list, tuple, set)) and collection in (
            {self.mutable} if isinstance(self.mutable, str) else self.mutable
        )
        return named and not any(_flat.split(path)[0] == collection for path in self.kinds)

    def _expect(self) -> Expected | Literal[False]:
        return expect(self.call, self.keys.abstract()) or False

    def write(self, updates: Any) -> None:
        """Writes what the call left in the mutable collections."""
        flat, create = leaves(updates), self.ctx.create
        recorded = {p for p in flat if self.traits.sows(p) or (p in self.present and p not in self.kinds)}
        new = [p for p in flat if p not in self.kinds and p not in recorded]
        made_up = [p for p in new if not self._asked(_flat.split(p)[0])]
        if made_up and not create:  # A missing entry of a mutable collection: Linen made it up.
            raise self.lacking({path: entry_of(flat[path])[0] for path in made_up})
        for path, leaf in flat.items():
            value, metadata = entry_of(leaf)
            full, sown = at(self.where, path), path in recorded
            known = path in self.present if sown else path in self.kinds
            if known and ("node" in metadata or value is self.present[path]):
                continue
            kind = kind_of(_flat.split(path)[0], sown, **metadata) if sown or not known else None
            self.ctx.write(full, value, kind)

    def explain(self, err: Exception) -> Exception:
        """Returns the error that says in our words, with paths, what Linen found missing or misshapen."""
        known = self._expect()
        expected = known.entries if known else {}  # If there are none, Linen's own words have to do.
        missing = {path: want for path, want in expected.items() if path not in self.present}
        extra = [path for path in self.kinds if expected and path not in expected]
        if isinstance(err, flax_errors.ScopeParamShapeError):
            wrong = [
                f"{at(self.where, path)!r}: got {describe(self.present[path])}, wanted {describe(want)}"
                for path, want in expected.items()
                if path in self.present and np.shape(self.present[path]) != want.shape
            ]
            return EntryShapeError(
                f"Entries of {self.name} do not have the shapes that its call with these inputs wants:\n"
                + listing([*(wrong or [str(err)]), *self._unmatched(missing, extra)])
                + "\nConvert the values, give the module the sizes they have, or check the shape of the inputs."
            )
        return self.lacking(missing, extra, str(err))

    def _unmatched(self, missing: Mapping[str, Any], extra: Sequence[str]) -> list[str]:
        """Returns a line for every entry that is missing, and every one that nothing asked for."""
        lines = [
            f"missing {at(self.where, path)!r} ({describe(want)}){hint(path, extra)}" for path, want in missing.items()
        ]
        return lines + [f"unexpected {at(self.where, path)!r}" for path in extra]

    def lacking(self, missing: Mapping[str, Any], extra: Sequence[str] = (), otherwise: str = "") -> MissingEntryError:
        """Returns the error that lists missing entries, beside those that nothing asked for."""
        lines = self._unmatched(missing, extra) if missing else [otherwise]
        return MissingEntryError(
            f"The state lacks entries that {self.name} needs:\n"
            + listing(lines)
            + "\nLoad them, or create them: state = bridges.init(fn)(state, *args, seed=0)"
            + (f" with a function that calls {self.where!r} this way." if self.where else ".")
        )


def _recorded(traits: Traits) -> set[str]:
    return {RECORDED, *(_flat.split(path)[0] for path in traits.sown)}


@contextlib.contextmanager
def _watching(spy: Spy) -> Iterator[None]:
    with nn.intercept_methods(spy):
        yield


@contextlib.contextmanager
def _explained(run: _Run) -> Iterator[None]:
    """Translates Linen's errors about variables and streams, which know nothing of the host."""
    try:
        with run.keys.explained():
            yield
    except _MISSING as err:
        raise run.explain(err) from err
    except flax_errors.ModifyScopeVariableError as err:
        raise PermissionsError(
            f"The call of {run.name} modifies the collection"
            f" {modified_collection(err)!r}, and mutable={run.mutable!r} was passed. Add the collection, or leave mutable="
            " out: what the call modifies is then written back."
        ) from err
