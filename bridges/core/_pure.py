"""From stateful functions to pure ones: `pure`, `init`, and `jit` from outside of a context."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges.core._context import Context
from bridges.core._errors import CreateError, MissingEntryError, StructureError
from bridges.core._frame import Frame, current_frame, enter
from bridges.core._jaxpr import trace
from bridges.core._leaf import as_leaf
from bridges.core._module import Module
from bridges.core._rng import Seed, Streams
from bridges.core._state import Layout, State


def _checked(state: Any) -> Mapping[str, Any]:
    if isinstance(state, State):
        return state
    if not isinstance(state, Mapping):
        raise StructureError(
            f"The first argument of a pure function is the state, a mapping from path to array; got"
            f" {type(state).__name__}. Start with an empty one: state = bridges.init(fn)({{}}, *args, seed=0)."
        )
    entries = {}
    for path, value in state.items():
        if not isinstance(path, str) or isinstance(value, Mapping):
            raise StructureError(
                f"The state is flat, from path to array; the entry {path!r} is a {type(value).__name__}. Flatten nested"
                " variables first, for example bridges.linen_adapter.flatten(variables)."
            )
        entries[path] = as_leaf(path, value)
    return entries


class Flat:
    """Makes a `State` of a plain dictionary, quickly of one with the paths of the last: a compiled step may get it often."""

    def __init__(self) -> None:
        self._last: tuple[Layout, Any] | None = None

    def __call__(self, state: Any) -> State:
        """Returns the mapping as a `State` of definite arrays.

        Raises:
          StructureError: It is no flat mapping from path to array.
        """
        if isinstance(state, State):
            return state
        if self._last is not None and type(state) is dict:
            layout, cls = self._last
            values: list[Any] = [state.get(path) for path in layout.paths]
            if len(state) == len(values) and all(type(v) is cls and not v.weak_type for v in values):
                return State._make(layout, values)
        made = State(_checked(state))
        classes = {type(value) for value in made._values}
        if len(classes) == 1 and issubclass(cls := classes.pop(), jax.Array):
            self._last = made._layout, cls
        return made


def _root(fn: Callable[..., Any]) -> Module | None:
    fn = getattr(fn, "_stateful", fn)
    owner = getattr(fn, "__self__", fn)
    return owner if isinstance(owner, Module) else None


def _run(
    fn: Callable[..., Any],
    root: Module | None,
    state: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    seed: Seed | Streams,
    create: bool,
    modify: bool,
    flags: Mapping[str, Any] | None,
) -> tuple[Context, Any]:
    streams = seed if seed is None or isinstance(seed, Streams) else Streams.of(seed)
    ctx = Context(_checked(state), streams=streams, create=create, modify=modify, flags=flags, root=root)
    with enter(Frame(ctx, None)):
        out = fn(*args, **kwargs)
    return ctx, out


def pure(fn: Callable[..., Any], *, flags: Mapping[str, Any] | None = None) -> Callable[..., tuple[State, Any]]:
    """Returns the pure form of a stateful function: `state, out = pure(fn)(state, *args, seed=…, **kwargs)`.

    The pure function can be given to any JAX transformation. It takes the arguments of `fn` after the state, and by
    keyword only:

    - `seed`: an integer, a key (typed or old-style), or a dictionary of these by stream name. Needed only where `fn`
      draws.
    - `create` (False): whether entries may be created.
    - `modify` (True): whether existing entries may be modified.
    - `ignore` (False): give back existing entries as they came and new ones as they were created.
    - `flags`: values that `bridges.flag` reads, such as `{'train': True}`.

    Args:
      fn: A function that uses modules, a module, or a bound method of one.
      flags: Flags set for every call.

    Returns:
      A function that returns the new `State`, all entries in it, and the output of `fn`.

    Raises:
      CreateError, MissingEntryError: The state lacks an entry.
      EntryShapeError: An entry is written with another shape.
      LeakError: State is changed inside of a plain JAX transformation.
      SeedError: A key is drawn and no seed was given.
    """
    if hasattr(fn, "_stateful"):
        return fn
    fixed, root = dict(flags or {}), _root(fn)

    @functools.wraps(fn, updated=())
    def purified(
        state: Mapping[str, Any],
        /,
        *args: Any,
        seed: Seed = None,
        create: bool | None = None,
        modify: bool | None = None,
        ignore: bool = False,
        flags: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[State, Any]:
        ctx, out = _run(
            fn, root, state, args, kwargs,
            seed=seed, create=bool(create), modify=modify is None or modify, flags={**fixed, **flags} if flags else fixed,
        )  # fmt: skip
        return ctx.snapshot(created_only=ignore), out

    purified._stateful = fn  # type: ignore[attr-defined]
    purified._flags = fixed  # type: ignore[attr-defined]
    return signed(fn, "state")(purified)


def signed(fn: Callable[..., Any], *first: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a decorator that gives a wrapper the signature of `fn` behind the arguments named `first`.

    `jax.jit` looks it up to place `static_argnames` and `donate_argnames` that are passed by position.
    """

    def decorate(wrapper: Callable[..., Any]) -> Callable[..., Any]:
        vars(wrapper).pop("__wrapped__", None)
        own = inspect.signature(wrapper)
        try:
            given = [*inspect.signature(fn).parameters.values()]
        except (TypeError, ValueError):  # A callable without one, such as a built-in.
            return wrapper
        kinds = inspect.Parameter
        ahead = [kinds(name, kinds.POSITIONAL_ONLY) for name in first]
        named = {p.name for p in given}
        extra = [p for p in own.parameters.values() if p.kind is kinds.KEYWORD_ONLY and p.name not in named]
        last = [p for p in given if p.kind is kinds.VAR_KEYWORD]
        plain = [p for p in given if p.kind is not kinds.VAR_KEYWORD]
        if not named.intersection(first):
            wrapper.__signature__ = own.replace(parameters=[*ahead, *plain, *extra, *last])  # type: ignore[attr-defined]
        return wrapper

    return decorate


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))


