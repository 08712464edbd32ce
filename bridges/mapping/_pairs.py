"""Pairs: what becomes of the leaves of two layers that stand for one another, and in what the two must agree.

Which layers these are is found elsewhere (`_layers`). A pair that no row joins, or that is stored in more than one way, is a
problem of the draft.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from bridges.mapping._agree import difference
from bridges.mapping._draft import Draft, Match
from bridges.mapping._identify import Found, cut
from bridges.mapping._plan import EXACT, NOT_EXACT
from bridges.mapping._row import LayerRow
from bridges.mapping._rule import Rule
from bridges.mapping._template import Template


class Pairs:
    """The pairs of one draft.

    Attributes:
      rows: The layer rows that apply, as `Found.rows` numbers them.
      refused: By end: module -> why it cannot be converted; filled by whoever finds the layers.
    """

    def __init__(self, draft: Draft, rows: Sequence[LayerRow], refused: Sequence[Mapping[str, str]]):
        self.draft, self.rows, self.refused = draft, rows, refused
        self.bare: dict[int, Rule] = {}  # id of a row's rule -> the rule without its ops
        self.compared: set[tuple[str, str]] = set()

    def match(self, src: Found, dst: Found, how: str, tied: bool = False) -> None:
        """Matches the leaves of two layers that stand for one another; `tied`, if one of them does for others too."""
        self.draft.tied |= tied
        rows = [r for r in src.rows if r in dst.rows]
        self.draft.placements.append((src.path, dst.path, how))
        if not rows and (src.rows or dst.rows) and not (how == "given" and self.own(src, dst)):
            types = [" or ".join(self.rows[r].type for r in f.rows) or "an unknown layer" for f in (src, dst)]
            known = [spec.layers.get(f.path) for spec, f in zip(self.draft.unrolled, (src, dst), strict=True)]
            types = [f"{t} ({k.type})" if k else t for t, k in zip(types, known, strict=True)]
            self.draft.problems.append(
                f"{src.path!r} is {types[0]}, {dst.path!r} ({how}) is {types[1]}: no layer convention joins the two"
            )
            self.draft.explained[0].update(src.leaves)
            self.draft.explained[1].update(dst.leaves)
            return
        if not rows and how != "given" and self.stock(src.path, dst.path):
            if self.refused[0].get(src.path) or self.refused[1].get(dst.path):
                return  # `refuse` says why
            joined = " and ".join(
                spec.layers[f.path].type for spec, f in zip(self.draft.unrolled, (src, dst), strict=True)
            )
            self.draft.problems.append(
                f"{src.path!r} and {dst.path!r} have the same leaves, but no convention says that {joined} mean the same by"
                " them. If they do, say so under [modules]."
            )
            self.draft.explained[0].update(src.leaves)
            self.draft.explained[1].update(dst.leaves)
            return
        if not rows:
            for path in sorted(src.leaves if tied else src.leaves - self.draft.sources.keys()):
                self.draft.add(Match(_RENAME, (path,), (_same(path, dst),), how), tied)
            return
        if how != "given" and (whose := self.derived(src.path, dst.path)):
            self.draft.problems.append(
                f"{src.path!r} and {dst.path!r} have the leaves of {self.rows[rows[0]].type}, but {whose} with a method of"
                " its own in place of the layer's. If they compute the same, say so under [modules]:"
                f" {src.path!r} = {dst.path!r}"
            )
            self.draft.explained[0].update(src.leaves)
            self.draft.explained[1].update(dst.leaves)
            return
        outcomes = [[self.lean(m) for m in self.row_matches(r, src, dst, how, tied)] for r in rows]
        if any({m.outcome for m in o} != {m.outcome for m in outcomes[0]} for o in outcomes[1:]):
            types = [self.rows[r].type for r in rows]
            self.draft.problems.append(
                f"{src.path!r} -> {dst.path!r} could be {' or '.join(types)}, which are stored differently: plan with specs"
                " that have `layers` (the adapter's spec of the model)"
            )
        for match in outcomes[0]:
            self.draft.add(match, tied)
        self.hyperparameters(self.rows[rows[0]], src.path, dst.path)

    def own(self, src: Found, dst: Found) -> bool:
        """Whether one of the two is a module of the user's own that holds entries of the same names as the other."""
        specs = self.draft.src, self.draft.dst
        types = [unrolled.layers.get(f.path) for unrolled, f in zip(self.draft.unrolled, (src, dst), strict=True)]
        owned = [
            t is not None and not t.type.startswith(f"{spec.framework}.") for t, spec in zip(types, specs, strict=True)
        ]
        names = [{p.removeprefix(cut(p)[0] + "/").removeprefix(f.path + "/") for p in f.leaves} for f in (src, dst)]
        return any(owned) and names[0] == names[1]

    def derived(self, src: str, dst: str) -> str:
        """Returns which of the two layers has a user's method in place of the framework's; empty if both are one class."""
        layers = [u.layers.get(m) for u, m in zip(self.draft.unrolled, (src, dst), strict=True)]
        own = [(m, x) for m, x in zip((src, dst), layers, strict=True) if x is not None and x.own]
        if len(own) == 2 and own[0][1].own == own[1][1].own:
            return ""
        return " and ".join(f"{m!r} is a {layer.own}, a {layer.type}" for m, layer in own)

    def stock(self, src: str, dst: str) -> bool:
        """Whether these are layers of two different frameworks themselves, not of the user."""
        types = [
            u.layers[m].type if m in u.layers else "" for u, m in zip(self.draft.unrolled, (src, dst), strict=True)
        ]
        own = all(t.startswith(s.framework + ".") for t, s in zip(types, (self.draft.src, self.draft.dst), strict=True))
        return own and self.draft.src.framework != self.draft.dst.framework

    def row_matches(self, r: int, src: Found, dst: Found, how: str, tied: bool) -> list[Match]:
        """Returns the matches of a row's rules for two layers."""
        matches = []
        for k, rule in enumerate(self.rows[r].rules):
            sources = src.rows[r].get(k, ())
            if (rule.src and not sources) or (not tied and any(path in self.draft.sources for path in sources)):
                continue
            targets = tuple(t.format({"m": dst.path}) for t in rule.dst)
            if (not tied and any(path in self.draft.targets for path in targets)) or (
                not rule.src and k not in dst.rows[r]
            ):
                continue
            if rule.refuse and not targets:
                self.draft.problems.append(f"{sources[0]!r}: {rule.refuse}. If it is, name it under `drop`")
                self.draft.explained[0].update(sources)
                continue
            matches.append(Match(rule, sources, targets, f"{self.rows[r].type}, {how}"))
        return matches

    def lean(self, match: Match) -> Match:
        """Returns the match without a reshape to the shape that the array has already."""
        ends = (
            [self.draft.ends[0][p] for p in match.sources],
            [self.draft.ends[1][p] for p in match.targets if p in self.draft.ends[1]],
        )
        same = len(ends[0]) == len(ends[1]) == 1 and ends[0][0].shape == ends[1][0].shape
        if not same or any(op.to_dict() != {"op": "reshape"} for op in match.rule.ops):
            return match
        if id(match.rule) not in self.bare:
            self.bare[id(match.rule)] = dataclasses.replace(match.rule, ops=())
        return Match(self.bare[id(match.rule)], match.sources, match.targets, match.how, match.level)

    def hyperparameters(self, row: LayerRow, src: str, dst: str) -> None:
        """Compares what the two layers must agree in, where both models were at hand."""
        layers = self.draft.unrolled[0].layers.get(src), self.draft.unrolled[1].layers.get(dst)
        pair = self.draft.unrolled[0].own(src), self.draft.unrolled[1].own(dst)
        if layers[0] is None or layers[1] is None or pair in self.compared:
            return  # copies are all alike
        self.compared.add(pair)
        src, dst = pair
        for agree in row.agree:
            values = difference(agree, layers[0], layers[1])
            if values is None or agree.src is None or agree.dst is None:
                continue
            text = (
                f"the target's {layers[1].type.split('.')[-1]} at {dst!r} has {agree.name} {values[1]!r}, the source's"
                f" {layers[0].type.split('.')[-1]} at {src!r} has {values[0]!r}"
            )
            if agree.note:
                self.draft.notes.append((EXACT, f"note: {text}. {agree.effect}"))
                continue
            if any(
                t.match(dst) is not None and name == agree.name
                for p in self.draft.mapping.parts
                for t, name in p.accept
            ):
                self.draft.notes.append((NOT_EXACT, f"accepted: {text}"))
                continue
            if agree.remedy:
                remedy = agree.remedy
            elif agree.dst.name:
                remedy = f"pass {agree.dst.name}={values[0]!r} there"
            else:
                remedy = f"the target has no such setting: change the source's {agree.src.name or 'layer'}"
            effect = f" {agree.effect}" if agree.effect else ""
            self.draft.problems.append(
                f"{text}: {remedy}.{effect} To accept it: accept = {{ {dst!r} = ['{agree.name}'] }}"
            )


_RENAME = Rule((Template("{m:module}"),), (Template("{m:module}"),))


def _same(path: str, dst: Found) -> str:
    """Returns the path of the entry of the same name in a layer of the target.

    What is no parameter lies in one collection in Haiku (`state`), in any in Flax: there the name alone decides.
    """
    collection, _, leaf = cut(path)
    goal = "/".join(filter(None, (collection, dst.path, leaf)))
    others = [p for p in dst.leaves if cut(p)[2] == leaf and (cut(p)[0] == "params") == (collection == "params")]
    return others[0] if goal not in dst.leaves and len(others) == 1 else goal
