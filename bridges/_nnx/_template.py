"""Template: an NNX module without its values, from which a call makes a fresh module and reads off what it changed.

A module that is made from a template belongs to the trace that runs now, and to that one call: whatever the call does to
it, in whichever way (a Variable set, replaced, added, an array assigned), shows when the module is flattened again. The
values that a call leaves as they are come back as the same objects, and are not changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bridges._nnx._call import mentions_sow
from bridges._nnx._leaves import Leaf, check_apart, holds_data, native_path
from bridges._nnx._maker import settle
from bridges.core._errors import UnsupportedError, listing
from bridges.core._state import Intermediate, Kind, kind_type

Flags = tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Changes:
    """What a call did to the module.

    Attributes:
      entries: Path -> new value of everything that changed or is new.
      kinds: Path -> kind, for these.
      leaves: The leaves that the template does not have.
    """

    entries: Mapping[str, Any]
    kinds: Mapping[str, Kind]
    leaves: tuple[Leaf, ...]


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
        """Returns a new module over the entries, and the values of its leaves, for `changes`."""
        # NNX sets elements of a NumPy array in place: a call would change the caller's.
        values = [jax.tree.map(_as_jax, leaf.value(entries)) for leaf in self.leaves]
        made = [leaf.make(value) for leaf, value in zip(self.leaves, values, strict=True)]
        return nnx.merge(self.graphdef, made), values

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
                if "train" in given:
                    head.train() if given["train"] else head.eval()
                head.set_attributes(raise_if_not_found=False, graph=True, **attributes)

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

    def changes(self, module: Any, values: list[Any], where: str = "") -> Changes:
        """Returns what a call did to a module that `build` made.

        Args:
          module: The module, after the call.
          values: What `build` returned with it.
          where: What to call the module in an error.

        Raises:
          UnsupportedError: It removed a Variable, gave one another structure, or changed an attribute that holds no array:
            a state has no place for that.
        """
        graphdef, flat = nnx.flatten(module, graph=True)
        if not _same(graphdef, self.graphdef):
            settle(module)
            flat = nnx.flatten(module, graph=True)[1]
            self._check_attributes(module, where)
        entries: dict[str, Any] = {}
        kinds: dict[str, Kind] = {}
        new: list[Leaf] = []
        known = dict(zip(self.keys, zip(self.leaves, values, strict=True), strict=True))
        wrong = []
        for keys, native in zip(flat.paths, flat.leaves, strict=True):
            leaf, before = known.get(keys, (None, None))
            held = native.get_raw_value() if isinstance(native, nnx.Variable) else native
            if leaf is not None and held is before:
                del known[keys]
                continue
            if leaf is None or leaf.type is not (native.var_type if isinstance(native, nnx.Variable) else None):
                leaf, old = Leaf.of(keys, native), {}
                new.append(leaf)
            else:
                old = dict(zip(leaf.entries, jax.tree.leaves(before), strict=True))
                del known[keys]
            parts = leaf.values(native)
            if old and parts.keys() != leaf.entries.keys() and not is_recorded(leaf.kind):
                wrong.append(f"{leaf.path!r}: the tree that it holds has another structure")
            changed = {path: part for path, part in parts.items() if path not in old or old[path] is not part}
            entries.update(changed)
            kinds.update(dict.fromkeys(changed, leaf.kind))
        wrong += [f"{leaf.path!r}: it is gone" for leaf, _ in known.values() if not is_recorded(leaf.kind)]
        if wrong:
            raise UnsupportedError(
                f"The call of {type(module).__name__}{where} did to its Variables what a state cannot follow:\n"
                + listing(wrong)
                + "\nKeep each Variable, of one type, and set its value: self.x[...] = value."
            )
        return Changes(entries, kinds, tuple(new))

    def _check_attributes(self, module: Any, where: str) -> None:
        before, after = _attributes(self.abstract()), _attributes(module)
        data = {keys for keys, _ in nnx.iter_graph(module, graph=True)}
        wrong = [
            f"{'.'.join(map(str, keys))}: {before.get(keys, 'nothing')!r} -> {after.get(keys, 'nothing')!r}"
            for keys in sorted({*before, *after}, key=str)
            if not _same(before.get(keys, _ABSENT), after.get(keys, _ABSENT)) and (keys in after or keys not in data)
        ]
        if wrong:
            raise UnsupportedError(
                f"The call of {type(module).__name__}{where} changed attributes that hold no arrays, and a state holds"
                " nothing else; the change would be lost:\n"
                + listing(wrong)
                + "\nMake them Variables (nnx.Variable(jnp.array(…))), or set them outside: bridges.flags(train=False) sets"
                " deterministic and use_running_average."
            )


def _attach(module: Any, keys: tuple[Any, ...], variable: Any) -> None:
    node = module
    for key in keys[:-1]:
        node = getattr(node, key) if isinstance(node, nnx.Pytree) and isinstance(key, str) else node[key]
    if isinstance(node, nnx.Pytree) and isinstance(keys[-1], str):
        setattr(node, keys[-1], variable)
    else:
        node[keys[-1]] = variable


_ABSENT = object()


def _as_jax(value: Any) -> Any:
    return jnp.asarray(value) if isinstance(value, (np.ndarray, np.generic)) else value


def is_recorded(kind: Kind) -> bool:
    """Whether entries of this kind are recorded by a call, and not given to it."""
    return issubclass(kind_type(kind), Intermediate)


def _attributes(module: Any) -> dict[tuple[Any, ...], Any]:
    found = {}
    for keys, node in nnx.iter_graph(module, graph=True):
        for name, value in vars(node).items() if isinstance(node, nnx.Pytree) else ():
            if not name.startswith("_pytree__") and not holds_data(value):
                found[*keys, name] = value
    return found


def _same(one: Any, two: Any) -> bool:
    try:
        return one is two or bool(one == two)
    except Exception:  # Values that refuse to be compared, and are other objects.
        return False
