"""Stacks: which modules of an NNX model hold several copies in one Variable, built under `nnx.vmap`.

NNX keeps no record of it: the module that `nnx.vmap` returns looks like any other, with larger values. But Flax's own
layers say by their attributes which shapes one copy has, and what is more than that is the axis of the copies. A stack is
the lowest module that holds all these layers; other entries in it (of the user's own modules) must have the same size
there. Where sizes coincide and several axes are possible the first is taken, as `nnx.vmap` does unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flax import nnx

from bridges._nnx._leaves import collection_of, native_path
from bridges.core import _flat
from bridges.core._spec import Layer, Stack

_Shape = tuple[int | None, ...]  # None for a size that no attribute tells


def shapes_of(model: Any) -> dict[str, _Shape]:
    """Returns entry path -> the shape that one copy has, for the Variables of Flax's own layers."""
    found: dict[str, _Shape] = {}
    for keys, node in nnx.iter_graph(model, graph=True):
        for name, shape in _shapes(node).items():
            value = getattr(node, name, None)
            if isinstance(value, nnx.Variable):
                found[_flat.join((collection_of(type(value)), *map(_flat.unescape, _parts(keys)), name))] = shape
    return found


def _parts(keys: Any) -> list[str]:
    path = native_path(keys)
    return path.split("/") if path else []


def _shapes(node: Any) -> dict[str, _Shape]:
    """Returns what one copy of a layer has under each attribute (flax 0.12.8, flax/nnx/nn/)."""
    if isinstance(node, nnx.LinearGeneral):
        batch = tuple(node.batch_axis.values())
        return {"kernel": (*batch, *node.in_features, *node.out_features), "bias": (*batch, *node.out_features)}
    if isinstance(node, nnx.Linear):
        return {"kernel": (node.in_features, node.out_features), "bias": (node.out_features,)}
    if isinstance(node, (nnx.Conv, nnx.ConvTranspose)):
        return {"kernel": tuple(node.kernel_shape), "bias": (node.out_features,)}
    if isinstance(node, nnx.Embed):
        return {"embedding": (node.num_embeddings, node.features)}
    if isinstance(node, nnx.Einsum):
        return {"kernel": tuple(node.kernel_shape), "bias": tuple(node.bias_shape or ())}
    if isinstance(node, nnx.LoRA):
        return {"lora_a": (node.in_features, None), "lora_b": (None, node.out_features)}
    if isinstance(node, nnx.PReLU):
        return {"negative_slope": ()}
    if isinstance(node, (nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm)):
        return dict.fromkeys(("scale", "bias", "mean", "var"), (None,))
    return {}


def stacks_of(
    entries: Mapping[str, Any], shapes: Mapping[str, _Shape], layers: Mapping[str, Layer]
) -> dict[str, tuple[Stack, ...]]:
    """Returns the stacks by module path.

    Args:
      entries: Path -> abstract entry, without random state.
      shapes: From `shapes_of`.
      layers: Module path -> layer.
    """
    known = {path: shape for path, shape in shapes.items() if path in entries}
    if all(len(entries[path].shape) == len(shape) for path, shape in known.items()):
        return {}
    left = {path: tuple(entry.shape) for path, entry in entries.items()}
    found: dict[str, tuple[Stack, ...]] = {}
    while True:
        extra = {path: len(left[path]) - len(shape) for path, shape in known.items()}
        plain = {module for path, n in extra.items() if n <= 0 for module in _above(path)}
        modules = {m for path, n in extra.items() if n > 0 for m in _above(path)}
        new: dict[str, Stack] = {}
        for module in sorted(modules - plain, key=lambda m: (m.count("/"), m)):
            if not any(_flat.under(module, m) for m in new):
                stack = _stack(module, left, known)
                if stack is not None:
                    new[_lowest(module, known, extra, layers)] = stack
        if not new:
            return found
        for module, stack in new.items():
            found[module] = (*found.get(module, ()), stack)
            for path, shape in left.items():
                collection = path.partition("/")[0]
                if module in _above(path) and collection in stack.axes:
                    axis = stack.axes[collection]
                    left[path] = shape[:axis] + shape[axis + 1 :]


def _stack(module: str, left: Mapping[str, tuple[int, ...]], known: Mapping[str, _Shape]) -> Stack | None:
    """Returns the outermost stack that all entries below the module are in, if there is one."""
    below = [path for path in left if module in _above(path)]
    axes: dict[str, int] = {}
    sizes: set[int] = set()
    for collection in dict.fromkeys(path.partition("/")[0] for path in below):
        mine = [path for path in below if path.partition("/")[0] == collection]
        candidates = set(range(min(len(left[path]) for path in mine)))
        for path in mine:
            if path in known:
                candidates &= set(_axes(left[path], known[path]))
        fitting = [a for a in sorted(candidates) if len({left[path][a] for path in mine}) == 1]
        if not fitting and known.keys().isdisjoint(mine):
            continue  # the same for all copies, such as a mask
        if not fitting:
            return None
        axes[collection] = fitting[0]
        sizes.update(left[path][fitting[0]] for path in mine)
    return Stack(sizes.pop(), axes) if len(sizes) == 1 else None


def _axes(shape: Sequence[int], one: _Shape) -> Iterable[int]:
    """Yields the axes that could be the outermost of copies of this shape."""
    extra = len(shape) - len(one)
    for axis in range(len(shape)) if extra == 1 else range(min(extra, 1)):
        rest = (*shape[:axis], *shape[axis + 1 :])[extra - 1 :]
        if all(b is None or a == b for a, b in zip(rest, one, strict=True)):
            yield axis


def _lowest(module: str, known: Mapping[str, _Shape], extra: Mapping[str, int], layers: Mapping[str, Layer]) -> str:
    """Returns the lowest module below this one that holds all its layers; above a single layer, what that is a part of."""
    owners = [path.rpartition("/")[0].partition("/")[2] for path in known if extra[path] > 0 and module in _above(path)]
    split = [owner.split("/") if owner else [] for owner in owners]
    common = split[0]
    for other in split[1:]:
        length = next(
            (n for n, (a, b) in enumerate(zip(common, other, strict=False)) if a != b), min(len(common), len(other))
        )
        common = common[:length]
    lowest = "/".join(common)
    layer = layers.get(lowest)
    parent = lowest.rpartition("/")[0]
    single = layer is not None and layer.type.startswith("nnx.")
    return parent if single and parent and _flat.under(parent, module) else lowest


def _above(path: str) -> list[str]:
    """Returns the modules that an entry is in."""
    parts = path.split("/")[1:-1]
    return ["/".join(parts[:n]) for n in range(len(parts) + 1)]
