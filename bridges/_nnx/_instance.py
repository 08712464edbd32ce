"""Instance: the module that one call runs on, and what the call did to it.

Whatever a call does, in whichever way (a Variable set, replaced, added, an array assigned), shows in the attributes of the
module's nodes and in the values of its Variables. What is as it was comes back as the same object, and is no change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from typing import Any

import jax
from flax import nnx

from bridges._nnx._leaves import Leaf, holds_data
from bridges._nnx._maker import settle
from bridges._nnx._template import Template
from bridges.core._errors import UnsupportedError, listing
from bridges.core._kind import Intermediate, Kind, kind_type


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
    leaves: tuple[Leaf, ...] = ()


_NOTHING = Changes({}, {})


class Instance:
    """A module of its own for one call.

    Args:
      template: What it is made from.
      entries: The values of its leaves, by path.

    Attributes:
      module: The module, for the call to run on.
    """

    def __init__(self, template: Template, entries: Mapping[str, Any]):
        self.template = template
        self._leaves, self._values = template.made(entries)
        mould = template.mould
        self._nodes = None if mould is None else mould.cast(self._leaves)
        self.module = nnx.merge(template.graphdef, self._leaves) if self._nodes is None else self._nodes[0].node

    def changes(self, where: str = "", passing: Container[str] = ()) -> Changes:
        """Returns what was done to the module since it was made.

        Args:
          where: The module's path, for errors.
          passing: Attributes that the call may set for itself alone.

        Raises:
          UnsupportedError: A Variable is gone, or has another structure, or an attribute has changed that holds no array:
            a state has no place for that.
        """
        if self._nodes is None or not all(node.unchanged for node in self._nodes):
            return self._compared(where, passing)
        changed = []
        for leaf, native, value in zip(self.template.leaves, self._leaves, self._values, strict=True):
            if leaf.type is not None and native.get_raw_value() is not value:
                if not leaf.plain:
                    return self._compared(where, passing)
                changed.append((leaf, native.get_raw_value()))
        if not changed:
            return _NOTHING
        return Changes({leaf.path: new for leaf, new in changed}, {leaf.path: leaf.kind for leaf, _ in changed})

    def _compared(self, where: str, passing: Container[str]) -> Changes:
        """Returns the changes from a comparison of everything, which NNX's own flattening allows."""
        module, template = self.module, self.template
        graphdef, flat = nnx.flatten(module, graph=True)
        if not _same(graphdef, template.graphdef):
            settle(module)
            flat = nnx.flatten(module, graph=True)[1]
            self._check_attributes(where, passing)
        entries: dict[str, Any] = {}
        kinds: dict[str, Kind] = {}
        new: list[Leaf] = []
        known = dict(zip(template.keys, zip(template.leaves, self._values, strict=True), strict=True))
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
                f"The call of {type(module).__name__}{_at(where)} did to its Variables what a state cannot follow:\n"
                + listing(wrong)
                + "\nKeep each Variable, of one type, and set its value: self.x[...] = value."
            )
        return Changes(entries, kinds, tuple(new))

    def _check_attributes(self, where: str, passing: Container[str]) -> None:
        module = self.module
        before, after = _attributes(self.template.abstract()), _attributes(module)
        data = {keys for keys, _ in nnx.iter_graph(module, graph=True)}
        wrong = [
            f"{'.'.join(map(str, keys))}: {before.get(keys, 'nothing')!r} -> {after.get(keys, 'nothing')!r}"
            for keys in sorted({*before, *after}, key=str)
            if not _same(before.get(keys, _ABSENT), after.get(keys, _ABSENT)) and (keys in after or keys not in data)
            if keys[-1] not in passing
        ]
        if wrong:
            raise UnsupportedError(
                f"The call of {type(module).__name__}{_at(where)} changed attributes that hold no arrays, and a state holds"
                " nothing else; the change would be lost:\n"
                + listing(wrong)
                + "\nMake them Variables (nnx.Variable(jnp.array(…))), or set them outside: bridges.flags(train=False) sets"
                " deterministic and use_running_average."
            )


def _at(where: str) -> str:
    return f" at {where!r}" if where else ""


_ABSENT = object()


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
