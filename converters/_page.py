"""The report as one HTML page: no script, no network, readable on a phone and in the dark.

Invariant: every name that comes from outside is escaped; the page holds no element that the text could have made.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from converters.report import (
    BY_VALUES,
    DIFFERENT,
    EQUAL,
    NOT_RUN,
    PLANNED,
    UNPROVEN,
    UNUSED,
    Check,
    Joined,
    number,
    told,
)

if TYPE_CHECKING:
    from converters.report import Report

_MARK = {
    EQUAL: ("good", "✓"), PLANNED: ("fair", "≈"), DIFFERENT: ("bad", "✗"), UNPROVEN: ("bad", "?"), NOT_RUN: ("dim", "–"),
    BY_VALUES: ("good", "✓"), UNUSED: ("dim", "–"),
}  # fmt: skip
_WRONG = ' class="wrong"'
_ORDER = (DIFFERENT, UNPROVEN, PLANNED, EQUAL, BY_VALUES, UNUSED, NOT_RUN)

_STYLE = """
:root { color-scheme: light dark; --bg: #fbfbfa; --fg: #1d2125; --dim: #69717a; --line: #e2e4e6; --card: #fff;
  --good: #14713f; --bad: #b3261e; --fair: #8a5a00; --soft: #f0f1f2; }
@media (prefers-color-scheme: dark) { :root { --bg: #15181b; --fg: #e4e6e8; --dim: #98a1aa; --line: #30363c;
  --card: #1c2024; --good: #62c98f; --bad: #ff8a80; --fair: #e2b455; --soft: #262b30; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 8px; } h2 { font-size: 1.1rem; margin: 34px 0 10px; }
p { margin: 6px 0; } code { font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
.verdict { font-size: 1.15rem; font-weight: 600; } .dim { color: var(--dim); }
.good { color: var(--good); } .bad { color: var(--bad); } .fair { color: var(--fair); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 18px; margin: 16px 0; }
.card.alarm { border-left: 4px solid var(--bad); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 8px 0 0; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
table { width: 100%; border-collapse: collapse; background: var(--card); border: 1px solid var(--line); }
th, td { text-align: left; vertical-align: top; padding: 6px 12px; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--dim); font-weight: 500; font-size: 13px; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.module th { background: var(--soft); font-weight: 600; } tr.module th code { font-size: 13px; }
tr.wrong { background: color-mix(in srgb, var(--bad) 9%, transparent); }
.status { white-space: nowrap; display: inline-block; }
.leaf { padding-left: 14px; display: block; } .ops { color: var(--dim); font-size: 13px; }
.err { display: inline-block; margin-right: 12px; white-space: nowrap; font-size: 13px; }
details { margin: 14px 0; } summary { cursor: pointer; } ul { padding-left: 20px; margin: 6px 0; }
li { overflow-wrap: anywhere; }
@media (max-width: 700px) {
  main { padding: 16px 12px 40px; } thead { display: none; } dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin: 0 0 8px; }
  tr { display: block; border-top: 1px solid var(--line); padding: 8px 4px; } tbody tr:first-child { border-top: 0; }
  td, th { display: block; border: 0; padding: 1px 8px; } tr.module { padding: 0; } tr.module th { padding: 4px 8px; }
  tr.module th:empty { display: none; }
  td[data-label]::before { content: attr(data-label); color: var(--dim); font-size: 12px; display: inline-block;
    min-width: 84px; margin-right: 6px; vertical-align: top; }
  .sum tr { display: flex; flex-wrap: wrap; gap: 0 10px; padding: 8px 12px; } .sum td { padding: 0; }
  .sum td::before { min-width: 0 !important; } .sum td[data-label=run]::before, .sum td[data-label=compared]::before,
  .sum td[data-label=error]::before { display: none; } .sum td[data-label=run] { font-weight: 600; }
  .sum td[data-label=""] { order: -1; width: 100%; } .sum td[data-label=""]::before { display: none; }
  .leaf { display: inline-block; padding: 0; max-width: calc(100% - 96px); }
  td.n { white-space: normal; } td:empty { display: none; }
}
"""


def page(report: Report, title: str) -> str:
    """Returns the page."""
    tone = "good" if report.ok else "bad"
    said = f"The plan says: {report.plan_verdict}." if report.plan_verdict else "There is no plan."
    body = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="verdict {tone}">{_text(report.verdict)}</p>',
        f'<p class="dim">{_text(said)} {len(report.checks)} comparisons.</p>',
        *_first(report),
        "<h2>What was compared</h2>",
        _summary(report),
    ]
    if report.items:
        body += ["<h2>Both parameter trees</h2>", _trees(report)]
    if report.unproven:
        body += ["<h2>What the outputs say nothing of</h2>", _list(f"{p}: {how}" for p, how in report.unproven.items())]
    if report.notes:
        body += ["<h2>Notes</h2>", _list(report.notes)]
    body.append(_all(report.checks))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}: {_text(report.verdict)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _text(x: object) -> str:
    return html.escape(str(x), quote=True)


def _code(x: object) -> str:
    return f"<code>{_text(x).replace('/', '/<wbr>')}</code>"


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul>"


def _first(report: Report) -> list[str]:
    first = report.first
    if first is None:
        return []
    pairs = [
        ("Where", f"{_text(first.where)}, operation {_code(first.operation)}"),
        ("In the source", _code(first.src_layer or "the model itself")),
        ("Likely reason", f"<strong>{_text(first.reason)}</strong>"),
        ("Evidence", _text(first.evidence)),
        ("Seen in", _text(f"{first.mode}, {first.dtype}")),
    ]
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in pairs)
    return [f'<section class="card alarm"><strong>The first layer that differs</strong><dl>{rows}</dl></section>']


def _status(status: str) -> str:
    tone, mark = _MARK[status]
    return f'<span class="status {tone}">{mark} {_text(status)}</span>'


def _table(head: Sequence[str], rows: Iterable[str], kind: str) -> str:
    cells = "".join(f"<th>{name}</th>" for name in head)
    return f'<table class="{kind}"><thead><tr>{cells}</tr></thead><tbody>' + "".join(rows) + "</tbody></table>"


def _row(cells: Sequence[tuple[str, str]], wrong: bool) -> str:
    inner = "".join(f'<td class="n" data-label="{label}">{value}</td>' for label, value in cells)
    return f"<tr{_WRONG if wrong else ''}>{inner}</tr>"


def _summary(report: Report) -> str:
    rows = []
    for c, n in report.groups():
        where = " ".join(filter(None, (c.mode, c.dtype))) or "as given"
        measured = c.what != "proof" and c.status != NOT_RUN
        cells = [
            ("run", _text(where)), ("compared", f"{_text(c.what)} ({n})"),
            ("error", f"{number(c.ulps)} ulps" if measured else ""),
            ("allowed", number(c.allowed) if measured else ""), ("relative", number(c.relative) if measured else ""),
            ("", _status(c.status)),
        ]  # fmt: skip
        rows.append(_row(cells, c.status in (DIFFERENT, UNPROVEN)))
    return _table(("Run", "What", "Largest error", "Allowed", "Relative", ""), rows, "sum")


def _module(paths: Sequence[str]) -> str:
    return "/".join(paths[0].split("/")[:-1]) if paths else ""


def _trees(report: Report) -> str:
    of: dict[str, list[Check]] = {}
    for c in report.checks:
        of.setdefault(c.path, []).append(c)
    rows, last = [], None
    for item in sorted(report.items, key=lambda i: (_module(i.sources), i.sources)):
        modules = _module(item.sources), _module(item.targets)
        if modules != last:
            last = modules
            heads = "".join(f"<th>{_code(m) if m else ''}</th>" for m in (modules[0], "", modules[1], ""))
            rows.append(f'<tr class="module">{heads}</tr>')
        rows.append(_item(item, of))
    return _table(("Source", "Ops", "Target", "Gradient error in ulps"), rows, "trees")


def _leaves(paths: Sequence[str], module: str, nothing: str) -> str:
    def short(path: str) -> str:
        return path[len(module) + 1 :] if module and path.startswith(module + "/") else path

    return (
        "".join(f'<span class="leaf">{_code(short(p))}</span>' for p in paths) or f'<span class="dim">{nothing}</span>'
    )


def _item(item: Joined, of: dict[str, list[Check]]) -> str:
    gradients: dict[str, Check] = {}
    for path in item.sources:
        for c in of.get(path, ()):
            key = f"{c.dtype}{' train' if c.mode == 'train' else ''}"
            if c.what == "gradient" and (key not in gradients or c.ulps > gradients[key].ulps):
                gradients[key] = c
    about = [
        c for p in (*item.sources, *item.targets) for c in of.get(p, ()) if c.what not in ("output", "input gradient")
    ]
    worst = min((c.status for c in about), key=_ORDER.index, default="")
    proof = next((c.status for c in about if c.what == "proof"), None)
    status = worst if worst in (DIFFERENT, UNPROVEN, PLANNED) else proof or worst
    errors = "".join(
        f'<span class="err"><span class="dim">{_text(key)}</span> '
        f'<span class="{_MARK[c.status][0]}">{number(c.ulps)}</span></span>'
        for key, c in gradients.items()
    )
    ops = "".join(f"{_text(op)}<br>" for op in item.ops)
    cells = [
        ("source", _leaves(item.sources, _module(item.sources), "nothing: filled")),
        ("ops", f'<span class="ops">{ops}{_text(item.shapes)}</span>'),
        ("target", _leaves(item.targets, _module(item.targets), "nothing: dropped")),
        ("gradient", f"{errors}{_status(status) if status else ''}"),
    ]
    inner = "".join(f'<td data-label="{label}">{value}</td>' for label, value in cells)
    return f"<tr{_WRONG if status in (DIFFERENT, UNPROVEN) else ''}>{inner}</tr>"


def _all(checks: Sequence[Check]) -> str:
    ordered = sorted(checks, key=lambda c: _ORDER.index(c.status))
    lines = "".join(f'<li class="{_MARK[c.status][0]}">{_text(told(c))}</li>' for c in ordered)
    return f"<details><summary>All {len(ordered)} comparisons</summary><ul>{lines}</ul></details>"
