"""jit, grad, value_and_grad and checkpoint, lifted over state, random streams and scopes.

Each runs the function in a child context that belongs to the inner trace, hands the child's effects out of the trace as
outputs, and writes them to the outer context. Where initial values must be real before the transformation can be built
(gradients with respect to entries that do not exist yet), the function is run once inline first, creating only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from bridges.core._context import Context, context
from bridges.core._errors import UnsupportedError, listing
from bridges.core._frame import Frame, current_frame, enter
from bridges.core._kind import Kind
from bridges.core._module import Module
from bridges.core._pure import Static, jit_outside, running, shifted, signed, static_arguments
from bridges.core._rng import Streams
from bridges.core._state import State
from bridges.core._targets import Targets, kept, resolve


class Body:
    """A stateful function as a transformation sees it: bound to the frame in which the transformation was called.

    Args:
      fn: The function.
    """

    def __init__(self, fn: Callable[..., Any]):
        self.fn = fn
        self.outer = context()
        frame = current_frame()
        self.frame = frame if frame is not None else Frame(self.outer, None)
        self.begin = frozenset(self.frame.names)

    def run(self, ctx: Context, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Runs the function in a child context, under the scope and the automatic names of the frame it came from.

        However often it runs, it takes the same names, and the frame goes on after them.
        """
        names = set(self.begin)
        with enter(Frame(ctx, self.frame.module, self.frame.scopes, self.frame.prefix, names)):
            out = self.fn(*args, **kwargs)
        self.frame.names |= names
        return out

    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """Creates what the function needs, by running it inline once; its other effects are dropped."""
        prepare([self.fn], args, kwargs)

    def learn(self, *args: Any, **kwargs: Any) -> None:
        """Lets the function declare the kinds of entries that came without (a plain dictionary), by tracing it once."""
        if all(self.outer.declared(path) is not None for path in self.outer.entries):
            return

        def run() -> None:
            self.run(self.child(), args, kwargs)

        jax.eval_shape(run)

    def child(self, entries: Mapping[str, Any] | None = None, create: bool = False) -> Context:
        """Returns a child context for the trace that runs now; its streams go on where the outer ones are."""
        streams = self.outer.streams.fork() if self.outer.streams is not None else None
        return self.outer.child(entries, streams, create=create)

    def commit(self, effects: Effects, streams: Streams | None = None) -> None:
        """Writes to the outer context what the child did."""
        commit(self.outer, effects)
        if self.outer.streams is not None:
            self.outer.streams.join(streams)


