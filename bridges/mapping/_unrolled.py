"""Unrolled: one end of a plan with its stacks taken apart by path, so that each copy of a layer is a layer.

An entry `params/blocks/w` of six scanned blocks becomes `params/blocks/[0]/w` to `params/blocks/[5]/w`: an index is a
segment of its own below the stacked module. Layers are then found, placed and matched as if they had never been stacked;
`_fuse` puts the matches back together. No array is touched, and an end without stacks is left as it is.

Which modules are stacks says the spec; or an index in a line of `[modules]`, whose colons count the axes before it
(`[:,{i:int}]` is axis 1); or the name that `hk.layer_stack` gives where nothing else is known.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from bridges.core._errors import MappingError, describe
from bridges.core._flat import under
from bridges.core._spec import Layer, Spec, Stack
from bridges.mapping._identify import above, cut
from bridges.mapping._op import Abstract, like
from bridges.mapping._template import Index, Template

_INDEX = re.compile(r"\[((?::,)*)([0-9]+|\{[A-Za-z_]\w*(?:[+-][0-9]+)?:int\})\]")
_HAIKU = re.compile(r"__layer_stack_(no|with)_per_layer(_[0-9]+)?")  # dm-haiku 0.0.17, haiku/_src/layer_stack.py


def indexed(template: Template) -> tuple[Template, list[tuple[Template, int]]]:
    """Returns the template without axes, and each stack that it names: the module's path, and the axis or -1.

    >>> indexed(Template('net/blocks/[:,{i:int}]/attn'))
    (Template(text='net/blocks/[{i:int}]/attn'), [(Template(text='net/blocks'), 1)])
    """
    plain, bare = [], []
    stacks: list[tuple[str, int]] = []
    for segment in template.text.split("/") if template.text else []:
        found = _INDEX.fullmatch(segment)
        if found is None:
            bare.append(segment)
            plain.append(segment)
        else:
            stacks.append(("/".join(bare), len(found[1]) // 2 if found[1] else -1))
            plain.append(f"[{found[2]}]")
    if not stacks:
        return template, []
    return Template("/".join(plain)), [(Template(text), axis) for text, axis in stacks]


@dataclasses.dataclass(frozen=True)
class Copy:
    """One copy of an entry of a stack.

    Attributes:
      path: The entry.
      number: Which of its copies this is, those of the innermost stack following one another.
    """

    path: str
    number: int


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the copies in one entry are.

    Attributes:
      axes: Its axes, the outermost stack's first.
      count: How many copies there are.
    """

    axes: tuple[int, ...]
    count: int


class Unrolled:
    """The entries and layers of one end, with stacks taken apart.

    Args:
      spec: The end.
      entries: Its entries; those in `whole` stay as they are.
      whole: Entries that are not taken apart.
      declared: Stacks that the mapping names, by line, as `indexed` returns them.
      problems: Where to report stacks that are none.

    Attributes:
      entries: Path -> abstract entry, a path for each copy.
      layers: Module path -> layer, a path for each copy.
      copies: Path of a copy -> what it is a copy of.
      places: Entry of a stack -> where its copies are.
      modules: Module path of a copy -> the module's own path.
    """

    def __init__(
        self,
        spec: Spec,
        entries: Mapping[str, Abstract],
        whole: Iterable[str],
        declared: Sequence[Sequence[tuple[Template, int]]],
        problems: list[str],
    ):
        self.entries: Mapping[str, Abstract] = entries
        self.layers: Mapping[str, Layer] = spec.layers
        self.copies: dict[str, Copy] = {}
        self.places: dict[str, Place] = {}
        self.modules: dict[str, str] = {}
        whole = set(whole)
        free = [path for path in entries if path not in whole]
        stacks = _stacks(spec, entries, free, declared, problems)
        if not stacks:
            return
        made: dict[str, Abstract] = {}
        for path, value in entries.items():
            collection, module, leaf = cut(path)
            chain = _chain(stacks, module, collection) if path not in whole else []
            if not chain:
                made[path] = value
                continue
            try:
                place, rest = _place(chain, value)
            except MappingError as err:
                problems.append(f"{path!r} {describe(value)}: {err}")
                made[path] = value
                continue
            self.places[path] = place
            for number, copy in enumerate(_copies(module, chain)):
                own = "/".join(filter(None, (collection, copy, leaf)))
                made[own] = like(value, rest)
                self.copies[own] = Copy(path, number)
                self.modules[copy] = module
        self.entries = made
        layers: dict[str, Layer] = {}
        for module, layer in spec.layers.items():
            chain = _chain(stacks, module, None)
            for copy in _copies(module, chain) if chain else (module,):
                layers[copy] = layer
                self.modules.setdefault(copy, module)
        self.layers = layers

    def own(self, module: str) -> str:
        """Returns the module path without indices."""
        return self.modules.get(module, module)


_Link = tuple[str, int, int]  # module path of the stack, how many copies, along which axis


def _chain(stacks: Mapping[str, tuple[Stack, ...]], module: str, collection: str | None) -> list[_Link]:
    """Returns the stacks that a module's entries of the collection are in, the outermost first."""
    links = []
    for m in reversed(list(above(module))):
        for stack in stacks.get(m, ()):
            if collection is None or collection in stack.axes:
                links.append((m, stack.size, stack.axes.get(collection or "", 0)))
    return links