def init(fn: Callable[..., Any], **jit_kwargs: Any) -> Callable[..., State]:
    """Returns a function that populates the state: `state = init(fn)(state, *args, seed=0, **kwargs)`.

    `fn` is traced, not run: only the operations that initial values depend on are executed, one by one as eager JAX
    does, so the values are bit for bit those of the initialisers called directly. Existing entries stay as they are.
    Call it for several functions one after the other to populate what each of them needs. An argument of which only the
    shape matters may be a `jax.ShapeDtypeStruct`.

    Args:
      fn: A stateful function, a module, a bound method, or what `pure` gave.
      **jit_kwargs: If given, the initialisation is compiled with `jax.jit` and these arguments (`out_shardings`).

    Returns:
      A function that returns the `State` with the values at creation. It takes `seed` and `flags` as `pure` does.
    """
    stateful = getattr(fn, "_stateful", fn)
    fixed, root = getattr(fn, "_flags", {}), _root(fn)

    def initialise(
        state: Mapping[str, Any],
        /,
        *args: Any,
        seed: Seed = None,
        flags: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> State:
        given = _checked(state)
        leaves, treedef = jax.tree.flatten((args, kwargs))
        dynamic = {i: leaf for i, leaf in enumerate(leaves) if _is_array(leaf)}
        streams = Streams.of(seed)
        kinds: dict[str, Any] = {}

        def created(entries: dict[str, Any], keys: dict[str, Any] | None, arrays: dict[int, Any]) -> dict[str, Any]:
            args, kwargs = jax.tree.unflatten(treedef, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
            known = State._make(given._layout, [entries[p] for p in given]) if isinstance(given, State) else entries
            ctx, _ = _run(
                stateful, root, known, args, kwargs,
                seed=None if keys is None else Streams(keys), create=True, modify=True, flags={**fixed, **(flags or {})},
            )  # fmt: skip
            kinds.update({p: kind for p in ctx.entries if (kind := ctx.declared(p)) is not None})
            return ctx.created

        inputs = (dict(given), None if streams is None else streams.keys, dynamic)
        if jit_kwargs:
            new = jax.jit(created, **jit_kwargs)(*inputs)
        else:
            new = trace(created, *inputs).needed()(*inputs)
        # A constant comes back as what the trace kept it as; an entry is an array.
        arrays = {path: value if isinstance(value, jax.Array) else jnp.asarray(value) for path, value in new.items()}
        return State({**given, **arrays}, kinds)

    return initialise


class Static:
    """Arguments of a compiled function that select the program: hashable by value where they are, else by identity."""

    def __init__(self, *parts: Any):
        self.parts = parts
        try:
            self.hash = hash(parts)
        except TypeError:
            self.hash = id(self)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Static) and self.hash == other.hash and self.parts == other.parts)


