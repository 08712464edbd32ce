"""What a problem says of modules that could be paired in several ways: the lines to write, and the odd ones out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from bridges.core._errors import describe
from bridges.core._flat import under
from bridges.mapping._identify import above, cut
from bridges.mapping._op import Abstract

_NAME = re.compile(r"(.*?)(?:\[([0-9]+)\]|(_?)([0-9]+))?", re.DOTALL)


@dataclasses.dataclass
class _Run:
    """Modules numbered one after the other."""

    base: str
    form: str  # what is written for a number: '[]' an index, 'int', or 'auto' if the first has none
    first: int
    paths: list[str]

    def line(self, shift: int) -> str:
        """Returns the template of its modules from the given one on."""
        offset = self.first + shift
        plus = f"+{offset}" if offset else ""
        if self.form == "[]":
            return f"{self.base}[{{i{plus}:int}}]"
        return f"{self.base}{{i{plus}:{self.form}}}"


def _runs(paths: Sequence[str]) -> list[_Run]:
    """Returns the runs, those of stacks first."""
    families: dict[str, list[tuple[int, str, str]]] = {}
    for path in paths:
        found = _NAME.fullmatch(path)
        base, index, bar, number = found.groups() if found else (path, None, "", None)
        if index is not None:
            families.setdefault(base + "[", []).append((int(index), "[]", path))
        else:
            families.setdefault(base, []).append((int(number or 0), bar or ("" if number else "-"), path))
    runs = []
    for family in families.values():
        family.sort()
        numbers = [number for number, *_ in family]
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            return []
        _, form, path = family[-1]
        base = path[: len(path) - len(f"{form}{numbers[-1]}")] if form in ("", "_") else path
        if form == "[]":
            runs.append(_Run(path[: path.rindex("[")], "[]", numbers[0], [p for *_, p in family]))
        else:
            auto = len(family) > 1 and family[0][1] == "-"
            base += "" if auto else form.strip("-")
            runs.append(_Run(base, "auto" if auto else "int", numbers[0], [p for *_, p in family]))
    return sorted(runs, key=lambda run: (run.form != "[]", run.base))


def lines_for(src: Sequence[str], dst: Sequence[str]) -> str:
    """Returns `: for example, …` with lines that join these modules run by run, or the form of a line where none are told.

    >>> lines_for(['a', 'b'], ['x', 'y'])
    ", a line for each: 'a' = 'x', if they are the same"
    >>> lines_for(['last', 'scan/[0]', 'scan/[1]'], ['block', 'block_1', 'block_2'])
    ": for example, 'scan/[{i:int}]' = 'block{i:auto}' and 'last' = 'block_2'"
    """
    if len(src) == 1 < len(dst) or len(dst) == 1 < len(src):
        pairs = [f"{src[0]!r} = {list(dst)}"] if len(src) == 1 else [f"{m!r} = {dst[0]!r}" for m in src]
        return f", or {' and '.join(pairs[:3])} if they are tied"
    runs = [_runs(src), _runs(dst)]
    stacked = any(run.form == "[]" for end in runs for run in end)
    if len(src) != len(dst) or not stacked or 1 not in map(len, runs) or not all(runs):
        return f", a line for each: {src[0]!r} = {dst[0]!r}, if they are the same"
    many = 0 if len(runs[1]) == 1 else 1
    one = runs[1 - many][0]
    at = 0
    lines = []
    for run in runs[many]:
        pair = [run.paths[0], one.paths[at]] if len(run.paths) == 1 else [run.line(0), one.line(at)]
        lines.append(" = ".join(map(repr, pair[:: 1 if many == 0 else -1])))
        at += len(run.paths)
    return ": for example, " + " and ".join(lines)


def odd_ones(modules: Sequence[str], entries: Mapping[str, Abstract]) -> str:
    """Returns a sentence on each module whose name is one more of the run, but whose entries are others; or nothing.

    >>> import numpy as np
    >>> have = {f'params/l_{i}/w': np.zeros((2, 3 if i == 1 else 2), np.float32) for i in range(3)}
    >>> odd_ones(['l_0', 'l_2'], have)
    " 'l_1' is not like the others: w is float32[2,3] there, float32[2,2] in 'l_0'."
    """
    bases = {_base(module) for module in modules}
    if len(modules) < 2 or len(bases) > 1:
        return ""
    inside: dict[str, dict[str, Abstract]] = {}
    for path, value in entries.items():
        collection, owner, leaf = cut(path)
        for module in above(owner):
            if _base(module) in bases and _NAME.fullmatch(module).group(2) is None:  # type: ignore[union-attr]
                below = owner[len(module) :].lstrip("/")
                name = "/".join(part for part in (collection if collection != "params" else "", below, leaf) if part)
                inside.setdefault(module, {})[name] = value
    usual = inside.get(modules[0], {})
    odd = [m for m in inside if m not in modules and not any(under(m, other) or under(other, m) for other in modules)]
    return "".join(_unlike(module, inside[module], modules[0], usual) for module in odd[:3])


def _base(module: str) -> str:
    return _NAME.fullmatch(module)[1].removesuffix("_")  # type: ignore[index]


def _unlike(module: str, have: Mapping[str, Abstract], first: str, usual: Mapping[str, Abstract]) -> str:
    differ = [f"{name} is missing" for name in usual if name not in have]
    differ += [f"{name} {describe(have[name])} is one more" for name in have if name not in usual]
    for name in usual:
        if name in have and describe(have[name]) != describe(usual[name]):
            differ.append(f"{name} is {describe(have[name])} there, {describe(usual[name])} in {first!r}")
    return f" {module!r} is not like the others: {', '.join(differ[:4])}." if differ else ""
