"""vmap, lifted: a batch of arguments through a function whose state is shared by the members or stacked over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bridges.core._context import Context
from bridges.core._errors import EntryShapeError, listing
from bridges.core._kind import is_transient
from bridges.core._rng import Streams, fold
from bridges.core._stack import Stack
from bridges.core._transforms import Body, Effects


def vmap(
    fn: Callable[..., Any],
    in_axes: Any = 0,
    out_axes: Any = 0,
    *,
    axis_name: Any = None,
    axis_size: int | None = None,
    state_axes: Mapping[Any, int | None] | None = None,
) -> Callable[..., Any]:
    """Returns `fn` over a batch of arguments, as `jax.vmap`, with its state shared or stacked.

    Random draws differ between the members.

    Args:
      fn: A stateful function.
      in_axes: As in `jax.vmap`, for the positional arguments. Arrays in keyword arguments are mapped over their leading
        axis, as there; what is no array, or has no axis, is passed as it is.
      out_axes: As in `jax.vmap`.
      axis_name: A name for the axis, for collectives inside `fn`.
      axis_size: The number of members, where no argument is mapped.
      state_axes: Module, path or prefix -> axis (None: shared, within a prefix that is not). Entries there have a value
        for every member, stacked along the axis, and are created with distinct keys (an ensemble). All others are shared:
        created once, and written only with a value that is the same for every member. What an `Intermediate` records is
        stacked along axis 0.

    Raises:
      MissingEntryError: `state_axes` names a path with no entries.
      EntryShapeError: A shared entry is written with a value that differs between the members, or a stacked one has no
        axis of their number.
    """

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        body = Body(fn)
        outer = body.outer
        spread = tuple(in_axes) if isinstance(in_axes, (tuple, list)) else (in_axes,) * len(args)
        leaves, treedef = jax.tree.flatten(kwargs)
        args, spread = (*args, {i: x for i, x in enumerate(leaves) if getattr(x, "ndim", 0)}), (*spread, 0)

        def run(ctx: Context, args: tuple[Any, ...]) -> Any:
            named = args[-1]
            given = jax.tree.unflatten(treedef, [named.get(i, leaf) for i, leaf in enumerate(leaves)])
            return body.run(ctx, args[:-1], given)

        sized = jax.vmap(lambda *_: jnp.zeros(()), spread, axis_size=axis_size)
        size = jax.eval_shape(sized, *args).shape[0]
        keys = outer.streams.given() if outer.streams is not None else None
        counters = dict(outer.streams.counters) if outer.streams is not None else {}
        used: list[Streams | None] = []

        stack = Stack(outer, state_axes or {}, size)
        if outer.create:
            one = jax.tree.map(_first, spread, args, is_leaf=lambda axis: axis is None)
            stack.create(run, args, one, spread, axis_name)
        stacked = stack.entries()
        known = {path: value for path, value in outer.entries.items() if path not in stack}

        def member(index: Any, stacked: dict[str, Any], *args: Any) -> Any:
            folded = fold(keys, index)
            streams = None if folded is None else Streams(folded, counters)
            ctx = outer.child({**known, **stacked}, streams, create=False)
            out = run(ctx, args)
            used.append(None if streams is None else streams.tally())
            written = Effects.of(ctx).written("vmap")
            own = {p: v for p, v in written.items() if p in stack or is_transient(ctx.declared(p))}
            shared.update({path: value for path, value in written.items() if path not in own})
            return own, dict(shared), out

        shared: dict[str, Any] = {}
        try:
            call = jax.vmap(member, (0, 0, *spread), (0, None, out_axes), axis_name=axis_name, axis_size=size)
            own, common, out = call(jnp.arange(size), stacked, *args)
        except ValueError as err:
            if "out_axes" not in str(err) or not shared:
                raise
            raise EntryShapeError(
                "Entries that the members of vmap share are written with values that differ between the members; one of:"
                f"\n{listing(map(repr, shared))}\nReduce the value over the members (axis_name= and jax.lax.pmean), or"
                " give each member its own: vmap(…, state_axes={module_or_path: 0})."
            ) from err
        for path, value in {**stack.whole(own), **common}.items():
            outer.write(path, value, outer.kind(path))
        stack.check()
        if outer.streams is not None:
            outer.streams.join(used[-1])
        return out

    return wrapper


def _first(axis: int | None, tree: Any) -> Any:
    return tree if axis is None else jax.tree.map(lambda x: jax.lax.slice_in_dim(x, 0, 1, axis=axis), tree)
