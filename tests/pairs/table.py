"""The tables of pairs and near misses: what is found for each, and whether it is right. `make pairs` runs it.

    python -m tests.pairs.table [NAME …] [--misses] [--json FILE] [--docs]

With --docs, the rows go into docs/pairs.md; rows of pairs that were not run stay.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import sys
import time

import jax

from tests.pairs.near_misses import MISSES
from tests.pairs.outcome import Outcome, Verdict
from tests.pairs.pair import NAMES, Pair

PAGE = pathlib.Path(__file__).parent.parent.parent / "docs" / "pairs.md"
PAIRS, NEAR = "table", "near misses"
HEADS = {
    PAIRS: "| pair | from, to | leaves | wrong | verified | seconds | what it is |\n|---|---|---|---|---|---|---|",
    NEAR: "| what differs | found | as it should be | seconds |\n|---|---|---|---|",
}


def line(outcome: Outcome) -> str:
    """Returns the row of a pair."""
    proof = f"{outcome.outputs:.0e}, {outcome.gradients:.0e}" if outcome.verified else "no"
    return (
        f"| {outcome.name} | {outcome.frameworks[0]}, {outcome.frameworks[1]} | {outcome.placed} of {outcome.leaves}"
        f" | {len(outcome.wrong)} | {proof} | {outcome.seconds:.1f} | {outcome.about} |"
    )


def miss_line(name: str, verdict: Verdict) -> str:
    """Returns the row of a near miss."""
    return f"| {name} | {verdict.found} | {'yes' if verdict.right else 'no'} | {verdict.seconds:.1f} |"


def rows_in(page: str, table: str) -> dict[str, str]:
    """Returns the rows of a table of the page, by name."""
    begin, end = _marks(table)
    rows = re.findall(r"^\| ([^|]+) \|.*$", page.partition(begin)[2].partition(end)[0], re.MULTILINE)
    lines = re.findall(r"^\| [^|]+ \|.*$", page.partition(begin)[2].partition(end)[0], re.MULTILINE)
    return dict(list(zip(rows, lines, strict=True))[1:])  # the first one is the head


def with_rows(page: str, table: str, new: dict[str, str]) -> str:
    """Returns the page with these rows in a table, in place of those of the same names."""
    begin, end = _marks(table)
    names = NAMES if table == PAIRS else tuple(MISSES)
    rows = {name: row for name, row in (rows_in(page, table) | new).items() if name in names}
    rows = {name: rows[name] for name in names if name in rows}
    before, _, rest = page.partition(begin)
    summary = f"{_summary(rows)}\n\n" if table == PAIRS else ""
    body = "\n".join([HEADS[table], *rows.values()])
    return f"{before}{begin}\n\n{summary}{body}\n\n{end}{rest.partition(end)[2]}"


def _summary(rows: dict[str, str]) -> str:
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.values()]
    placed, leaves = (sum(int(c[2].split(" of ")[n]) for c in cells) for n in (0, 1))
    whole = sum(c[4] != "no" for c in cells)
    return (
        f"{whole} of {len(cells)} pairs are mapped whole and verified; {placed} of {leaves} leaves are placed,"
        f" {sum(int(c[3]) for c in cells)} of them wrong. JAX {jax.__version__}, {jax.default_backend().upper()}."
    )


def _marks(table: str) -> tuple[str, str]:
    return f"<!-- {table}: written by make pairs ARGS=--docs -->", f"<!-- end of {table} -->"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.pairs.table", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], metavar="NAME")
    parser.add_argument("--misses", action="store_true", help="the near misses only")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the rows there too")
    parser.add_argument("--docs", action="store_true", help="write the rows into docs/pairs.md")
    given = parser.parse_args(argv)
    outcomes, verdicts = {}, {}
    print(HEADS[PAIRS])
    for name in () if given.misses else given.names or NAMES:
        outcomes[name] = outcome = Outcome.of(Pair.load(name))
        print(line(outcome), flush=True)
        for path in outcome.wrong:
            print(f"  wrong: {path}")
        if outcome.says:
            print("  " + outcome.says.replace("\n", "\n  "), flush=True)
    print(f"\n{HEADS[NEAR]}")
    for name in () if given.names else MISSES:
        verdicts[name] = Verdict.of(MISSES[name])
        print(miss_line(name, verdicts[name]), flush=True)
    if given.json:
        rows = [dataclasses.asdict(row) for row in outcomes.values()]
        misses = {name: dataclasses.asdict(row) for name, row in verdicts.items()}
        made = {"date": time.strftime("%Y-%m-%d"), "jax": jax.__version__, "pairs": rows, "near misses": misses}
        given.json.write_text(json.dumps(made, indent=1) + "\n")
    if given.docs:
        page = PAGE.read_text("utf-8")
        page = with_rows(page, PAIRS, {name: line(row) for name, row in outcomes.items()})
        page = with_rows(page, NEAR, {name: miss_line(name, row) for name, row in verdicts.items()})
        PAGE.write_text(page, "utf-8")
    return int(any(row.wrong for row in outcomes.values()) or any(not row.right for row in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
