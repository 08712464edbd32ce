"""Whether calls of a part may draw random numbers, found out by running it in abstract with its flags up and down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from bridges._host._host import Host
from bridges._host._training import has_other_methods, variants
from bridges.core import State
from bridges.core._context import Context
from bridges.core._frame import Frame, enter
from bridges.core._rng import Streams


def may_draw(host: Host, entries: State, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Returns whether some call of a part may draw from the host's streams; True where it cannot be told.

    An NNX part never does: the streams that it draws from are among its entries.

    Args:
      host: The part.
      entries: All that the part has.
      args, kwargs: A call of it.
    """
    if host.framework == "flax.nnx":
        return False
    try:
        calls = variants(host, args, kwargs)
        flags: list[dict[str, bool]] = [{}, {"train": True}, {"train": False}] if host.core else [{}]
        return calls is None or any(_draws(host, entries, call.args, call.kwargs, f) for call in calls for f in flags)
    except Exception:  # A call that cannot be made this way says nothing.
        return True


def _draws(host: Host, entries: State, args: Any, kwargs: Any, flags: Mapping[str, bool]) -> bool:
    leaves, treedef = jax.tree.flatten((args, kwargs))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")}
    found: list[bool] = []

    def run(arrays: dict[int, Any], entries: State) -> None:
        args, kwargs = jax.tree.unflatten(treedef, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
        ctx = Context(entries, streams=Streams.of(0), flags=flags, root=host.module)
        with enter(Frame(ctx, None)):
            host.call(None, args, kwargs)
        found.append(ctx.streams is None or ctx.streams.drawn or any(map(_more, ctx.owners.values())))

    jax.eval_shape(run, arrays, entries)
    return found[-1]


def _more(module: Any) -> bool:
    """Whether a module of the user's own has other methods, which might draw."""
    return not type(module).__module__.startswith("bridges.") and has_other_methods(type(module))
