"""The variables of one model in several frameworks, in lines that stand side by side: one number, the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import bridges as br

FLAT = ("core", "ninjax")  # columns whose variables are one flat mapping
HAIKU = ("haiku", "leaf")  # columns that are Haiku programs


def native(column: str, path: str) -> str:
    """Returns what one writes in the framework to reach an entry.

    >>> native("haiku", "params/mlp/~/linear_0/w"), native("linen", "params/Dense_0/kernel")
    ("params['mlp/~/linear_0']['w']", "params['Dense_0']['kernel']")
    >>> native("nnx", "params/layers/0/kernel"), native("core", "net/dense/params/kernel")
    ('model.layers[0].kernel', "state['net/dense/params/kernel']")
    >>> native("whole", "params/net/variables/params/linear/w")
    "model.net.variables['params']['linear']['w']"
    """
    if column in FLAT:
        return f"state[{path!r}]"
    collection, *modules, leaf = path.split("/")
    if column in HAIKU:
        return f"{collection}[{'/'.join(modules)!r}][{leaf!r}]"
    if column == "linen":
        return collection + "".join(f"[{name!r}]" for name in (*modules, leaf))
    names = (*modules, leaf)
    after = names.index("variables") + 1 if "variables" in names else len(names)  # `ToNNX` has them in dictionaries
    attributes = "".join(f"[{name}]" if name.isdigit() else f".{name}" for name in names[:after])
    return "model" + attributes + "".join(f"[{name!r}]" for name in names[after:])


def _line(column: str, path: str, value: Any) -> str:
    dtype = "" if str(value.dtype) == "float32" else f" {value.dtype}"
    return f"{native(column, path)}  {tuple(value.shape)}{dtype}"


def aligned(entries: Mapping[str, br.State], plans: Mapping[str, tuple[str, br.Plan]]) -> dict[str, list[str]]:
    """Returns column -> lines, as many in each column; what has no counterpart stands beside an empty line.

    Args:
      entries: Column -> its entries. The first column's order decides.
      plans: Column -> the column that its entries came from, and the plan that made them.
    """
    group: dict[tuple[str, str], tuple[str, str]] = {
        (c, path): (c, path) for c, state in entries.items() for path in state
    }

    def root(node: tuple[str, str]) -> tuple[str, str]:
        while group[node] != node:
            node = group[node]
        return node

    for column, (after, plan) in plans.items():
        for item in plan:
            nodes = [(after, path) for path in item.sources] + [(column, path) for path in item.targets]
            for node in nodes[1:]:
                group[root(node)] = root(nodes[0])
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for column, path in group:
        groups.setdefault(root((column, path)), {}).setdefault(column, []).append(path)
    lines: dict[str, list[str]] = {column: [] for column in entries}
    for members in groups.values():
        most = max(map(len, members.values()))
        for column, found in lines.items():
            paths = members.get(column, [])
            found += [_line(column, path, entries[column][path]) for path in paths] + [""] * (most - len(paths))
    return lines
