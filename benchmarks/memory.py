"""Flatten, unflatten, plan and forward in memory: 100 to 1,000,000 leaves, 10 to 1,000 rules."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from flax import traverse_util

from benchmarks.paired import paired
from benchmarks.table import Row, Table, rows
from bridges import linen_adapter
from bridges.param_mapping import Mapping

RULES = 10


def measure(quick: bool = False) -> Table:
    """Returns the table."""
    found: list[Row] = []
    shared = True
    for leaves in (100, 1_000) if quick else (100, 1_000, 10_000, 100_000, 1_000_000):
        old = tree(leaves)
        rounds = 3 if leaves > 10_000 else 9
        flat = linen_adapter.flatten({"params": old})
        found += rows(
            f"flatten, {leaves:,} leaves",
            paired(
                {
                    "flax.traverse_util": lambda old=old: traverse_util.flatten_dict({"params": old}, sep="/"),
                    "linen_adapter.flatten": lambda old=old: linen_adapter.flatten({"params": old}),
                },
                rounds,
            ),
            leaves,
        )
        plain = dict(flat)
        found += rows(
            f"unflatten, {leaves:,} leaves",
            paired(
                {
                    "flax.traverse_util": lambda plain=plain: traverse_util.unflatten_dict(plain, sep="/"),
                    "linen_adapter.unflatten": lambda flat=flat: linen_adapter.unflatten(flat),
                },
                rounds,
            ),
            leaves,
        )
        mapping, wanted = renaming(RULES), {rename(path): leaf for path, leaf in plain.items()}
        plan = mapping.plan(plain, wanted)
        new = plan.forward(plain)
        shared &= all(np.shares_memory(new[rename(path)], leaf) for path, leaf in list(plain.items())[:100])
        found += rows(
            f"rename, {leaves:,} leaves",
            paired(
                {
                    "by hand": lambda plain=plain: {rename(path): leaf for path, leaf in plain.items()},
                    "patterns in turn": lambda plain=plain: by_patterns(plain),
                    "plan and forward": lambda m=mapping, p=plain, w=wanted: m.plan(p, w).forward(p),
                    "forward": lambda plan=plan, plain=plain: plan.forward(plain),
                },
                rounds,
            ),
            leaves,
        )
    for count in (10, 100) if quick else (10, 100, 1_000):
        leaves = 1_000 if quick else 100_000
        old = {f"params/{path}": leaf for path, leaf in traverse_util.flatten_dict(tree(leaves), sep="/").items()}
        wanted = {rename(path): leaf for path, leaf in old.items()}
        mapping = renaming(count)
        timing = paired({f"plan, {count} rules": lambda m=mapping, o=old, w=wanted: m.plan(o, w)}, 3, number=1)
        found += rows(f"{leaves:,} leaves", timing)
    return Table(
        "memory",
        "Flatten, unflatten, plan, forward",
        "linear; no copies for renames; a plan of 100,000 leaves with 1,000 rules in 5 s",
        tuple(found),
        (
            f"Renamed arrays are the arrays that came, not copies: {'yes' if shared else 'no'}.",
            "`by hand` is one dictionary comprehension that knows the renaming and checks nothing; `patterns in turn`"
            f" applies {RULES} regular expressions one after the other to every path, as renaming of state dictionaries is"
            " done. A plan checks that every leaf arrives, once, in its shape. Leaves are scalars, so nothing but the"
            " bookkeeping is seen.",
        ),
    )


def tree(leaves: int) -> dict[str, Any]:
    """Returns a nested tree: blocks of layers with ten leaves each, of `RULES` kinds."""
    leaf = np.ones((), np.float32)
    blocks = max(1, leaves // 10)
    return {f"block_{b}": {f"kind{k}": {"w": leaf} for k in range(10)} for b in range(blocks)}


def rename(path: str) -> str:
    """Returns the new name of a path."""
    return path.replace("/w", "/kernel").replace("kind", "layer")


def renaming(count: int) -> Mapping:
    """Returns a mapping that renames, of so many rules; those beyond the ten that are needed match nothing."""
    rules = [{"src": f"params/{{m}}/kind{k}/w", "dst": f"params/{{m}}/layer{k}/kernel"} for k in range(10)]
    spare = range(count - 10)
    more = [{"src": f"params/{{m}}/other{k}/w", "dst": f"params/{{m}}/o{k}/w", "optional": True} for k in spare]
    return Mapping.of({"rules": [*more, *rules]})


PATTERNS = [(re.compile(rf"/kind{k}/w$"), f"/layer{k}/kernel") for k in range(RULES)]


def by_patterns(plain: dict[str, Any]) -> dict[str, Any]:
    """Returns the tree renamed by patterns."""
    new = {}
    for path, leaf in plain.items():
        for pattern, text in PATTERNS:
            path = pattern.sub(text, path)
        new[path] = leaf
    return new
