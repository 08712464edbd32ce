"""A plan as text: a table of its items, what it decided by itself, and the verdict with its reasons.

At most `WIDTH` columns for ordinary paths: where source and target do not fit side by side, the target goes below.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bridges.core._errors import describe
from bridges.mapping._op import Abstract

if TYPE_CHECKING:
    from bridges.mapping._plan import Item, Plan

WIDTH = 100


def text(plan: Plan) -> str:
    """Returns the plan as `str(plan)` shows it."""
    marks = {loss: n for n, loss in enumerate(plan.losses, 1)}
    blocks = [_block(item, marks) for item in plan.items]
    head: list[tuple[str, ...]] = [("source",), ("ops",), ("target",), ("shape",)]
    lines = _lines([head, *blocks])
    if max(map(len, lines)) > WIDTH:
        head = [("source", "-> target"), ("ops",), ("shape", "-> shape")]
        below = [
            [(*sources, *(f"-> {t}" for t in targets)), ops, _below(shape[0])]
            for sources, ops, targets, shape in blocks
        ]
        lines = _lines([head, *below])
    lines.insert(max(map(len, head)), "-" * max(map(len, lines)))
    own = [f"  {s or '(root)'} -> {d or '(root)'}, {how}" for s, d, how in plan.placements if how != "given"]
    lines += ["placed by the plan itself:", *own] if own else []
    for end, paths in (("source", plan.src_random), ("target", plan.dst_random)):
        if paths:
            lines.append(f"random state of the {end}, left alone: {', '.join(paths)}")
    lines.append(f"{len(plan.src)} entries -> {len(plan.dst)} entries: {plan.verdict}")
    for (verdict, reason), n in marks.items():
        lines += textwrap.wrap(
            f"  [{n}] {verdict}: {reason}", WIDTH, subsequent_indent="      ", break_on_hyphens=False
        )
    return "\n".join(lines)


def _block(item: Item, marks: dict[tuple[str, str], int]) -> list[tuple[str, ...]]:
    mark = "".join(f"  [{marks[loss]}]" for loss in dict.fromkeys(item.losses))
    sources, targets = item.sources or ("(fill)",), item.targets or ("(drop)",)
    return [_some(sources), tuple(map(str, item.ops)), _some(targets), (_shape(item) + mark,)]


def _some(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the paths, of many only the first and the last."""
    return paths if len(paths) <= 8 else (*paths[:2], f"  … {len(paths) - 3} more …", paths[-1])


def _below(shape: str) -> tuple[str, ...]:
    before, arrow, after = shape.partition(" -> ")
    return (before, f"-> {after}") if arrow else (shape,)


def _shape(item: Item) -> str:
    ends = [item.stages[0], item.stages[-1]]
    if not item.sources or not item.targets:
        ends = [ends[0] or ends[1]]
    dtypes = {x.dtype for end in ends for x in end}
    if len(dtypes) > 1:
        return " -> ".join(" + ".join(dict.fromkeys(map(describe, end))) for end in ends)
    parts = [_sizes(end) for end in ends]
    if len(set(parts)) == 1:
        return f"{dtypes.pop()}{parts[0]}"
    return f"{dtypes.pop()} {' -> '.join(parts)}"


def _sizes(end: Sequence[Abstract]) -> str:
    """Returns `[3,4]`; `2 x [4]` for several alike."""
    runs = [(size, len(list(run))) for size, run in itertools.groupby(tuple(x.shape) for x in end)]
    return " + ".join(f"{n} x " * (n > 1) + f"[{','.join(map(str, size))}]" for size, n in runs)


def _lines(blocks: Sequence[Sequence[tuple[str, ...]]]) -> list[str]:
    widths = [max((len(cell) for block in blocks for cell in block[i]), default=0) for i in range(len(blocks[0]))]
    lines = []
    for block in blocks:
        for n in range(max(map(len, block))):
            cells = [column[n] if n < len(column) else "" for column in block]
            lines.append("  ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)).rstrip())
    return lines
