"""Rules: from what the engine found to a mapping in its most readable form, with the evidence beside each rule.

Lines of `[modules]` where the layer conventions say exactly what was found, rules with numbers elsewhere.

Invariant: the mapping's plan brings every element to where it was found; this is checked, and what fails is not written.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bridges._infer._decode import Joint, decode, groups, natural
from bridges._infer._end import is_random
from bridges._infer._families import Family, grouped
from bridges._infer._found import CONSTANT, Evidence, Found, Origin, Unplaced
from bridges._infer._pieces import Undecodable
from bridges._infer._shipped import Shipped, agrees, numbers, part_of, shipped, whole
from bridges._infer._text import Line, write
from bridges.core._errors import BridgeError, UnsupportedError
from bridges.core._spec import Spec
from bridges.mapping._generalise import generalise, literal
from bridges.mapping._mapping import Mapping as Rules
from bridges.mapping._template import Template

_LARGEST = 256  # numbers that a constant may be written out with
_TIED = "{} is one entry at one end and several at the other, where they train apart from then on"
_UNREAD = "the source does not read it when it is evaluated"
_EMPTY = "it has no element"
_CONSTANT = "it is no weight, and the target has it in its code"


@dataclasses.dataclass(frozen=True)
class Written:
    """What was found, as a mapping.

    Attributes:
      text: Its TOML.
      mapping: The same, read back.
      evidence: By target path.
      unplaced, unused, dropped, notes: As of an `InferredMapping`.
      retold: The TOML for other evidence.
    """

    text: str
    mapping: Rules
    evidence: Mapping[str, Evidence]
    unplaced: tuple[Unplaced, ...]
    unused: tuple[str, ...]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    retold: Callable[[Mapping[str, Evidence]], str]


def written(
    found: Found,
    src: Spec,
    dst: Spec,
    read: Iterable[str],
    fixed: Iterable[str],
    weak: Iterable[str],
    own: Mapping[str, Any],
    head: Sequence[str],
) -> Written:
    """Returns the mapping of what was found.

    Args:
      found: What was found.
      src, dst: The specs.
      read: The source's entries that its outputs may depend on.
      fixed: The source's entries that are no weights (integers, masks).
      own: The target's entries that are no weights, with the values that the model gives them.
      weak: The target's entries that its outputs do not depend on: the convention of their layer knows better.
      head: Lines that its text begins with.
    """
    work = _Work(found, src, dst, set(read), set(fixed), set(weak), own)
    tried = [whole(src, dst, work.strong, work.names)] if not work.unplaced else []
    for lines in tried:
        if lines.pairs and not isinstance(made := work.write(lines, head), str):
            return made
    lines = shipped(src, dst, work.joints, work.strong, work.names)
    while not isinstance(made := work.write(lines, head), Written):
        fewer = lines.without(made)
        lines = fewer if len(fewer.pairs) < len(lines.pairs) else Shipped((), lines.notes)
    return made


class _Work:
    def __init__(
        self,
        found: Found,
        src: Spec,
        dst: Spec,
        read: set[str],
        fixed: set[str],
        weak: set[str],
        own: Mapping[str, Any],
    ):
        self.found, self.src, self.dst, self.read, self.fixed, self.weak = found, src, dst, read, fixed, weak
        self.names = found.sources
        self.origins = dict(sorted(found.origins.items(), key=lambda item: natural(item[0])))
        self.unplaced = list(found.unplaced)
        self.fills: dict[str, Any] = {}
        self._own(own)
        self._constants()
        self.joints = self._joints()

    @property
    def strong(self) -> dict[str, Origin]:
        """What was found of entries that the target's outputs depend on."""
        return {path: origin for path, origin in self.origins.items() if path not in self.weak}

    def _own(self, own: Mapping[str, Any]) -> None:
        """Gives entries of the target that are no weights the values that they have there, if nothing else is known."""
        for path in own:
            value = np.asarray(own[path])
            if path not in self.origins and (value.dtype.kind in "biuf" or jnp.issubdtype(value.dtype, np.integer)):
                zeros, ones = np.zeros(value.shape, np.int64), np.ones(value.shape)
                evidence = Evidence(CONSTANT, text="no weight: the target's own value")
                self.origins[path] = Origin(zeros - 1, zeros, ones, value.astype(np.float64), evidence)
                self.weak.add(path)
        self.unplaced = [leaf for leaf in self.unplaced if leaf.path not in self.origins]

    def _constants(self) -> None:
        """Takes the leaves that are constants in the source out of the origins."""
        for path, origin in list(self.origins.items()):
            if not np.all(origin.source < 0):
                continue
            value = np.asarray(origin.shift, np.float64)
            if np.all(value == value.flat[0] if value.size else True):
                self.fills[path] = float(value.flat[0]) if value.size else 0.0
            elif value.size <= _LARGEST:
                self.fills[path] = value.tolist()
            else:
                text = "it is a constant of the source's code, too large to be written here: give it under `fill`"
                self.unplaced.append(Unplaced(path, text, part=1.0))
                del self.origins[path]

    def _joints(self) -> list[Joint]:
        shapes = {path: self.src.entries[path].shape for path in self.names}
        joints = []
        for sources, targets in groups(self.origins):
            names = sorted((self.names[i] for i in sources), key=natural)
            try:
                mine, theirs = self._ordered(names, targets)
                joints.append(decode(mine, shapes, {p: self.origins[p] for p in theirs}, self.names))
            except Undecodable as err:
                for path in targets:
                    self.unplaced.append(Unplaced(path, f"it was found, but {err}", tuple(names), 1.0))
                    del self.origins[path]
        return joints

    def _ordered(self, sources: list[str], targets: list[str]) -> tuple[list[str], list[str]]:
        """Returns the paths in an order that needs little reordering: that in which the other end has their elements."""
        if len(sources) > 1:
            seen = [
                self.names[i] for path in targets for i in dict.fromkeys(self.origins[path].source.ravel().tolist())
            ]
            sources = sorted(sources, key=list(dict.fromkeys(seen)).index)
        else:
            targets = sorted(targets, key=lambda path: int(self.origins[path].element.min()))
        return sources, targets

    def write(self, lines: Shipped, head: Sequence[str]) -> Written | str:
        """Returns the mapping with these lines; an error's text if it does not join what was found."""
        covered = lines.sources, lines.targets
        unplaced = [leaf for leaf in self.unplaced if leaf.path not in covered[1]]
        joined = {path for joint in self.joints for path in joint.sources}
        weights = [p for p in self.src.entries if not is_random(self.src, p)]
        spare = [p for p in weights if p not in covered[0] and p not in joined]
        unused = [p for p in spare if p in self.read and p not in self.fixed and np.prod(self.src.entries[p].shape)]
        dropped = {p: self._why_dropped(p) for p in spare if p not in unused}
        if lines.pairs and (unplaced or unused):
            return "conventions would go on to place what is open by its looks"
        rest = [j for j in self.joints if not covered[1].issuperset(j.targets)]
        if any(not covered[1].isdisjoint(j.targets) or not covered[0].isdisjoint(j.sources) for j in rest):
            return "entries of one group are covered in part"
        others = (set(self.src.entries), set(self.dst.entries))
        families = grouped(rest, others)
        pairs = [pair[:2] for pair in lines.pairs]
        placed = {path for path, _ in pairs}
        others_of = [path for path in self.src.layers if path not in placed]
        there = {*self.dst.layers, *(path for _, path in pairs)}
        casts = self._casts(rest)
        problem = ""

        def told(modules: Sequence[tuple[str, str]], evidence: Mapping[str, Evidence]) -> str:
            def of(paths: Iterable[str]) -> list[Evidence]:
                return [evidence.get(path, Evidence(CONSTANT)) for path in paths]

            return write(
                head,
                extends=(self.src.framework, self.dst.framework) if pairs else None,
                modules=[(line, of(self._under(line, pairs))) for line in modules],
                rules=[Line(self._rule(f), of(t for joint in f.joints for t in joint.targets)) for f in families],
                drop=[{"src": literal(path), "reason": reason} for path, reason in dropped.items()],
                fill={literal(path): value for path, value in self.fills.items() if path not in covered[1]},
                cast=casts,
                unplaced=unplaced,
                unused=unused,
            )

        found = {path: origin.evidence for path, origin in self.origins.items()}
        for modules in (generalise(pairs, others_of, there), generalise(pairs, others_of)):  # a few lines, else more
            text = told(modules, found)
            mapping = Rules.loads(text)
            problem = self._problem(mapping, lines, unplaced, unused)
            if not problem:
                break
        else:
            if not lines.pairs:
                raise UnsupportedError(
                    f"What was found between the two models cannot be written as rules: {problem}. Convert what you can by"
                    " rules of your own; docs/mapping.md has the language."
                )
            return problem
        taken = covered[1] & self.weak
        evidence = {path: one for path, one in found.items() if path not in taken}
        for path in covered[1]:
            if path in self.dst.entries and path not in evidence:
                evidence[path] = Evidence("convention", text="the other entries of its layer are placed")
        open_ends = tuple(unplaced), tuple(unused), tuple(dropped)
        return Written(text, mapping, evidence, *open_ends, lines.notes, functools.partial(told, modules))

    def _why_dropped(self, path: str) -> str:
        if not np.prod(self.src.entries[path].shape):
            return _EMPTY
        return _CONSTANT if path in self.read else _UNREAD

    def _problem(self, mapping: Rules, lines: Shipped, unplaced: Sequence[Unplaced], unused: Sequence[str]) -> str:
        """Returns why the mapping does not join what was found; empty if it does."""
        known = {*self.origins, *lines.targets} - {leaf.path for leaf in unplaced}
        src = part_of(self.src, [p for p in self.src.entries if p not in unused])
        dst = part_of(self.dst, [p for p in self.dst.entries if p in known])
        ends = dataclasses.replace(src, uses=self.src.uses), dataclasses.replace(dst, uses=self.dst.uses)
        try:
            plan = mapping.plan(*ends)
        except BridgeError as err:
            return str(err)
        taken = lines.targets & self.weak
        wanted = {path: origin for path, origin in self.origins.items() if path in plan.dst and path not in taken}
        return "" if agrees(plan, numbers(self.src, self.names), wanted, self.names) else "other elements"

    def _rule(self, family: Family) -> dict[str, Any]:
        src, dst = ([*end] if len(end) > 1 else end[0] for end in (family.src, family.dst))
        rule: dict[str, Any] = {"src": src, "dst": dst}
        if family.ops:
            rule["ops"] = [op.to_dict() for op in family.ops]
        if family.joints[0].tied:
            rule["resume"] = _TIED.format(", ".join(map(repr, family.src)))
        return rule

    def _casts(self, joints: Sequence[Joint]) -> list[str]:
        """Returns which targets of rules have another dtype than their sources: those, or all."""
        casts = []
        for joint in joints:
            dtypes = {self.src.entries[p].dtype for p in joint.sources}
            casts += [p for p in joint.targets if {self.dst.entries[p].dtype} != dtypes]
        everything = len(casts) == sum(len(joint.targets) for joint in joints) > 1
        return ["{m:path}"] if everything else [literal(path) for path in casts]

    def _under(self, line: tuple[str, str], pairs: Sequence[tuple[str, str]]) -> list[str]:
        """Returns the target's entries that a line places."""
        src, dst = map(Template, line)
        modules = {
            there for here, there in pairs if (values := src.match(here)) is not None and dst.format(values) == there
        }
        bare = {m.partition("/[")[0] for m in modules}
        return [p for p in self.origins if p not in self.weak and any(_below(p, m) for m in bare)]


def _below(path: str, module: str) -> bool:
    owner = path.partition("/")[2].rpartition("/")[0]
    return not module or owner == module or owner.startswith(module + "/")
