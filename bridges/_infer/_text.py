"""Text: an inferred mapping as TOML that a person reads: rules, and beside each why it is there."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bridges._infer._found import Evidence, Unplaced
from bridges._infer._inferred import open_lines
from bridges.mapping import _toml

_WIDTH = 118


@dataclasses.dataclass(frozen=True)
class Line:
    """A rule as plain data, with the evidence of all its targets."""

    rule: Mapping[str, Any]
    evidence: Sequence[Evidence]


def said(evidence: Sequence[Evidence]) -> list[str]:
    """Returns what the evidence of several leaves says, in a few lines.

    >>> said([Evidence('values', error=2e-16, confirmed=3), Evidence('values', error=1e-15, confirmed=5)])
    ['2 leaves by values, to 1e-15; 3 later values agree']
    """
    if not evidence:
        return []
    kinds: dict[str, int] = {}
    for leaf in evidence:
        kinds[leaf.kind] = kinds.get(leaf.kind, 0) + 1
    if len(evidence) == 1:
        text = f"by {evidence[0].kind}"
    elif len(kinds) == 1:
        text = f"{len(evidence)} leaves by {next(iter(kinds))}"
    else:
        text = ", ".join(f"{n} leaves by {kind}" for kind, n in kinds.items())
    errors = [e.error for e in evidence if not math.isnan(e.error)]
    text += f", to {max(errors):.0e}" if errors else ""
    confirmed = min(e.confirmed for e in evidence)
    text += f"; {confirmed} later value{'s' * (confirmed != 1)} agree{'s' * (confirmed == 1)}" if confirmed else ""
    counts = collections.Counter(e.text for e in evidence if e.text)
    more = [f"{n} of them: {words}" if len(evidence) > 1 else words for words, n in counts.most_common(3)]
    return [text, *more]


def write(
    head: Sequence[str],
    *,
    extends: tuple[str, str] | None,
    modules: Sequence[tuple[tuple[str, str], Sequence[Evidence]]],
    rules: Sequence[Line],
    drop: Sequence[Mapping[str, Any]],
    fill: Mapping[str, Any],
    cast: Sequence[str],
    unplaced: Sequence[Unplaced],
    unused: Sequence[str],
) -> str:
    """Returns the TOML.

    Args:
      head: What it begins with, as comments.
      extends: The frameworks whose conventions it extends.
      modules: Lines of `[modules]`, with the evidence for what they place.
      rules, drop, fill, cast: The sections of the mapping.
      unplaced, unused: Target leaves and source leaves that are open.
    """
    lines = [f"# {text}" for text in head]
    lines += ["# OPEN: " + text.replace("\n", " ") for text in open_lines(unplaced, unused)]
    top: dict[str, Any] = {}
    if extends:
        top["extends"] = [f"conventions:{extends[0]}->{extends[1]}"]
    if drop:
        top["drop"] = [dict(row) for row in drop]
    if cast:
        top["cast"] = list(cast)
    inline = "".join(f"{key} = {_toml.inline_value(value)}\n" for key, value in top.items())
    out = ["\n".join(lines) + "\n" * bool(lines) + inline]
    if modules:
        out.append("[modules]\n" + "".join(_module(line, evidence) for line, evidence in modules))
    for row in rules:
        comment = "".join(f"# {text}\n" for text in said(row.evidence))
        out.append(comment + _toml.dumps({"rules": [row.rule]}))
    if fill:
        out.append(_toml.dumps({"fill": dict(fill)}))
    return "\n".join(out)


def _module(line: tuple[str, str], evidence: Sequence[Evidence]) -> str:
    text = _toml.dumps({line[0]: line[1]}).rstrip("\n")
    why = said(evidence)
    beside = f"{text}  # {why[0]}" if why else text
    if len(beside) <= _WIDTH and len(why) < 2:
        return beside + "\n"
    return "".join(f"# {w}\n" for w in why) + text + "\n"
