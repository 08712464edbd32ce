"""An NNX call over the entries of a running context: made at first use, given what it needs, written back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from bridges._nnx._call import Call
from bridges._nnx._instance import Instance, is_recorded
from bridges._nnx._leaves import Leaf
from bridges._nnx._memory import Last, Memory, Streams, at, tag_of
from bridges._nnx._template import Flags, Template
from bridges.core import _flat
from bridges.core._context import Context
from bridges.core._errors import EntryShapeError, describe, listing
from bridges.core._kind import Cache, kind_type

FLAGS = ("train", "deterministic", "use_running_average")


def perform(ctx: Context, where: str, memory: Memory, call: Call) -> Any:
    """Returns the output of a call, with the entries below `where` as the module's Variables.

    Args:
      ctx: The running context.
      where: The wrapper's path; empty for a state that holds nothing else.
      memory: What the wrapper has learned.
      call: The method and arguments.
    """
    layout, situation = ctx.layout, (where, _flags(ctx), ctx.streams_given)
    last = memory.last
    if layout is not None and last is not None and last.layout is layout and last.situation == situation:
        template, entries = last.template, ctx.entries
        present = {path: entries[full] for path, full in last.places}
    else:
        template, present = _prepared(ctx, where, memory, call)
        if layout is not None and layout is ctx.layout:
            memory.last = Last(layout, situation, template, tuple((path, at(where, path)) for path in present))
    _check_shapes(template, present, where)
    instance = Instance(template, present)
    out = call.run(instance.module, template.sows)
    changes = instance.changes(where, memory.maker.passing)
    if changes.leaves:
        memory.learn(changes.leaves)
    for path, value in changes.entries.items():
        kind = changes.kinds[path]
        ctx.write(at(where, path), value, None if path in present and not is_recorded(kind) else kind)
    return out


def _prepared(ctx: Context, where: str, memory: Memory, call: Call) -> tuple[Template, dict[str, Any]]:
    """Returns the template for the entries below `where`, which are made and declared where they are not, and these."""
    present, keys = _given(ctx, where, memory)
    streams = memory.constructed(keys, tuple(sorted(ctx.streams_given)))
    if ctx.create and _create(ctx, where, memory, present, streams):
        present, keys = _given(ctx, where, memory)
    template = memory.fitting(present, streams, _flags(ctx), call, where)
    for path, kind in template.kinds.items():
        if ctx.declared(at(where, path)) is None:
            ctx.declare(at(where, path), kind)
    return template, present


def _given(ctx: Context, where: str, memory: Memory) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Returns the entries that are given to the module, and for those that are random keys the streams' names."""
    entries: dict[str, Any] = {}
    keys: dict[str, str | None] = {}
    for path, value in ctx.under(where).items():
        collection, _, rest = path.partition(_flat.SEPARATOR)
        kind = ctx.declared(at(where, path))
        if not rest or not memory.given(path, kind):
            continue  # An entry of the wrapper itself; or one that an earlier call recorded.
        entries[path] = value
        if collection == "RngKey":
            keys[path] = tag_of(kind)
    return entries, keys


def _create(ctx: Context, where: str, memory: Memory, present: Mapping[str, Any], streams: Streams) -> bool:
    """Makes the entries that are not there as the module's own constructor does; whether there were any to make."""
    template, keyed = memory.base(streams)
    missing = {path for path in template.entries if path not in present}
    if not missing or (present and all(is_recorded(template.kinds[path]) for path in missing)):
        return False
    if present:
        strangers = [path for path in present if path not in template.entries and path not in memory.created]
        if strangers:
            memory.fitting(present, streams, (), Call(None, (), {}), where)  # Raises: they are not what is missing.
    for keys, native in nnx.flatten(memory.maker.make(_rngs(ctx, where, streams, keyed)), graph=True)[1]:
        leaf = Leaf.of(keys, native)
        for path, value in leaf.values(native).items():
            if path in missing:
                ctx.write(at(where, path), value, leaf.kind)
    return True


def _rngs(ctx: Context, where: str, streams: Streams, keyed: bool) -> nnx.Rngs:
    """Returns the random streams for the constructor: the seed itself where the wrapper is the whole model."""
    if not keyed and not ctx.has_seed:
        return nnx.Rngs(**dict.fromkeys(streams, 0)) if streams else nnx.Rngs(0)
    if not ctx.streams_given:
        key = ctx.init_key(where)
        return nnx.Rngs(**dict.fromkeys(streams, key)) if streams else nnx.Rngs(key)
    return nnx.Rngs(**{name: ctx.init_key(where, name) for name in (streams or ctx.streams_given)})


def _flags(ctx: Context) -> Flags:
    if not ctx.flags:
        return ()
    given = ((name, ctx.flag(name)) for name in FLAGS)
    return tuple((name, value) for name, value in given if value is not None)


def _check_shapes(template: Template, present: Mapping[str, Any], where: str) -> None:
    wrong = []
    for path, want in template.entries.items():
        value = present[path]
        if value.shape == want.shape and value.dtype == want.dtype:
            continue
        free = issubclass(kind_type(template.kinds[path]), Cache)  # As long as the sequence that it was made for.
        if _is_key(value) is not _is_key(want) or (tuple(value.shape) != want.shape and not free):
            wrong.append(f"{at(where, path)!r}: got {describe(value)}, wanted {describe(want)}")
    if wrong:
        raise EntryShapeError(
            "Entries do not have the shapes that the module gives them:\n"
            + listing(wrong)
            + "\nConvert the values (raw key data by jax.random.wrap_key_data), or give the module the sizes they have."
        )


def _is_key(value: Any) -> bool:
    return bool(jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key))
