"""Orbax checkpoints that are larger than a machine: converted shard by shard, by all processes of a JAX program.

    jax.distributed.initialize()
    convert_sharded('gs-mounted/linen', 'gs-mounted/nnx', plan, to='nnx', dst_spec=nnx_adapter.spec(model, x))

Every process of the program calls it with the same arguments, as every JAX computation on several machines. Each leaf
keeps the sharding it was saved with, carried through renames, transposes, reshapes, splits and joins
(`bridges.mapping._axes`).

Invariant: a process reads its own shards of an item's sources, runs the item compiled with the targets' shardings, writes
its own shards of the targets, and lets go of them before the next batch of items. Small arrays go together, four
megabytes at a time.

What it does not do: optimizer states, averages of parameters and typed random keys are refused by name. It never replaces
what stands at `dst`.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from bridges.core import _flat
from bridges.core._errors import StructureError, UnsupportedError, describe, hint, listing
from bridges.core._spec import Spec
from bridges.core._state import State
from bridges.mapping._op import signature
from bridges.mapping._plan import Item, Plan
from converters import _native, formats
from converters._contents import contents
from converters._errors import CheckpointError
from converters._layout import laid_out
from converters._sharding import target_shardings
from converters.formats import LazyLeaf


def convert_sharded(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    plan: Plan,
    *,
    to: str,
    dst_spec: Spec | None = None,
    framework: str | None = None,
    part: str | None = None,
    mesh: Mesh | None = None,
    shardings: Mapping[str, Sharding] | None = None,
) -> dict[str, Sharding]:
    """Converts the variables of an Orbax checkpoint, each process its shards of one item at a time.

    Args:
      src: An Orbax checkpoint, on a file system that all processes see.
      dst: Where to, on such a file system; must not exist. Orbax renames it to this when all processes are done.
      plan: The plan, from the specs of both ends.
      to: The target's framework: `'linen'`, `'nnx'`, `'haiku'` or `'flat'`.
      dst_spec: The target's spec, for structure that paths do not say (integer keys, tuples).
      framework, part: As for `converters.convert`: what the source's content does not say.
      mesh: The mesh to work on, with the axis names of the saved shardings; if None, the one that each array was saved
        on, whose devices must be there. What was saved without a mesh is replicated on it.
      shardings: Shardings of targets by path, where they are to be other than carried, or cannot be carried.

    Returns:
      The sharding of each target that was written.

    Raises:
      CheckpointError: `src` cannot be read as it must be, or something stands at `dst`.
      StructureError: The checkpoint does not hold the plan's sources.
      UnsupportedError: A sharding has no form at its target, or an entry cannot be converted this way; all are listed,
        and nothing was written.
    """
    from converters.formats import orbax

    source, target = pathlib.Path(src), pathlib.Path(os.path.abspath(dst))
    if os.path.lexists(target):
        raise CheckpointError(f"{target} exists: a sharded conversion replaces nothing. Choose another name.")
    if not target.parent.is_dir():
        raise CheckpointError(f"{target} cannot be written: the directory {target.parent} does not exist.")
    found = contents(formats.read(source, "orbax").tree, framework, part)
    leaves = {path: found.variables[path] for path in plan.src if path in found.variables}
    _check(plan, leaves, found)
    beside = _flat.flatten(found.rest, is_leaf=lambda x: isinstance(x, LazyLeaf))
    every = {**{f"rest/{path}": x for path, x in beside.items() if isinstance(x, LazyLeaf)}, **leaves}
    records = zip(every, orbax.saved_shardings(every.values()), strict=True)
    placed = {path: _placed(path, every[path], record, mesh) for path, record in records}
    wanted = target_shardings(plan, placed, shardings or {})
    runner = _Runner(placed, leaves, wanted)
    made = {path: leaf for item in plan for path, leaf in runner.targets(item).items()}
    kinds = {path: kind for path, kind in plan.dst.declared.items() if path in made}
    native = _native.native(to, State(made, kinds), dst_spec)
    kept = {path: _kept(x, placed.get(f"rest/{path}")) for path, x in beside.items()}
    rest = _flat.unflatten(kept, found.rest, is_leaf=lambda x: isinstance(x, LazyLeaf))
    tree = laid_out(to, native, found, {}, {}, rest, values=True)
    if problems := orbax.problems(tree):
        raise UnsupportedError("Orbax cannot hold everything:\n" + listing(problems))
    orbax.save_sharded(target, tree)
    return {path: wanted[path] for path in made}


def _check(plan: Plan, leaves: Mapping[str, Any], found: Any) -> None:
    have = found.variables
    missing = [f"missing {p!r}.{hint(p, have)}" for p in plan.src if p not in leaves]
    missing += [f"unexpected {p!r}" for p in have if p not in plan.src and p not in plan.src_random]
    if missing:
        raise StructureError("The checkpoint does not hold the plan's sources:\n" + listing(missing))
    wrong = [f"{name!r} is the state of an optimizer" for name in found.optimizers]
    wrong += [f"{name!r} is parameters once more" for name in found.twins]
    for path, leaf in leaves.items():
        if signature([leaf]) != signature([plan.src[path]]):
            wrong.append(f"{path!r} is {describe(leaf)}, planned was {describe(plan.src[path])}")
    for path, x in [*plan.src.items(), *plan.dst.items()]:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended):
            wrong.append(f"{path!r} is a typed random key")
        elif jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
            wrong.append(f"{path!r} is of {x.dtype}: set jax_enable_x64, or JAX would round it")
    if wrong:
        raise UnsupportedError(
            "This cannot be converted shard by shard:\n"
            + listing(dict.fromkeys(wrong))
            + "\nName the part with the variables (part='params'), or use converters.convert where it fits into memory."
        )


def _kept(leaf: Any, sharding: Sharding | None) -> Any:
    if sharding is None:
        return leaf
    return LazyLeaf(leaf.shape, leaf.dtype, functools.partial(leaf.read_sharded, sharding), leaf.where)


def _placed(path: str, leaf: Any, saved: Any, mesh: Mesh | None) -> Sharding:
    """Returns the sharding that a source is read with."""
    spec = getattr(saved, "partition_spec", None)
    if mesh is not None:
        axes = PartitionSpec(*(tuple(e) if isinstance(e, list) else e for e in spec or ()))
        try:
            sharding = NamedSharding(mesh, axes)
            sharding.shard_shape(tuple(leaf.shape))
        except (ValueError, KeyError) as err:
            raise UnsupportedError(
                f"{path!r} {describe(leaf)} was saved with {axes}, which the mesh {dict(mesh.shape)} cannot have: {err}"
            ) from err
        return sharding
    if spec is None:
        raise UnsupportedError(f"{path!r} was saved without a mesh: pass mesh= for it to be replicated on.")
    try:
        return saved.to_jax_sharding()
    except Exception as err:  # Orbax raises whatever comes up where the devices are others
        raise UnsupportedError(
            f"{path!r} was saved on devices that this program does not have ({err}): pass mesh= of these here, with the"
            f" axes {list(saved.axis_names)}."
        ) from err


class _Runner:
    """Runs a plan's items on shards; the targets of the last one are kept until they are taken."""

    def __init__(self, placed: Mapping[str, Sharding], leaves: Mapping[str, Any], wanted: Mapping[str, Sharding]):
        self._placed, self._leaves, self._wanted = placed, leaves, wanted
        self._compiled: dict[Any, Any] = {}
        self._last: tuple[Item, dict[str, Any]] | None = None

    def targets(self, item: Item) -> dict[str, LazyLeaf]:
        """Returns the item's targets as leaves that run it when they are read."""
        return {
            path: LazyLeaf(out.shape, out.dtype, functools.partial(self._read, item, path), path)
            for path, out in zip(item.targets, item.stages[-1], strict=True)
        }

    def _read(self, item: Item, path: str) -> jax.Array:
        if self._last is None or self._last[0] is not item or path not in self._last[1]:
            self._last = None  # let go before the next are made
            self._last = (item, dict(zip(item.targets, self._run(item), strict=True)))
        value = self._last[1].pop(path)
        if not self._last[1]:
            self._last = None
        return value

    def _run(self, item: Item) -> list[jax.Array]:
        outs = tuple(self._wanted[path] for path in item.targets)
        if not item.sources:
            return [_spread(x, s) for x, s in zip(item.forward([]), outs, strict=True)]
        arrays = [self._leaves[path].read_sharded(self._placed[path]) for path in item.sources]
        ins = tuple(self._placed[path] for path in item.sources)
        if not item.ops and ins == outs:
            return arrays
        key = (item.ops, str(item.stages), ins, outs)
        if key not in self._compiled:
            self._compiled[key] = jax.jit(item.forward, out_shardings=list(outs))
        return self._compiled[key](arrays)


def _spread(value: np.ndarray, sharding: Sharding) -> jax.Array:
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


__all__ = ["convert_sharded"]