def prepare(functions: Sequence[Callable[..., Any]], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Creates what functions that will run beside each other need, by running each inline once, creating only."""
    outer, frame = context(), current_frame()
    if not outer.create:
        return
    names = set() if frame is None else set(frame.names)
    for fn in functions:
        # The containers are copied, so that a function that empties its arguments does so once.
        args, kwargs = jax.tree.map(lambda x: x, (args, dict(kwargs)))
        child = outer.child(streams=outer.streams.fork() if outer.streams is not None else None)
        Body(fn).run(child, args, kwargs)
        outer.adopt(child.created)
    if frame is not None:
        frame.names &= names


class Effects:
    """What a child context did, as a pytree that can leave a trace: values created and modified, and paths removed."""

    __slots__ = ("created", "modified", "removed")

    def __init__(self, created: dict[str, Any], modified: dict[str, Any], removed: tuple[str, ...] = ()):
        self.created, self.modified, self.removed = created, modified, removed

    @classmethod
    def of(cls, ctx: Context) -> Effects:
        """Returns the effects of a child context."""
        return cls(
            dict(ctx.created), {path: ctx.read(path) for path in sorted(ctx.modified)}, tuple(sorted(ctx.removed))
        )

    def written(self, transformation: str) -> dict[str, Any]:
        """Returns all values written, for a transformation that runs its function more than once, or perhaps not at all.

        Raises:
          UnsupportedError: Entries are removed.
        """
        if self.removed:
            raise UnsupportedError(
                f"Entries are removed inside of bridges.{transformation}:\n{listing(map(repr, self.removed))}\nThat it would"
                " happen once cannot be said there. Remove them after it; what the function itself has recorded may be"
                " removed in it."
            )
        return {**self.created, **self.modified}


jax.tree_util.register_pytree_node(
    Effects, lambda e: ((e.created, e.modified), e.removed), lambda removed, children: Effects(*children, removed)
)


def commit(ctx: Context, effects: Effects) -> None:
    """Writes effects to a context: initial values first, so that they are known as such."""
    ctx.adopt(effects.created)
    for path, value in effects.modified.items():
        ctx.write(path, value, ctx.kind(path))
    for path in effects.removed:
        ctx.remove(path)


def grad(fn: Callable[..., Any], targets: Targets, has_aux: bool = False) -> Callable[..., Any]:
    """Returns a function that gives `(loss, params, grads)`, with respect to state entries or arguments.

    Args:
      fn: A stateful function that returns a scalar loss (`(loss, aux)` with `has_aux`).
      targets: Modules, paths, prefixes, kinds, a mapping such as `getm` gives, or a list of these: the entries to
        differentiate with respect to. A module or prefix stands for its `Param` entries, a kind (or a filter, such as
        `All(net, Lora)`) for the floating entries of the state that match. Or an argument number, or several.
      has_aux: Whether `fn` returns auxiliary output; the result is then `(loss, params, grads, aux)`.

    Returns:
      A function of the arguments of `fn`. `params` and `grads` are a `State` each, with the same paths and kinds (the
      arguments themselves, and their gradients, for argument numbers). `params` are the values after the call; what `fn`
      modifies is written to the state.

    Raises:
      MissingEntryError: A target names no entry.
    """

    targets = kept(targets)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        loss, aux, selected, grads = _differentiate(fn, targets, has_aux, args, kwargs)
        return (loss, selected, grads, aux) if has_aux else (loss, selected, grads)

    return wrapper


def value_and_grad(fn: Callable[..., Any], targets: Targets = 0, has_aux: bool = False) -> Callable[..., Any]:
    """Returns a function that gives `(value, grads)` as `jax.value_and_grad` does; `targets` as in `grad`.

    With `has_aux` the value is `(loss, aux)`.
    """

    targets = kept(targets)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        loss, aux, _, grads = _differentiate(fn, targets, has_aux, args, kwargs)
        return ((loss, aux), grads) if has_aux else (loss, grads)

    return wrapper


def _differentiate(
    fn: Callable[..., Any], targets: Targets, has_aux: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any, Any, Any]:
    body = Body(fn)
    body.prepare(*args, **kwargs)
    body.learn(*args, **kwargs)
    single = isinstance(targets, int)
    numbers = (targets,) if single else tuple(targets) if isinstance(targets, (tuple, list)) else ()
    by_argument = bool(numbers) and all(isinstance(n, int) for n in numbers)
    selected = tuple(args[n] for n in numbers) if by_argument else resolve(body.outer, targets)
    used: list[Streams | None] = []

    def run(selected: Any) -> tuple[Any, Any]:
        if by_argument:
            chosen = list(args)
            for n, value in zip(numbers, selected, strict=True):
                chosen[n] = value
            ctx, given = body.child(), tuple(chosen)
        else:
            ctx, given = body.child({**body.outer.entries, **selected}), args
        out = body.run(ctx, given, kwargs)
        used.append(None if ctx.streams is None else ctx.streams.tally())
        loss, aux = out if has_aux else (out, None)
        return loss, (Effects.of(ctx), aux)

    with jax.named_scope("grad"):
        (loss, (effects, aux)), grads = jax.value_and_grad(run, has_aux=True)(selected)
    body.commit(effects, used[-1])
    if not isinstance(selected, State):
        return loss, aux, (selected[0] if single else selected), (grads[0] if single else grads)
    current = State._make(selected._layout, [body.outer.read(path) for path in selected])
    return loss, aux, current, grads


def evaluate(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `fn` as a function of some entries, `evaluate(fn)(entries, *args)`, from the state as it stands now.

    Whatever is written or drawn after this call of `evaluate` does not show in it: all other entries keep the values of
    now, every call draws the keys that would be drawn now, and its own effects are dropped. (Entries that do not exist
    yet are taken as they are when it is called.)
    """
    body = Body(fn)
    before = dict(body.outer.entries)
    streams = body.outer.streams.fork() if body.outer.streams is not None else None

    def wrapper(entries: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        inner = streams.fork() if streams is not None else None
        ctx = body.outer.child({**body.outer.entries, **before, **entries}, inner, create=False)
        return body.run(ctx, args, kwargs)

    return wrapper


def checkpoint(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Returns `fn` with its intermediate values recomputed in the backward pass (`jax.checkpoint`, remat).

    Args:
      fn: A stateful function. Positional arguments are traced, but for modules, so that it may decorate a method; keyword
        arguments are passed as they are.
      **options: Those of `jax.checkpoint`: `policy`, `prevent_cse`, `static_argnums`.
    """

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        body = Body(fn)
        body.prepare(*args, **kwargs)
        used: list[Streams | None] = []
        modules = {i: arg for i, arg in enumerate(args) if isinstance(arg, Module)}

        def run(*traced: Any) -> tuple[Effects, Any]:
            ctx = body.child()
            out = body.run(ctx, tuple(modules.get(i, arg) for i, arg in enumerate(traced)), kwargs)
            used.append(None if ctx.streams is None else ctx.streams.tally())
            return Effects.of(ctx), out

        effects, out = jax.checkpoint(run, **options)(*(None if i in modules else arg for i, arg in enumerate(args)))
        body.commit(effects, used[-1])
        return out

    return wrapper


remat = checkpoint


def jit(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Returns the compiled form of a stateful function.

    Outside of a context it is `jax.jit(pure(fn))` and better: `state, out = jit(fn)(state, *args, seed=…, flags=…)`
    creates missing entries on the first call without compiling the function twice, and hands on what `fn` does not
    modify without a copy. Inside a context (called by another stateful function) it compiles `fn` as part of it, and
    takes and returns what `fn` does.

    Args:
      fn: A stateful function, a module, a bound method, or what `pure` gave.
      **options: Those of `jax.jit`. Argument numbers count the state as argument 0 outside of a context, and are those
        of `fn` inside.
    """
    outside = jit_outside(fn, options)
    compiled: list[Any] = []

    @functools.wraps(outside)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if running() is None or hasattr(fn, "_stateful"):
            return outside(*args, **kwargs)
        if not compiled:
            compiled.append(_jit_inside(fn, options))
        return compiled[0](*args, **kwargs)

    return wrapper


class _Where:
    """The Python side of a lifted jit call: everything that its trace depends on beside arrays."""

    def __init__(self, body: Body):
        self.body: Body | None = body
        self.module = body.frame.module  # Kept alive: another one must not get its id.
        streams, root = body.outer.streams, body.outer.root
        self.key = (
            id(self.module), body.frame.scopes, body.frame.prefix, frozenset(body.frame.names), body.outer.modify,
            Static(*sorted(body.outer.flags.items())), None if root is None else root.path,
            None if streams is None else tuple(sorted(streams.counters.items())),
        )  # fmt: skip

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Where) and self.key == other.key


class _After:
    """The Python side after a compiled call, part of the tree structure so that a cached call has it.

    Attributes:
      counters: Those of the streams, with whether any key was drawn; None without streams.
      names: The names taken in the frame.
      kinds: The kinds declared for entries, by path.
    """

    def __init__(self, counters: Any, names: frozenset[str], kinds: tuple[tuple[str, Kind], ...]):
        self.counters, self.names, self.kinds = counters, names, kinds

    @classmethod
    def of(cls, body: Body, ctx: Context) -> _After:
        """Returns where a call has left the child context and the frame."""
        streams = ctx.streams
        counters = None if streams is None else (tuple(sorted(streams.counters.items())), streams.drawn)
        return cls(
            counters, frozenset(body.frame.names), tuple(sorted(ctx.declarations.items(), key=lambda item: item[0]))
        )

    def commit(self, body: Body) -> None:
        """Brings the outer context and the frame there."""
        body.frame.names |= self.names
        for path, kind in self.kinds:
            body.outer.declare(path, kind)
        if body.outer.streams is not None and self.counters is not None:
            counters, drawn = self.counters
            body.outer.streams.counters = dict(counters)
            body.outer.streams.drawn |= drawn


jax.tree_util.register_pytree_node(
    _After, lambda after: ((), (after.counters, after.names, after.kinds)), lambda aux, _: _After(*aux)
)


def _jit_inside(fn: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    inner = {k: v for k, v in options.items() if k not in ("donate_argnums", "donate_argnames")}
    inner["static_argnums"] = (0, *shifted(static_arguments(fn, options, 0), 3))

    @functools.partial(jax.jit, **inner)
    @signed(fn, "where", "entries", "keys")
    def compiled(where: _Where, entries: dict[str, Any], keys: Any, /, *args: Any, **kwargs: Any) -> Any:
        body = where.body
        assert body is not None  # Set for as long as the call lasts.
        outer = body.outer
        streams = None if keys is None else Streams(keys, outer.streams.counters)  # type: ignore[union-attr]
        ctx = outer.child(entries, streams, create=False)
        out = body.run(ctx, args, kwargs)
        return Effects.of(ctx), _After.of(body, ctx), out

    def call(*args: Any, **kwargs: Any) -> Any:
        body = Body(fn)
        body.prepare(*args, **kwargs)
        outer = body.outer
        keys = None if outer.streams is None else outer.streams.given()
        where = _Where(body)
        effects, after, out = compiled(where, dict(outer.entries), keys, *args, **kwargs)
        where.body = None  # JAX keeps the key for its cache: the context must not live on with it.
        after.commit(body)
        commit(outer, effects)
        return out

    return call