def shifted(numbers: Any, by: int) -> tuple[int, ...]:
    """Returns argument numbers behind `by` more arguments; negative ones count from the end and stay."""
    numbers = (numbers,) if isinstance(numbers, int) else tuple(numbers or ())
    return tuple(n + by if n >= 0 else n for n in numbers)


def static_arguments(fn: Callable[..., Any], options: Mapping[str, Any], ahead: int) -> tuple[int, ...]:
    """Returns the numbers of the static arguments, those that `static_argnames` names included, as `jax.jit` has them.

    Args:
      fn: A function.
      options: Those of `jax.jit`.
      ahead: How many arguments `static_argnums` counts before the first one of `fn`.
    """
    numbers, names = options.get("static_argnums"), options.get("static_argnames")
    if numbers is not None or not names:
        return shifted(numbers, 0)
    names = (names,) if isinstance(names, str) else names
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return ()
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return tuple(i + ahead for i, name in enumerate(positional) if name in names)


def jit_outside(fn: Callable[..., Any], jit_kwargs: dict[str, Any]) -> Callable[..., tuple[State, Any]]:
    """Returns the compiled form of `pure(fn)`; see `bridges.jit`."""
    stateful = getattr(fn, "_stateful", fn)
    fixed, root = getattr(fn, "_flags", {}), _root(fn)
    options = dict(jit_kwargs)
    options["static_argnums"] = (0, *shifted(static_arguments(stateful, options, 1), 1))
    if "donate_argnums" in options:
        options["donate_argnums"] = shifted(options["donate_argnums"], 1)

    flat = Flat()
    donates = bool(options.get("donate_argnums") or options.get("donate_argnames"))

    @functools.partial(jax.jit, **options)
    @signed(stateful, "static", "state")
    def compiled(static: Static, state: State, *args: Any, seed: Seed = None, **kwargs: Any) -> tuple[Any, Any]:
        ctx, out = _run(
            stateful, root, state, args, kwargs,
            seed=seed, create=False, modify=True, flags=dict(static.parts),
        )  # fmt: skip
        whole = ctx.snapshot()
        if not donates and whole._layout == state._layout:
            return Changes(tuple(sorted(ctx.modified)), [whole[p] for p in sorted(ctx.modified)]), out
        return whole, out

    @functools.wraps(stateful, updated=())
    def call(
        state: Mapping[str, Any],
        /,
        *args: Any,
        seed: Seed = None,
        flags: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[State, Any]:
        static = Static(*sorted({**fixed, **(flags or {})}.items())) if fixed or flags else _NO_FLAGS
        known = flat(state)
        drawn = {} if seed is None else {"seed": seed}
        try:
            changes, out = compiled(static, known, *args, **drawn, **kwargs)
        except (CreateError, MissingEntryError):
            changes = None  # Below, so that no error of the initialisation happens while another is handled.
        if changes is None:
            known = init(fn)(known, *args, seed=seed, flags=flags, **kwargs)
            changes, out = compiled(static, known, *args, **drawn, **kwargs)
        return changes if isinstance(changes, State) else changes.apply(known), out

    call._stateful = stateful  # type: ignore[attr-defined]
    call._flags = fixed  # type: ignore[attr-defined]
    return call


_NO_FLAGS = Static()


class Changes:
    """What a compiled step changed in a state: paths (part of the tree structure) and their new values."""

    __slots__ = ("paths", "values")

    def __init__(self, paths: tuple[str, ...], values: list[Any]):
        self.paths, self.values = paths, values

    def apply(self, state: State) -> State:
        """Returns the state with the changes; what did not change is handed on, not copied."""
        layout: Layout = state._layout
        if len(self.paths) == len(layout.paths):
            return State._make(layout, list(self.values))
        values = [*state._values]
        for path, value in zip(self.paths, self.values, strict=True):
            values[layout.index[path]] = value
        return State._make(layout, values)


jax.tree_util.register_pytree_node(
    Changes, lambda c: (c.values, c.paths), lambda paths, values: Changes(paths, list(values))
)


def running() -> Context | None:
    """Returns the running context, None if there is none."""
    frame = current_frame()
    return None if frame is None else frame.context
