"""Order: what the flow of data, or else the order of calls, says about which module stands for which.

Numbers and names say how a program was written. That `b` is used on what `a` gave says what it computes: modules in such a
chain have one order in any framework. Modules side by side have none; then the order of calls can only contradict.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from bridges.mapping._tree import Like, Tree, paths


@dataclasses.dataclass(frozen=True)
class Flow:
    """What the flow of data in a model says about a layer.

    Attributes:
      rank: When it is first used; sorts among those of one model.
      mask: Its entries, as bits.
      after: The entries that its input depends on, as bits.
    """

    rank: tuple[int, ...]
    mask: int
    after: int


class Order:
    """The evidence of both models.

    Args:
      calls: For both ends, module path -> when the model first calls it, where that is known.
      flows: For both ends, module path -> what the flow of data says of it; goes before `calls`.
      likes: For both ends, module path -> what it is like, of the layers to be placed.
    """

    def __init__(
        self,
        calls: Sequence[Mapping[str, int]],
        flows: Sequence[Mapping[str, Flow]],
        likes: Sequence[Mapping[str, Like]],
    ) -> None:
        self.flows = flows
        self.likes = likes
        # One kind of evidence for all modules of an end: uses, or else calls.
        self.calls: list[dict[str, Any]] = [
            {path: flow.rank for path, flow in flow.items()} if flow else dict(call)
            for flow, call in zip(flows, calls, strict=True)
        ]
        self.masks: dict[Tree, tuple[int, int]] = {}

    def called(self, end: int, tree: Tree) -> Any:
        """Returns when a tree is first called, as a rank; None where that is not known."""
        found = [self.calls[end].get(path) for path in paths(tree)]
        known = [rank for rank in found if rank is not None]
        return min(known) if known else None

    def crossed(self, runs: Sequence[Sequence[Tree]], likes: Sequence[int]) -> str:
        """Returns what is wrong with pairing two runs by number: those that are alike are called in another order.

        `Dense(16)(relu(Dense(16)(x)))` makes the outer layer first and calls the inner one first. Where the order of calls
        is not known, numbers are taken for it.
        """
        ranks = [[self.called(end, tree) for tree in run] for end, run in enumerate(runs)]
        if any(None in found for found in ranks):
            ranks = [[*range(len(found))] if None in found else found for found in ranks]
        groups: dict[int, list[int]] = collections.defaultdict(list)
        for n, like in enumerate(likes):
            groups[like].append(n)
        for members in groups.values():
            orders = [sorted(members, key=found.__getitem__) for found in ranks]
            if orders[0] != orders[1]:
                at = next(k for k, (a, b) in enumerate(zip(*orders, strict=True)) if a != b)
                first, by_number, by_call = (paths(t)[0] for t in (
                    runs[0][orders[0][at]], runs[1][orders[0][at]], runs[1][orders[1][at]]
                ))  # fmt: skip
                return (
                    f"are numbered in one order and called in another: by number {first!r} is {by_number!r}, by the order"
                    f" of calls {by_call!r}"
                )
        return ""

    def contrary(self, runs: Sequence[Sequence[Tree]]) -> str:
        """Returns what is wrong with pairing modules of one name: at one end alone the first feeds the second."""
        ranks = [[self.called(end, tree) for tree in run] for end, run in enumerate(runs)]
        if any(None in found for found in ranks):
            return ""
        orders = [sorted(range(len(found)), key=found.__getitem__) for found in ranks]
        if orders[0] == orders[1]:
            return ""
        for a, b in itertools.permutations(range(len(runs[0])), 2):
            backwards = [self.copies(end, run[a], run[b]) for end, run in enumerate(runs)]
            if (self.feeds(0, runs[0][a], runs[0][b]) and self.feeds(1, runs[1][b], runs[1][a])) or any(backwards):
                first, second = (paths(runs[0][n])[0] for n in (a, b))
                return (
                    f"bear the same names, but data flow the other way: from {first!r} to {second!r} in one model only"
                )
        return ""

    def copies(self, end: int, a: Tree, b: Tree) -> bool:
        """Whether the two are copies in one stack whose order of uses is known to be backwards."""
        one, other = (self.flows[end].get(paths(tree)[0]) for tree in (a, b))
        return bool(one and other and one.mask == other.mask and one.rank != other.rank)

    def feeds(self, end: int, a: Tree, b: Tree) -> bool:
        """Whether what `a` gives goes into `b`, and not the other way round."""
        (mask, after), (mask_b, after_b) = self.flowing(end, a), self.flowing(end, b)
        return bool(mask & after_b) and not mask_b & after

    def flowing(self, end: int, tree: Tree) -> tuple[int, int]:
        """Returns the entries of a tree, and those that its inputs depend on."""
        if tree not in self.masks:
            flows = [self.flows[end].get(path) for path in paths(tree)]
            both = [(0, 0) if flow is None else (flow.mask, flow.after) for flow in flows]
            mask, after = (functools.reduce(operator.or_, bits, 0) for bits in zip(*both, strict=True))
            self.masks[tree] = mask, after
        return self.masks[tree]

    def chain(self, end: int, trees: Mapping[str, Tree]) -> list[str] | None:
        """Returns the names in the order in which the modules feed one another; None if they are not in a single chain."""
        order = sorted(trees, key=lambda name: sum(self.feeds(end, tree, trees[name]) for tree in trees.values()))
        single = all(self.feeds(end, trees[a], trees[b]) for a, b in itertools.combinations(order, 2))
        return order if single else None

    @functools.cached_property
    def roles(self) -> list[dict[str, int]]:
        """For both ends, layer -> a number that differs for layers that cannot stand for one another in equal models.

        A layer's role is what it is like and the roles of those that feed it and that it feeds (the refinement of colours
        by Weisfeiler and Leman, 1968, over the flow of data). Empty where the flow is not known.
        """
        table: dict[Any, int] = {}

        def number(key: Any) -> int:
            return table.setdefault(key, len(table))

        ends = []
        for likes, flows in zip(self.likes, self.flows, strict=True):
            if not flows:
                return [{}, {}]
            used = [path for path in likes if path in flows]
            fed = {a: [b for b in used if a != b and flows[b].mask & flows[a].after] for a in used}
            feeds: dict[str, list[str]] = {path: [] for path in likes}
            for a, others in fed.items():
                for b in others:
                    feeds[b].append(a)
            roles = {path: number((like, path in flows)) for path, like in likes.items()}
            for _ in range(3):
                roles = {
                    a: number((role, *(tuple(sorted(roles[b] for b in near[a])) for near in (fed, feeds) if a in near)))
                    for a, role in roles.items()
                }
            ends.append(roles)
        return ends

    def parts(self, runs: Sequence[Sequence[Tree]]) -> list[list[tuple[int, ...]]]:
        """Returns the roles in each tree, for trees of both ends; none if these are not the same roles at both."""
        if not all(self.roles):
            return []
        found = [
            [tuple(sorted(self.roles[end][p] for p in paths(tree))) for tree in run] for end, run in enumerate(runs)
        ]
        return found if sorted(found[0]) == sorted(found[1]) else []

    def misplaced(self, runs: Sequence[Sequence[Tree]]) -> str:
        """Returns what is wrong with pairing two runs as they are: other layers are before or after them."""
        for n, (a, b) in enumerate(zip(*self.parts(runs), strict=True) if self.parts(runs) else ()):
            if a != b:
                first, second = (paths(run[n])[0] for run in runs)
                return (
                    f"would go against the flow of data: other layers feed {first!r}, or are fed by it, than {second!r}"
                )
        return ""
