"""One call of a part in a Linen scope: given the scope's variables, with what it modifies put back."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax

from bridges._host._fit import abstract_entries, check_fit
from bridges._host._training import told
from bridges._linen._call import Call
from bridges._linen._module_stack import apart, captured_once, in_scope_of_another
from bridges._linen._passed_keys import PassedKeys
from bridges._linen._placed import Held, Place, at, known_kind, nested, placed, recorded, shown
from bridges._linen._scope_errors import Immutable, NoStream, stream_of
from bridges._linen._scope_keys import ScopeStreams
from bridges.core._context import Context
from bridges.core._errors import (
    BridgeError,
    ContextError,
    CreateError,
    MissingEntryError,
    SeedError,
    StructureError,
    listing,
)
from bridges.core._frame import Frame, enter
from bridges.core._jaxpr import depends
from bridges.core._kind import Kind, is_transient
from bridges.core._state import State


class _NNXContext(Context):
    """A context in which a call may make Variables that no constructor makes, as NNX modules do; none is initialised."""

    __slots__ = ()

    def write(self, path: str, value: Any, kind: Kind | None = None) -> Any:
        before, self.create = self.create, True
        try:
            return super().write(path, value, kind)
        finally:
            self.create = before

    __setitem__ = write


class Run:
    """A call of a bound module.

    Args:
      module: The module, a `ToLinen`.
    """

    def __init__(self, module: Any):
        self.module, self.host = module, module.host
        self.scope = module.scope
        if self.scope is None:
            raise ContextError(
                f"ToLinen({self.host!r}) was called, and is bound to no variables: variables = model.init(key, x), then"
                " model.apply(variables, x); or call it in the method of another Linen module."
            )
        self.creating = module.is_initializing()
        self.shared = module.name not in (None, self.scope.name) or in_scope_of_another(module)

    @property
    def where(self) -> str:
        """What the module is called in errors."""
        path = "/".join(self.scope.path)
        return f"ToLinen({self.host!r})" + (f" at {path!r}" if path else "")

    def __call__(self, method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Returns the output of the call."""
        host = self.host
        kwargs, flags = told(host, method, args, kwargs)
        if host.framework == "flax.linen":
            return self._handed_through(Call(host.module._linen, method, args, kwargs))
        streams = ScopeStreams.begun(self.module)
        with apart(), self._explained(streams):
            held = Held(host, self._own(method, args, kwargs, flags))
            kept = PassedKeys(host, streams) if host.framework == "flax.nnx" else None
            entries = held.state if kept is None or self.creating else held.state.merge(kept.entries())
            if host.core and not self.creating:
                self._check(held, method, args, kwargs, flags)
            cls = _NNXContext if host.framework == "flax.nnx" else Context

            def call(entries: State) -> tuple[Context, Any]:
                ctx = cls(entries, streams=streams, create=self.creating, flags=flags, root=host.module)
                with enter(Frame(ctx, None)):
                    return ctx, host.call(method, args, kwargs)

            ctx, out = call(entries)
            drawn = {} if kept is None or self.creating else self._drawn(kept, ctx, entries, call)
        if self.creating:
            self._learn(ctx, method)
        self._put(ctx, held, () if kept is None else kept.paths)
        if streams is not None:
            streams.advance(drawn)
        return out

    def _drawn(
        self, kept: PassedKeys, ctx: Context, entries: State, call: Callable[[State], tuple[Context, Any]]
    ) -> dict[str, str]:
        """Returns the streams that an NNX part has drawn from: their names in NNX -> the streams of the scope."""
        drawn = kept.drawn(ctx)
        if lacking := kept.lacking(drawn):

            def results(keys: dict[str, Any]) -> list[Any]:
                ctx, out = call(entries | keys)
                changed = [ctx.entries[p] for p in {*ctx.created, *ctx.modified} - kept.paths]
                return [leaf for leaf in jax.tree.leaves((out, changed)) if hasattr(leaf, "dtype")]

            keys = {self.host.inner(stream.key): entries[self.host.inner(stream.key)] for stream in lacking}
            try:
                matters = depends(results, keys)
            except jax.errors.ConcretizationTypeError:
                matters = True
            if matters:
                raise NoStream(lacking[0].tag, (), f"{self.where} (its {lacking[0].path!r})")
        return kept.named(drawn)

    def _handed_through(self, call: Call) -> Any:
        """Returns the output of a Linen part, which needs no other scope than this."""
        bound = vars(self.module).get("_linen")
        if bound is None:
            bound = call.model.copy(parent=self.scope, name=self.module.name)
            object.__setattr__(self.module, "_linen", bound)  # On the clone that Linen makes for each apply.
        with captured_once(bound):
            return call.run(bound)

    def _check(self, held: Held, method: Any, args: Any, kwargs: Any, flags: Any) -> None:
        """Compares the entries of a core part as a whole; its wrappers check theirs, and it takes what is there."""
        seen = method, _fingerprint(held.state)
        if seen in self.host.fitting:
            return

        def name(path: str, kind: Kind) -> str:
            return shown(held.places.get(path) or placed(self.host, path, kind))

        run = functools.partial(self.host.call, method, args, kwargs)
        wanted = check_fit(self.host, held.state, run, flags, name)
        if wanted is None:
            return
        right = {path: placed(self.host, path, kind) for path, kind in wanted.kinds.items()}
        self._check_places(held, right)
        self.host.fitting = {*self.host.fitting, seen}

    def _check_places(self, held: Held, right: Mapping[str, Place]) -> None:
        wrong = [
            f"{shown(place)!r} belongs into {shown(right[path])!r}"
            for path, place in held.places.items()
            if path in right and place != right[path]
        ]
        if wrong:
            raise StructureError(f"Variables of {self.where} lie in the wrong collection:\n" + listing(wrong))

    def _learn(self, ctx: Context, method: Any) -> None:
        """Remembers that what was made is what such calls need."""
        if self.host.core:
            kinds = {p: known_kind(self.host, placed(self.host, p, _sure(ctx, p))[0], {}) for p in ctx.entries}
            made = State(ctx.entries, {p: kind for p, kind in kinds.items() if kind is not None})
            self.host.fitting = {*self.host.fitting, (method, _fingerprint(made))}

    def _own(self, method: Any, args: Any, kwargs: Any, flags: Any) -> Mapping[str, Any]:
        """Returns the scope's variables without those of the modules that it is shared with (`nn.share_scope`)."""
        variables, taken = self.module.variables, self.scope.reservations
        names = None
        if not self.creating and self.shared:
            # The scope is another module's, which may yet declare variables of its own.
            run = functools.partial(self.host.call, method, args, kwargs)
            needed = abstract_entries(self.host, run, flags)
            names = None if needed is None else {placed(self.host, p, k)[1][0] for p, k in needed.kinds.items()}
        return {
            collection: {name: v for name, v in tree.items() if name not in taken and (names is None or name in names)}
            for collection, tree in variables.items()
        }

    @contextlib.contextmanager
    def _explained(self, streams: ScopeStreams | None) -> Iterator[None]:
        try:
            yield
        except NoStream:
            raise
        except SeedError as err:
            given = () if streams is None else streams.source.names.values()
            raise NoStream(stream_of(err), given, self.where, self.creating) from err
        except (CreateError, MissingEntryError) as err:
            if not getattr(err, "_to_linen", False):
                err._to_linen = True  # type: ignore[union-attr]
                err.add_note(
                    f"This is {self.where}. Its variables are made by model.init(key, …), with the method that is"
                    " called; apply makes none up."
                )
            raise
        except BridgeError as err:
            err.add_note(f"This is {self.where}.")
            raise

    # Writing ---------------------------------------------------------------------------------------------------------

    def _put(self, ctx: Context, held: Held, passed: Collection[str]) -> None:
        """Puts what a call has made or modified into the scope, but for what is passed in at each call."""
        frozen: dict[str, list[str]] = {}
        kept: dict[Place, Any] = {}
        sown: dict[Place, Any] = {}
        for path in sorted({*ctx.created, *(ctx.modified if not self.creating else ())}):
            if path in passed:
                continue
            kind = _sure(ctx, path)
            value = ctx.created[path] if self.creating else ctx.entries[path]
            place = held.places.get(path) or placed(self.host, path, kind)
            if is_transient(kind) and path not in held.places:
                if self.scope.is_mutable_collection(place[0]):
                    sown[place] = value
            elif path in held.places and value is held.state[path]:
                continue
            elif self.scope.is_mutable_collection(place[0]):
                kept[place] = held.leaf(path, value, kind)
            elif path in held.places or place[0] != "perturbations":  # Linen perturbs where it is given a perturbation.
                frozen.setdefault(place[0], []).append(shown(place))
        if self.host.core:
            self._check_places(held, {p: placed(self.host, p, kind) for p, kind in ctx.declarations.items()})
        if frozen:
            raise Immutable(frozen, self.where)
        self._check_names(kept)
        variables = self.module.variables
        again = self._recorded_in_this_apply()
        for place, values in recorded(sown).items():
            before = at(variables, place) if place in again else None
            both = isinstance(before, tuple) and isinstance(values, tuple)
            kept[place] = (*before, *values) if both else values  # type: ignore[misc]
            again.add(place)
        if sown:
            self.host.recorded = self.host.recorded | sown.keys()
        for collection, tree in nested(kept).items():
            for name, below in tree.items():
                self.scope.put_variable(collection, name, below)

    def _check_names(self, kept: Mapping[Place, Any]) -> None:
        taken = sorted({names[0] for _, names in kept} & set(self.scope.reservations))
        if taken:
            raise StructureError(
                f"{self.where} has variables of the names {taken}, which other modules of the scope that it shares have"
                " taken. Rename one of the two."
            )

    def _recorded_in_this_apply(self) -> set[Place]:
        """Returns the places that calls of this module have recorded into since the variables came in; it grows."""
        known = vars(self.module).get("_recorded")
        if known is None:
            known = set()
            object.__setattr__(self.module, "_recorded", known)  # On the clone that Linen makes for each apply.
        found: set[Place] = known
        return found


def _fingerprint(entries: State) -> frozenset[tuple[str, tuple[int, ...]]]:
    """Returns the paths and shapes of what lasts from call to call."""
    lasting = (path for path, kind in entries.kinds.items() if not is_transient(kind))
    return frozenset((path, tuple(entries[path].shape)) for path in lasting)


def _sure(ctx: Context, path: str) -> Kind:
    kind = ctx.kind(path)
    assert kind is not None
    return kind
