"""Entries that a constructor makes: arrays and trees of arrays, stored flat and given back whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from bridges.core._context import Context
from bridges.core._errors import EntryShapeError, MissingEntryError, StructureError, describe, hint, listing
from bridges.core._flat import SEPARATOR, flatten, unflatten
from bridges.core._frame import Frame, current_frame, enter
from bridges.core._kind import Kind, Variable, is_transient
from bridges.core._rng import SINGLE, Streams


def get_entry(
    ctx: Context,
    path: str,
    ctor: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    kind: Kind | None,
    structures: dict[str, Any],
    part: type,
    adopt: Callable[[Any], Any] = lambda made: made,
) -> Any:
    """Returns the entry at a path, whole, making it with `ctor` where that is allowed; see `Module.get`.

    Args:
      structures: What trees below which paths look like; what is learned here is added.
      part: The class of submodules: an instance that `ctor` gives is no value, but handed to `adopt`.
    """
    if path in ctx.entries:
        ctx.declare(path, ctx.kind(path) if kind is None else kind)
        return ctx.read(path)
    make = functools.partial(ctor, *args, **kwargs) if callable(ctor) else lambda: ctor
    below = ctx.has_below(path)
    like = structures.get(path)
    if like is not None and _fits(ctx, path, like, below):
        return _assemble(ctx, path, like, kind)
    made: Any = None
    if ctor is not None and (below or not ctx.create):
        made = _abstract(ctx, make, part)
        if made is part:
            return adopt(_construct(path, make))
        if below or not jax.tree.leaves(made):
            structures[path] = _skeleton(made)
            return _assemble(ctx, path, made, kind)
    if ctor is None and below:
        raise MissingEntryError(
            f"The state entry {path!r} is a tree with the leaves {', '.join([*ctx.under(path)][:5])}, …, and what"
            " structure they have is not known yet: pass its constructor, self.get(name, constructor, *args)."
        )
    if ctor is None:
        ctx.read(path)
    if not ctx.create and not is_transient(kind):
        return put_entry(ctx, path, made, kind, structures)  # Raises: the abstract value serves for the message.
    value = _construct(path, make)
    if isinstance(value, part):
        return adopt(value)
    return put_entry(ctx, path, value, kind, structures)


def _construct(path: str, make: Callable[[], Any]) -> Any:
    frame = current_frame()
    inner = Frame(frame.context, frame.module, frame.scopes, names=set()) if frame else Frame(None, None)
    inner.scopes = (*inner.scopes, path.rsplit(SEPARATOR, 1)[-1])
    with enter(inner):
        return make()


def _abstract(ctx: Context, make: Callable[[], Any], part: type) -> Any:
    """Returns the structure of what `make` gives, with no key and no array made; `part` if it gives one of these."""
    seen: list[Any] = []
    keys = {name: jax.random.key(0) for name in (ctx.streams_given or (SINGLE,))}

    def run() -> Any:
        frame = current_frame()
        streams = Streams(keys)
        child = ctx.child(streams=streams, create=True)
        with enter(Frame(child, frame.module if frame else None, frame.scopes if frame else ())):
            value = make()
        if isinstance(value, part):
            seen.append(value)
            return ()
        return value

    try:
        shape = jax.eval_shape(run)
    except TypeError as err:
        raise StructureError(f"A state entry must be an array or a tree of arrays, and its constructor: {err}") from err
    return part if seen else shape


def _fits(ctx: Context, path: str, like: Any, below: bool) -> bool:
    """Whether a remembered structure is that of the entries: another state may hold another tree there, or none yet."""
    names = flatten(like)
    return set(ctx.under(path)) == set(names) if below else not names


def _assemble(ctx: Context, path: str, like: Any, kind: Kind | None) -> Any:
    if not jax.tree.leaves(like):
        return jax.tree.map(lambda x: x, like)
    found = ctx.under(path)
    try:
        value = unflatten(found, like)
    except StructureError as err:
        raise StructureError(f"The entries below {path!r} are not the tree that its constructor makes. {err}") from err
    for name in found if kind is not None else ():
        ctx.declare(f"{path}{SEPARATOR}{name}", kind)
    return value


def put_entry(ctx: Context, path: str, value: Any, kind: Kind | None, structures: dict[str, Any]) -> Any:
    """Writes an array, or a tree leaf by leaf, at a path; see `Module.put`."""
    structure = jax.tree.structure(value)
    if bool(structure == _LEAF):  # type: ignore[operator]
        if ctx.has_below(path):
            names = list(ctx.under(path))
            raise EntryShapeError(
                f"The state entry {path!r} is a tree with the leaves {', '.join(names[:5])}{'…' * (len(names) > 5)} and"
                f" was written with {describe(value)}. Write a tree of that structure."
            )
        return ctx.write(path, value, kind)
    flat = flatten(value)
    present = ctx.under(path)
    if path in ctx.entries or (present and set(present) != set(flat)):
        lines = [f"missing {n!r}{hint(n, flat)}" for n in present if n not in flat]
        lines += [f"unexpected {n!r}" for n in flat if n not in present]
        raise EntryShapeError(
            f"The state entry {path!r} has another structure than the tree it was written with:\n"
            + listing(["it is a single array"] if path in ctx.entries else lines)
        )
    for name, leaf in flat.items():
        ctx.write(f"{path}{SEPARATOR}{name}", leaf, Variable if kind is None and not present else kind)
    structures[path] = _skeleton(value)
    return value


_LEAF = jax.tree.structure(0)


def _skeleton(tree: Any) -> Any:
    """Returns the tree without shapes: one module may serve states of different sizes."""
    return jax.tree.map(lambda _: 0, tree)
