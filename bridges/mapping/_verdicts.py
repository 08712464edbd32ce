"""What the shipped conventions make of each layer between each two frameworks, as the conventions themselves say it."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator

import numpy as np

from bridges.mapping._conventions import conventions, frameworks
from bridges.mapping._op import Abstract
from bridges.mapping._plan import EVALUATION, EXACT, NOT_EXACT, ROUNDING
from bridges.mapping._row import LayerRow
from bridges.mapping._rule import Rule

REFUSED = "refused"
_WORST = (EXACT, ROUNDING, EVALUATION, NOT_EXACT, REFUSED)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What becomes of one type of layer from one framework to another.

    Attributes:
      layer: The row's type in the conventions.
      src, dst: The frameworks.
      verdict: 'exact', 'exact to rounding', 'exact for evaluation only', 'not exact' or 'refused'.
      reason: Why it is not 'exact'.
      types: The framework's types of this layer, at the source and at the target.
      when: The hyperparameters that the row is for, at both ends.
    """

    layer: str
    src: str
    dst: str
    verdict: str
    reason: str = ""
    types: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    when: str = ""


def verdicts() -> list[Verdict]:
    """Returns a verdict for each row of the conventions between each two different frameworks.

    A plan may be worse, by what is data: entries that a row can only leave out if they are zero, differences that are
    accepted. It is never better.

    >>> [v.verdict for v in verdicts() if (v.layer, v.src, v.dst) == ('BatchNorm', 'haiku', 'linen')]
    ['exact for evaluation only']
    """
    return [
        _verdict(row, src, dst)
        for src, dst in itertools.permutations(frameworks(), 2)
        for part in conventions(src, dst).parts
        for row in part.layers
    ]


def _verdict(row: LayerRow, src: str, dst: str) -> Verdict:
    when = ", ".join(f"{name} {_condition(value)}" for name, value in dict.fromkeys((*row.src_when, *row.dst_when)))
    types = row.src, row.dst
    if row.refuse:
        return Verdict(row.type, src, dst, REFUSED, row.refuse, types, when)
    found = [loss for rule in row.rules for loss in _losses(rule)]
    verdict = max((v for v, _ in found), key=_WORST.index, default=EXACT)
    reasons = dict.fromkeys(reason for v, reason in found if v != EXACT)
    return Verdict(row.type, src, dst, verdict, ". ".join(reasons), types, when)


def _condition(value: object) -> str:
    return str(value) if isinstance(value, str) else f"= {str(value).lower()}"


def _losses(rule: Rule) -> Iterator[tuple[str, str]]:
    """Yields what a rule loses on its way forward, whatever the shapes."""
    if rule.refuse and not rule.dst:
        yield REFUSED, rule.refuse
    elif rule.resume:
        yield EVALUATION, rule.resume
    elif not rule.dst:
        yield (EVALUATION, rule.reason) if rule.reason else (NOT_EXACT, f"{rule.src[0].text} is dropped")
    elif rule.src:
        some = [Abstract((2, 2), np.dtype("float32"))]
        for op in rule.ops:
            count = max(len(rule.src), 1 + (getattr(op, "part", None) or 0))
            loss = op.loss(some * count, some * count)
            if loss:
                rounds = loss.startswith("rounding")
                yield (EVALUATION, rule.reason) if rule.reason else (ROUNDING if rounds else NOT_EXACT, loss)


PAIRS = [("haiku", "linen"), ("haiku", "nnx"), ("linen", "nnx")]
_SHORT = {EXACT: "exact", ROUNDING: "rounding", EVALUATION: "evaluation", NOT_EXACT: "not exact", REFUSED: "refused"}


def markdown() -> str:
    """Returns the verdicts as a Markdown table, a line a layer, and the reasons below it."""
    found: dict[str, dict[tuple[str, str], list[Verdict]]] = {}
    for verdict in verdicts():
        found.setdefault(verdict.layer, {}).setdefault((verdict.src, verdict.dst), []).append(verdict)
    pairs = [pair for ends in PAIRS for pair in (ends, ends[::-1])]
    lines = ["| layer | " + " | ".join(f"{src} to {dst}" for src, dst in pairs) + " |", "|---" * 7 + "|"]
    reasons: dict[str, list[str]] = {}
    for layer in sorted(found):
        cells = [_cell(found[layer].get(pair, [])) for pair in pairs]
        lines.append(f"| {layer} | " + " | ".join(cells) + " |")
        for each in found[layer].values():
            for verdict in each:
                if verdict.reason:
                    layers = reasons.setdefault(verdict.reason, [])
                    layers += [layer] if layer not in layers else []
    lines.append("")
    lines += [f"- {', '.join(layers)}: {escaped(reason)}." for reason, layers in reasons.items()]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Returns a reason as Markdown that shows it as it is: names like `_tilde_` are no emphasis.

    >>> escaped("~ as _tilde_, param_mapping, (r * h)")
    '\\\\~ as \\\\_tilde\\\\_, param_mapping, (r \\\\* h)'
    """
    return re.sub(r"(?<!\w)_|_(?!\w)|[*~|<]", lambda sign: f"\\{sign[0]}", text)


def _cell(rows: list[Verdict]) -> str:
    """Returns `exact`; where rows differ, `exact, evaluation (double_bias = true)`."""
    if len({row.verdict for row in rows}) == 1:
        return _SHORT[rows[0].verdict]
    return ", ".join(f"{_SHORT[row.verdict]} ({row.when})" for row in rows)
