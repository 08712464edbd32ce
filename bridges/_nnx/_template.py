"""Template: an NNX module without its values, from which each call makes a module of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bridges._nnx._call import mentions_sow
from bridges._nnx._leaves import Leaf, check_apart, native_path
from bridges._nnx._mould import Mould
from bridges.core._kind import Kind

Flags = tuple[tuple[str, Any], ...]


class Template:
    """The structure of a module, with a description of every leaf.

    Args:
      module: A module; its values may be abstract. It is not kept.

    Attributes:
      leaves: Its leaves, in the order of `nnx.flatten`.
      entries: Path -> `jax.ShapeDtypeStruct` of its entries.
      kinds: Path -> kind.
      sows: Whether its calls may sow.

    Raises:
      CollisionError: Two leaves have one path.
    """

    def __init__(self, module: Any):
        self.graphdef, flat = nnx.flatten(module, graph=True)
        self.keys = tuple(flat.paths)
        self.sows = mentions_sow(module)
        self.leaves = tuple(Leaf.of(keys, leaf) for keys, leaf in flat)
        check_apart(self.leaves)
        self.entries: dict[str, jax.ShapeDtypeStruct] = {}
        self.kinds: dict[str, Kind] = {}
        for leaf in self.leaves:
            self.entries.update(leaf.entries)
            self.kinds.update(dict.fromkeys(leaf.entries, leaf.kind))

    def build(self, entries: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        """Returns a new module over the entries, and its leaves; they belong to the trace that runs now."""
        made, _ = self.made(entries)
        return nnx.merge(self.graphdef, made), made

    def made(self, entries: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
        """Returns new leaves over the entries, and the value of each."""
        # NNX sets elements of a NumPy array in place: a call would change the caller's.
        values = [
            _as_jax(entries[leaf.path]) if leaf.plain else jax.tree.map(_as_jax, leaf.value(entries))
            for leaf in self.leaves
        ]
        return [leaf.make(value) for leaf, value in zip(self.leaves, values, strict=True)], values

    @functools.cached_property
    def mould(self) -> Mould | None:
        """What makes modules of this structure quickly; None where `nnx.merge` has to."""
        return Mould.of(lambda: self.build(self.entries))

    def abstract(self) -> Any:
        """Returns a new module with `jax.ShapeDtypeStruct` in place of arrays, to be looked at only."""
        return self.build(self.entries)[0]

    def native(self) -> nnx.State:
        """Returns the module's state with `jax.ShapeDtypeStruct` in place of arrays."""
        return nnx.from_flat_state([(leaf.keys, leaf.make(leaf.wanted)) for leaf in self.leaves])

    @classmethod
    def traced(cls, make: Callable[..., Any], *args: Any) -> Template:
        """Returns the template of the module `make(*args)`, which is made in abstract: nothing is allocated."""
        found: list[Template] = []
        jax.eval_shape(lambda *args: found.append(cls(make(*args))), *args)
        return found[-1]

    def flagged(self, flags: Flags) -> Template:
        """Returns the template of the module after `train()` or `eval()`, and with the attributes that the flags name."""
        if not flags:
            return self
        given = dict(flags)
        attributes = {name: value for name, value in given.items() if name != "train"}

        def change(module: Any) -> None:
            heads = [module] if isinstance(module, nnx.Module) else [m for _, m in nnx.iter_modules(module, graph=True)]
            for head in heads:
                cls = type(head)  # A submodule may be called train.
                if "train" in given:
                    cls.train(head) if given["train"] else cls.eval(head)
                cls.set_attributes(head, raise_if_not_found=False, graph=True, **attributes)

        return self._changed(change)

    def without(self, paths: Iterable[str]) -> Template:
        """Returns the template of the module without the Variables that these entries belong to."""
        gone = set(paths)
        keys = {leaf.keys for leaf in self.leaves if gone.intersection(leaf.entries)}
        return self._changed(lambda module: nnx.pop(module, lambda path, value: tuple(path) in keys))

    def extended(self, leaves: Iterable[Leaf]) -> Template:
        """Returns the template of the module with further Variables, which a call has created."""
        added = list(leaves)

        def change(module: Any) -> None:
            for leaf in added:
                _attach(module, leaf.keys, leaf.make(leaf.wanted))

        return self._changed(change)

    def _changed(self, change: Callable[[Any], Any]) -> Template:
        def make(entries: Mapping[str, Any]) -> Any:
            module = self.build(entries)[0]
            change(module)
            return module

        return Template.traced(make, self.entries)

    def nodes(self) -> dict[str, tuple[Any, ...]]:
        """Returns the native path of each node that holds attributes, by its path without a collection."""
        nodes = nnx.iter_graph(self.abstract(), graph=True)
        return {native_path(keys): keys for keys, node in nodes if isinstance(node, nnx.Pytree)}


def _attach(module: Any, keys: tuple[Any, ...], variable: Any) -> None:
    node = module
    for key in keys[:-1]:
        node = getattr(node, key) if isinstance(node, nnx.Pytree) and isinstance(key, str) else node[key]
    if isinstance(node, nnx.Pytree) and isinstance(keys[-1], str):
        setattr(node, keys[-1], variable)
    else:
        node[keys[-1]] = variable


def _as_jax(value: Any) -> Any:
    return jnp.asarray(value) if isinstance(value, (np.ndarray, np.generic)) else value
