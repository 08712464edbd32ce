"""Flatten, unflatten, plan and forward in memory: 100 to 1,000,000 leaves, 10 to 1,000 rules."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import orbax.checkpoint as orbax
from absl import logging
from flax import traverse_util

from benchmarks.paired import paired
from benchmarks.table import Row, Table, growth, rows
from bridges import linen_adapter
from bridges.param_mapping import Mapping

RULES = 10
TRANSFORMERS = importlib.util.find_spec("transformers") is not None


def measure(quick: bool = False) -> Table:
    """Returns the table."""
    logging.set_verbosity("error")  # orbax logs a warning a call
    found: list[Row] = []
    shared = True
    for leaves in (100, 1_000) if quick else (100, 1_000, 10_000, 100_000, 1_000_000):
        old = tree(leaves)
        rounds, number = (3, 1) if leaves > 10_000 else (9, None)
        flat = linen_adapter.flatten({"params": old})
        found += rows(
            f"flatten, {leaves:,} leaves",
            paired(
                {
                    "flax.traverse_util": lambda old=old: traverse_util.flatten_dict({"params": old}, sep="/"),
                    "linen_adapter.flatten": lambda old=old: linen_adapter.flatten({"params": old}),
                },
                rounds,
                number,
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
                number,
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
                    "forward": lambda plan=plan, plain=plain: plan.forward(plain),
                    "plan and forward": lambda m=mapping, p=plain, w=wanted: m.plan(p, w).forward(p),
                    **renamers(RULES, plain, wanted),
                },
                rounds,
                number,
            ),
            leaves,
        )
    for count in (10, 100) if quick else (10, 100, 1_000):
        for leaves in (1_000,) if quick else (1_000, 10_000, 100_000):
            plain = dict(linen_adapter.flatten({"params": tree(leaves)}))
            wanted = {rename(path): leaf for path, leaf in plain.items()}
            mapping = renaming(count)
            contenders = {"plan": lambda m=mapping, p=plain, w=wanted: m.plan(p, w)}
            if leaves * count <= 10_000_000:  # minutes a call for those who try every rule on every path
                contenders |= renamers(count, plain, wanted)
            found += rows(f"{count} rules, {leaves:,} leaves", paired(contenders, 3, number=1), leaves)
    return Table(
        "memory",
        "Flatten, unflatten, plan, forward",
        "linear; no copies for renames; a plan of 100,000 leaves with 1,000 rules in 5 s",
        tuple(found),
        (
            f"Renamed arrays are the arrays that came, not copies: {'yes' if shared else 'no'}.",
            "`by hand` is one dictionary comprehension that knows the renaming and checks nothing. `orbax`:"
            " `apply_transformations` with a `Transform` a rule, its log silenced, up to 100,000 leaves and 512 rules: so"
            " many patterns Python keeps, and beyond that each is compiled anew for each path. `transformers`:"
            " `apply_renamings` with a `WeightRenaming` a rule, on dotted names, as it renames before it loads"
            f"{'' if TRANSFORMERS else ' (not installed here)'}. A plan checks that every leaf arrives, once, in its"
            " shape, and has the way back. Leaves are scalars, so nothing but the bookkeeping is seen.",
            *growth(found),
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


def renamers(count: int, plain: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Returns the peers that rename by rules, each with the rules that it needs and spare ones to make `count`."""
    found: dict[str, Callable[[], Any]] = {}
    if len(plain) <= 100_000 and count < 512:
        transforms = {
            rf"params/(\w+)/layer{k}/kernel": orbax.Transform(original_key=rf"params/\1/kind{k}/w")
            for k in range(RULES)
        }
        for k in range(count - RULES):
            transforms[rf"params/(\w+)/o{k}/w"] = orbax.Transform(original_key=rf"params/\1/other{k}/w")
        found["orbax"] = lambda: orbax.apply_transformations(plain, transforms, wanted)
    if TRANSFORMERS:
        from transformers.core_model_loading import WeightRenaming, apply_renamings

        rules = [WeightRenaming(rf"kind{k}\.w", f"layer{k}.kernel") for k in range(RULES)]
        rules += [WeightRenaming(rf"other{k}\.w", f"o{k}.w") for k in range(count - RULES)]
        dotted = {path.replace("/", "."): leaf for path, leaf in plain.items()}
        found["transformers"] = lambda: {apply_renamings(path, rules): leaf for path, leaf in dotted.items()}
    return found
