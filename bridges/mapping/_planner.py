"""Planning: from a mapping and two specs to a plan, or to one error that lists every problem.

Three rounds, each over the leaves only once: explicit rules; then the layers that `[modules]` places; then the layers
that names and shapes place without a doubt.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterable
from collections.abc import Mapping as Table

from bridges.core._errors import MappingError, describe, listing
from bridges.core._spec import Spec
from bridges.core._state import State
from bridges.mapping._draft import Draft
from bridges.mapping._explicit import match_rules
from bridges.mapping._fuse import fused
from bridges.mapping._identify import cut
from bridges.mapping._layers import LayerMatcher
from bridges.mapping._mapping import Mapping
from bridges.mapping._op import Abstract
from bridges.mapping._plan import Plan

_REMEDY = (
    "Modules that found no counterpart: say under [modules] which is which (a line may name a module above them), write"
    " rules, or `drop` and `fill` them."
)
_MANY = 12  # leaves of one end that nothing was found for; more are listed by module
_COPY = re.compile(r"/\[[0-9]+\]")


def make_plan(mapping: Mapping, src: Spec, dst: Spec) -> Plan:
    """Returns the plan; see `Mapping.plan`."""
    # A plan is many small objects that all stay: the collector would go through them again and again, and find nothing.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _plan(Draft(mapping, src, dst))
    finally:
        if collecting:
            gc.enable()


def _plan(draft: Draft) -> Plan:
    match_rules(draft)
    layers = LayerMatcher(draft)
    layers.layers()
    layers.refuse()
    layers.bare_layers()
    kept = _unmatched(draft, layers)
    items = [item for match in fused(draft) if (item := draft.item(match)) is not None]
    if draft.problems:
        problems = _alike(draft.problems)
        count = len(problems)
        many = any(problem.endswith(("has no rule", "gets nothing")) for problem in problems)
        raise MappingError(
            f"The mapping does not join these two ends: {count} problem{'s' * (count > 1)}.\n"
            + listing(problems, 100)
            + f"\n{_REMEDY}" * many
            + "".join(map(_unrun, ("source", "target"), (draft.src, draft.dst)))
        )
    src, dst = (
        State({p: x for p, x in e.items() if p not in gone}, e.declared)
        for e, gone in zip((draft.src.entries, draft.dst.entries), map(set, kept), strict=True)
    )
    placements, notes = tuple(_placements(draft)), tuple(draft.notes)
    return Plan(tuple(items), src, dst, placements, notes, tuple(kept[0]), tuple(kept[1]))


def _unrun(end: str, spec: Spec) -> str:
    """Returns why the flow of data in a model is not known, where inputs were given to find it."""
    if not spec.unrun:
        return ""
    return (
        f"\nIn which order the {end}'s model calls its layers is not known, since it does not take these inputs:"
        f" {spec.unrun}. Give inputs that both models take: a function around the one that takes more (a flag)."
    )


def _unmatched(draft: Draft, layers: LayerMatcher) -> tuple[list[str], list[str]]:
    """Lists the leaves of either end that nothing was found for; returns the random state among them."""
    rest = (
        [p for p in draft.ends[0] if p not in draft.sources and p not in draft.explained[0]],
        [p for p in draft.ends[1] if p not in draft.targets and p not in draft.explained[1]],
    )
    kept = [p for p in rest[0] if draft.random(0, p)], [p for p in rest[1] if draft.random(1, p)]
    lacks = (
        ("source", "has no rule: write one, or `drop` it"),
        ("target", "gets nothing: write a rule, or `fill` it"),
    )
    for end, (name, lack) in enumerate(lacks):
        random = set(kept[end])
        left = [p for p in rest[end] if p not in random]
        if len(left) > _MANY and layers.rows:
            for path, leaves in _by_module(left, draft.ends[end]).items():
                what = f"{name} {path!r} ({', '.join(leaves)}){_unknown(draft, layers, end, path + '/')}"
                draft.problems.append(f"{what} {lack.partition(':')[0]}")
            continue
        for path in left:
            what = f"{name} {path!r} {describe(draft.ends[end][path])}{_unknown(draft, layers, end, path)}"
            draft.problems.append(f"{what} {lack}.{draft.near(path, rest[1 - end])}")
    return kept


def _by_module(paths: Iterable[str], entries: Table[str, Abstract]) -> dict[str, list[str]]:
    """Returns what an error says of many leaves: collection and module -> its leaves with their shapes."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        owner, _, leaf = path.rpartition("/")
        groups.setdefault(owner, []).append(f"{leaf} {describe(entries[path])}")
    return groups


def _unknown(draft: Draft, layers: LayerMatcher, end: int, path: str) -> str:
    """Returns ` (…)` if the leaf is of a layer that the mapping has no row for, or one that refuses it."""
    layer = draft.unrolled[end].layers.get(cut(path)[1])
    known = {t for row in layers.rows for t in (row.dst if end else row.src)}
    if not layer or not layers.rows or layer.type in known:
        return ""
    refusing = layers.refusals[end].get(layer.type)  # a part of a layer that has a row: others are reported as layers
    why = f"cannot be converted: {refusing[0].refuse}" if refusing else "has no convention here"
    return f" (the layer {layer.type} {why})"


def _alike(problems: Iterable[str]) -> list[str]:
    """Returns the problems, those that copies of one stack share only once."""
    groups: dict[str, list[str]] = {}
    for problem in dict.fromkeys(problems):
        groups.setdefault(_COPY.sub("/[]", problem), []).append(problem)
    more = " (and the same for {} more copies in the stack)"
    return [texts[0] + more.format(len(texts) - 1) * (len(texts) > 1) for texts in groups.values()]


def _placements(draft: Draft) -> Iterable[tuple[str, str, str]]:
    """Yields the placements, those of whole stacks at both ends once."""
    done = set()
    for src, dst, how in draft.placements:
        pair = draft.unrolled[0].own(src), draft.unrolled[1].own(dst)
        if pair == (src, dst) or _COPY.findall(f"/{src}") != _COPY.findall(f"/{dst}"):
            yield src, dst, how
        elif pair not in done:
            done.add(pair)
            yield *pair, how
