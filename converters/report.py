"""Report: what `converters.verify` found, as data, as a table, as JSON and as a page.

Invariant: `report.ok` is true only if something was compared, all of it agreed, and it could have disagreed. What was not
run, or could not be proven, is a row of its own with the reason.
"""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from collections.abc import Sequence
from typing import Any

EQUAL, PLANNED, DIFFERENT = "equal", "as planned", "different"
UNPROVEN, NOT_RUN, BY_VALUES, UNUSED = "not proven", "not run", "proven by values", "unused"
_BAD = (DIFFERENT, UNPROVEN)
WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison of one array.

    Attributes:
      mode: 'eval', 'train' or 'step'.
      dtype: The precision; '' where it does not matter.
      what: 'output', 'gradient' (of a source variable), 'input gradient', 'state', 'parameter', 'variable', 'proof'.
      path: The array: of an output, an input, or a variable (the target's for state, parameters and variables; the
        source's for gradients and proofs).
      status: 'equal', 'as planned' (it differs as the plan says), 'different', 'not proven', 'proven by values', 'unused' or
        'not run'.
      ulps: The error, in ulps of the largest value.
      relative: The error as a part of the largest value.
      allowed: The ulps that are allowed.
      note: What else is to be said.
    """

    mode: str
    dtype: str
    what: str
    path: str
    status: str
    ulps: float = 0.0
    relative: float = 0.0
    allowed: float = 0.0
    note: str = ""


@dataclasses.dataclass(frozen=True)
class FirstDifference:
    """The first layer in which the models differ, and why.

    Attributes:
      layer: The target's module path; '' is the model itself.
      src_layer: The source's.
      where: In words: in a layer, or between two.
      operation: What the target computes there.
      paths: The target's variables of the layer.
      src_paths: The source's.
      reason: The most likely reason; 'reason unknown' where no hypothesis made the values agree.
      evidence: The figure for it.
      mode, dtype: The run that showed it.
    """

    layer: str
    src_layer: str
    where: str
    operation: str
    paths: tuple[str, ...]
    src_paths: tuple[str, ...]
    reason: str
    evidence: str
    mode: str
    dtype: str

    def __str__(self) -> str:
        at = f"{self.where} (`{self.operation}`), the source's {self.src_layer or 'model'!r}"
        return f"first difference: {at}\nmost likely reason: {self.reason}\nevidence: {self.evidence}"


@dataclasses.dataclass(frozen=True)
class Joined:
    """A row of both parameter trees: one item of the plan.

    Attributes:
      sources, targets: Paths.
      ops: From the one to the other.
      shapes: `float32[3,4] -> float32[4,3]`.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    ops: tuple[str, ...]
    shapes: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What was compared, and what came of it.

    Attributes:
      checks: Every comparison.
      first: The first difference, where outputs differ.
      items: Both parameter trees, joined by the plan; none without one.
      plan_verdict: The plan's own verdict, '' without a plan.
      notes: What was not done and why, and what the plan says is lost.
    """

    checks: tuple[Check, ...]
    first: FirstDifference | None = None
    items: tuple[Joined, ...] = ()
    plan_verdict: str = ""
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything that was compared agrees, and something was."""
        return any(c.status == EQUAL for c in self.checks) and not self.problems

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that are against it."""
        return tuple(c for c in self.checks if c.status in _BAD)

    @property
    def unproven(self) -> dict[str, str]:
        """The source's variables that outputs say nothing of -> how else they were checked, or that they were not."""
        return {c.path: f"{c.status}: {c.note}" for c in self.checks if c.what == "proof"}

    @property
    def verdict(self) -> str:
        """'equal', 'equal in evaluation, training goes on otherwise', 'different', or 'not proven'."""
        if any(c.status == DIFFERENT for c in self.checks):
            return DIFFERENT
        if not self.ok:
            return UNPROVEN
        later = any(c.status == PLANNED for c in self.checks) or self.plan_verdict == "exact for evaluation only"
        return "equal in evaluation, training goes on otherwise" if later else EQUAL

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain data; infinite errors are None."""
        return {
            "bridges_report": 1,
            "ok": self.ok,
            "verdict": self.verdict,
            "plan_verdict": self.plan_verdict,
            "first": None if self.first is None else _plain(dataclasses.asdict(self.first)),
            "unproven": self.unproven,
            "notes": list(self.notes),
            "checks": [_plain(dataclasses.asdict(c)) for c in self.checks],
            "items": [_plain(dataclasses.asdict(item)) for item in self.items],
        }

    def to_json(self, indent: int | None = None) -> str:
        """Returns the report as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def html(self, title: str = "Do the two models agree?") -> str:
        """Returns a page that needs nothing else: both parameter trees side by side, ops, errors, verdicts."""
        from converters._page import page

        return page(self, title)

    def groups(self) -> list[tuple[Check, int]]:
        """Returns the worst check of each mode, precision and sort of array, with how many there are of these."""
        found: dict[tuple[str, str, str], list[Check]] = {}
        for c in self.checks:
            found.setdefault((c.mode, c.dtype, c.what), []).append(c)
        return [(max(cs, key=_severity), len(cs)) for cs in found.values()]

    def __str__(self) -> str:
        lines = [f"verdict: {self.verdict}"]
        if self.plan_verdict:
            lines.append(f"the plan's verdict: {self.plan_verdict}")
        if self.first is not None:
            lines += [w for line in str(self.first).splitlines() for w in _wrapped(line, "")]
        head = ("mode", "dtype", "what", "arrays", "ulps", "allowed", "relative", "status")
        rows = [
            (c.mode, c.dtype, c.what, str(n), number(c.ulps), number(c.allowed), number(c.relative), c.status)
            for c, n in self.groups()
        ]
        lines += ["", *_table([head, *rows])]
        order = ("variable", "output", "state", "proof")
        worst = sorted(self.problems, key=_severity, reverse=True)
        worst.sort(key=lambda c: order.index(c.what) if c.what in order else len(order))
        if worst:
            lines += ["", "problems:", *_listed([told(c) for c in worst], 6)]
        if self.unproven:
            unused = [c for c in self.checks if c.what == "proof" and c.status == UNUSED]
            named = [f"{path}: {how}" for path, how in self.unproven.items() if not how.startswith(UNUSED)]
            named += [f"{c.path}: {c.note}" for c in unused[:2]]
            named += [f"and {len(unused) - 2} more that are not used"] * (len(unused) > 2)
            lines += ["", "variables that the outputs do not depend on:", *_listed(named)]
        notes = [*(told(c) for c in self.checks if c.status == NOT_RUN), *self.notes]
        if notes:
            lines += ["", "notes:", *_listed(notes)]
        return "\n".join(lines)


def told(c: Check) -> str:
    """Returns a check in words."""
    error = c.note or f"{number(c.ulps)} ulps apart ({number(c.relative)} of the largest), {number(c.allowed)} allowed"
    return f"{c.mode}{' ' * bool(c.dtype)}{c.dtype} {c.what} {c.path or '(the whole)'}: {c.status}, {error}"


def number(x: float) -> str:
    """Returns a short form of an error.

    >>> number(0.0), number(3.25), number(1.2e-5), number(float('inf'))
    ('0', '3.2', '1.2e-05', '-')
    """
    if not math.isfinite(x):
        return "-"
    if x == 0 or (x == int(x) and x < 1e5):
        return str(int(x))
    return f"{x:.1f}" if 0.1 <= x < 1e4 else f"{x:.1e}"


def _severity(c: Check) -> tuple[int, float]:
    order = (UNUSED, NOT_RUN, BY_VALUES, EQUAL, PLANNED, UNPROVEN, DIFFERENT)
    return order.index(c.status), c.ulps / c.allowed if c.allowed else c.ulps


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields as JSON has them: lists, and None for what is not finite."""
    infinite = {k for k, v in fields.items() if isinstance(v, float) and not math.isfinite(v)}
    lists = {k: list(v) for k, v in fields.items() if isinstance(v, tuple)}
    return {**fields, **lists, **dict.fromkeys(infinite)}


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _wrapped(line: str, mark: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, initial_indent=mark, subsequent_indent=" " * max(2, len(mark))) or [""]


def _listed(lines: Sequence[str], most: int = 12) -> list[str]:
    shown = [part for line in lines[:most] for part in _wrapped(line, "  - ")]
    return shown if len(lines) <= most else [*shown, f"  … and {len(lines) - most} more"]