def _place(chain: Sequence[_Link], value: Abstract) -> tuple[Place, list[int]]:
    """Returns where the copies of an entry are, and the shape of one."""
    left = list(range(len(value.shape)))
    axes = []
    for module, size, axis in chain:
        if not -len(left) <= axis < len(left):
            raise MappingError(f"it has no axis {axis} along which {module!r} could be a stack")
        if value.shape[left[axis]] != size:
            raise MappingError(f"axis {axis} has {value.shape[left[axis]]} of the {size} copies of {module!r}")
        axes.append(left.pop(axis))
    return Place(tuple(axes), math.prod(size for _, size, _ in chain)), [value.shape[a] for a in left]


def _copies(module: str, chain: Sequence[_Link]) -> Iterable[str]:
    """Yields the module's path with each combination of indices, the last one fastest."""
    segments = module.split("/") if module else []
    depths = [len(m.split("/")) if m else 0 for m, _, _ in chain]
    for index in itertools.product(*(range(size) for _, size, _ in chain)):
        path: list[str] = []
        at = 0
        for depth, i in zip(depths, index, strict=True):
            path += [*segments[at:depth], f"[{i}]"]
            at = depth
        yield "/".join(path + segments[at:])


def _stacks(
    spec: Spec,
    entries: Mapping[str, Abstract],
    free: Sequence[str],
    declared: Sequence[Sequence[tuple[Template, int]]],
    problems: list[str],
) -> dict[str, tuple[Stack, ...]]:
    """Returns the stacks by module path: the spec's, those that the mapping names, those that names tell."""
    stacks = dict(spec.stacks)
    modules = {m: None for path in free for m in above(cut(path)[1])} if declared or not spec.layers else {}
    named = _named(modules, declared)
    if not spec.layers and not spec.stacks:
        for m in modules:
            if _HAIKU.fullmatch(m.rpartition("/")[2]):
                named.setdefault(m, [0])
    new = {m for m in named if m not in stacks}
    if new:
        below: dict[str, list[str]] = {m: [] for m in named}
        for path in free:
            for m in above(cut(path)[1]):
                if m in below:
                    below[m].append(path)
        for m in [m for m in stacks if m not in named]:  # the spec's own idea, which the mapping corrects
            if any(under(m, n) or under(n, m) for n in new):
                del stacks[m]
    for m, axes in sorted(named.items(), key=lambda item: item[0].count("/") + bool(item[0])):
        known = stacks.get(m)
        if known is None:
            stacks[m] = _measured(stacks, entries, m, axes, below[m], problems)
            continue
        for axis, stack in zip(axes, known, strict=False):
            if axis >= 0 and set(stack.axes.values()) != {axis}:
                have = ", ".join(f"{a} in {c}" for c, a in sorted(stack.axes.items()))
                problems.append(f"[modules] has the copies of {m!r} along axis {axis}; the model has them along {have}")
    return stacks


def _named(modules: Iterable[str], declared: Sequence[Sequence[tuple[Template, int]]]) -> dict[str, list[int]]:
    """Returns the modules that lines of the mapping index, with the axis of each index, -1 where it is not said."""
    index: Index[tuple[int, Template]] = Index()
    for n, line in enumerate(declared):
        for template in dict.fromkeys(t for t, _ in line):
            index.add(template, (n, template))
    named: dict[str, list[int]] = {}
    for module in modules if declared else ():
        for (n, template), _ in index.match(module):
            axes = [axis for t, axis in declared[n] if t == template]
            if len(axes) > len(named.get(module, ())) or max(axes) > max(named[module]):
                named[module] = axes
    return named


def _measured(
    stacks: Mapping[str, tuple[Stack, ...]],
    entries: Mapping[str, Abstract],
    module: str,
    axes: Sequence[int],
    below: Sequence[str],
    problems: list[str],
) -> tuple[Stack, ...]:
    """Returns the stacks of a module along these axes, of the size that its entries have there."""
    found: list[Stack] = []
    collections = sorted({cut(path)[0] for path in below})
    for axis in (max(axis, 0) for axis in axes):
        sizes: dict[int, str] = {}
        for path in below:
            collection, owner, _ = cut(path)
            try:
                chain = _chain({**stacks, module: tuple(found)}, owner, collection)
                inner = [link for link in chain if len(link[0]) > len(module)]
                shape = _place([link for link in chain if link not in inner], entries[path])[1]
            except MappingError:
                continue  # reported where the entry is taken apart
            if axis < len(shape):
                sizes.setdefault(shape[axis], path)
        if len(sizes) > 1:
            (a, one), (b, two) = list(sizes.items())[:2]
            problems.append(
                f"{module!r} cannot be a stack along axis {axis}: {one!r} {describe(entries[one])} has {a} copies there,"
                f" {two!r} {describe(entries[two])} has {b}"
            )
            return ()
        if sizes:
            found.append(Stack(next(iter(sizes)), dict.fromkeys(collections, axis)))
    return tuple(found)
