"""Which layers a flat set of entries holds: by the model's own word where a spec has it, else by leaf names and ranks.

A layer row claims entries relative to one module path. Where several rows could claim them, the one that explains the
most entries wins (a BatchNorm's running statistics make its `scale` and `offset` a BatchNorm's); equals stay side by
side until the other end decides. Entries that no row explains form plain modules, whose leaf names do not change.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from bridges.core._spec import Layer
from bridges.mapping._op import Abstract
from bridges.mapping._row import LayerRow
from bridges.mapping._rule import Rule
from bridges.mapping._template import Index, Template

Slots = dict[int, tuple[str, ...]]  # rule of the row -> its entries at this end


@dataclasses.dataclass
class Found:
    """A layer found at one end.

    Attributes:
      path: The module path, without the collection.
      leaves: The entries that are its.
      rows: For each row that it could be, the entries of each of the row's rules; none for a plain module.
    """

    path: str
    leaves: frozenset[str]
    rows: dict[int, Slots] = dataclasses.field(default_factory=dict)


def cut(path: str) -> tuple[str, str, str]:
    """Returns collection, module path and leaf name.

    >>> cut('params/net/linear/w'), cut('params/w'), cut('w')
    (('params', 'net/linear', 'w'), ('params', '', 'w'), ('', '', 'w'))
    """
    head, _, leaf = path.rpartition("/")
    collection, _, module = head.partition("/")
    return collection, module, leaf


def above(module: str) -> Iterable[str]:
    """Yields the module and those above it, to the root."""
    while True:
        yield module
        if not module:
            return
        module = module.rpartition("/")[0]


def ends(rule: Rule, side: str) -> tuple[Template, ...]:
    """Returns the rule's templates at the side 'src' or 'dst'."""
    return rule.src if side == "src" else rule.dst


def identify(
    entries: Mapping[str, Abstract], layers: Mapping[str, Layer], rows: Sequence[LayerRow], side: str
) -> dict[str, Found]:
    """Returns the layers by module path; every entry is in exactly one.

    Args:
      entries: The abstract entries of this end.
      layers: The spec's layers; where it has a type for a path, only rows for that type apply there.
      rows: The layer rows of the mapping.
      side: `'src'` or `'dst'`.
    """
    index: Index[tuple[int, int, int]] = Index()
    for r, row in enumerate(rows):
        for k, rule in enumerate(row.rules):
            for slot, template in enumerate(ends(rule, side)):
                index.add(template, (r, k, slot))
    slots: dict[tuple[str, int], dict[int, dict[int, str]]] = collections.defaultdict(
        lambda: collections.defaultdict(dict)
    )
    for path, value in entries.items():
        for (r, k, slot), values in index.match(path):
            ranks = rows[r].rules[k].src_rank if side == "src" else rows[r].rules[k].dst_rank
            if not ranks or len(value.shape) in ranks:
                slots[values["m"], r][k][slot] = path
    known = {name for row in rows for name in row.names(side)[0]}
    best: dict[str, dict[int, Slots]] = collections.defaultdict(dict)
    for (module, r), rules in slots.items():
        if not rows[r].applies(side, layers.get(module), module, known):
            continue
        whole = {}
        for k, rule in enumerate(rows[r].rules):
            count = len(ends(rule, side))
            if count and len(rules.get(k, ())) == count:
                whole[k] = tuple(rules[k][slot] for slot in range(count))
            elif count and not rule.optional:
                break
        else:
            if whole:
                best[module][r] = whole
    covers = [
        (module, r, frozenset(path for paths in whole.values() for path in paths))
        for module, found in best.items()
        for r, whole in found.items()
    ]
    covers.sort(key=lambda cover: (-len(cover[2]), cover[0], cover[1]))
    layers_found: dict[str, Found] = {}
    taken: set[str] = set()
    for module, r, leaves in covers:
        found = layers_found.get(module)
        if found is not None and found.leaves == leaves:
            found.rows[r] = best[module][r]
        elif found is None and taken.isdisjoint(leaves):
            layers_found[module] = Found(module, leaves, {r: best[module][r]})
            taken |= leaves
    plain: dict[str, set[str]] = collections.defaultdict(set)
    for path in entries:
        if path not in taken:
            plain[cut(path)[1]].add(path)
    for module, paths in plain.items():
        rest = layers_found.get(module)
        if rest is None:
            layers_found[module] = Found(module, frozenset(paths))
        else:  # entries beside those of a known layer: theirs, unexplained
            rest.leaves |= paths
    return layers_found


def like(
    found: Found, entries: Mapping[str, Abstract], rows: Sequence[LayerRow], side: str
) -> dict[int | None, Hashable]:
    """Returns, for each row that the layer could be, what makes it comparable to a layer of the other end."""
    if not found.rows:
        # What is no parameter lies in one collection in Haiku (`state`), in any in Flax.
        parts_of = ((*cut(p)[::2], tuple(entries[p].shape)) for p in found.leaves)
        return {None: frozenset((collection == "params", leaf, shape) for collection, leaf, shape in parts_of)}
    out: dict[int | None, Hashable] = {}
    for r, whole in found.rows.items():
        parts: set[Any] = set()
        for k, paths in whole.items():
            rule = rows[r].rules[k]
            if rule.src and rule.dst:
                parts.add((k, *_shapes(rule, [entries[p] for p in paths], side)))
        out[r] = (rows[r].type, frozenset(parts))
    return out


def _shapes(rule: Rule, specs: list[Abstract], side: str) -> tuple[Any, ...]:
    """Returns the shapes at the target, or element counts where the source's do not tell them."""
    if not all(_static(op) for op in rule.ops):
        if any(op.name in ("pick", "copy", "sum", "lead", "heads", "merge") for op in rule.ops):
            return ()
        return (sum(math.prod(x.shape) for x in specs),)
    if side == "src":
        for op in rule.ops:
            specs = op.infer(specs) or []
    return tuple(tuple(x.shape) for x in specs)


def _static(op: Any) -> bool:
    """Whether the op's result shapes follow from what it is given."""
    if op.name == "split":
        return op.sizes is not None or op.equal
    return op.name not in ("copy", "lead", "heads", "merge") and getattr(op, "shape", ()) is not None
