"""The table of pairs: what is found for each, and whether it is right. `make pairs` runs it.

    python -m tests.pairs.table [NAME …] [--json FILE] [--docs]

With --docs, the table in docs/pairs.md is written anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import sys

import jax

from tests.pairs.outcome import Outcome
from tests.pairs.pair import NAMES, Pair

PAGE = pathlib.Path(__file__).parent.parent.parent / "docs" / "pairs.md"
BEGIN, END = "<!-- table: written by make pairs ARGS=--docs -->", "<!-- end of the table -->"
HEAD = "| pair | from, to | leaves | wrong | verified | seconds | what it is |\n|---|---|---|---|---|---|---|"


def line(outcome: Outcome) -> str:
    """Returns the row of the table."""
    proof = f"{outcome.outputs:.0e}, {outcome.gradients:.0e}" if outcome.verified else "no"
    return (
        f"| {outcome.name} | {outcome.frameworks[0]}, {outcome.frameworks[1]} | {outcome.placed} of {outcome.leaves}"
        f" | {len(outcome.wrong)} | {proof} | {outcome.seconds:.1f} | {outcome.about} |"
    )


def names_in(page: str) -> list[str]:
    """Returns the names of the pairs in the page's table."""
    table = page.partition(BEGIN)[2].partition(END)[0]
    return re.findall(r"^\| ([a-z0-9_]+) \|", table, re.MULTILINE)[1:]  # the first one is the head


def with_table(page: str, outcomes: list[Outcome]) -> str:
    """Returns the page with another table."""
    before, _, rest = page.partition(BEGIN)
    whole = sum(outcome.verified for outcome in outcomes)
    leaves, placed = sum(o.leaves for o in outcomes), sum(o.placed for o in outcomes)
    summary = (
        f"{whole} of {len(outcomes)} pairs are mapped whole and verified; {placed} of {leaves} leaves are placed,"
        f" {sum(len(o.wrong) for o in outcomes)} of them wrong. JAX {jax.__version__}, {jax.default_backend().upper()}."
    )
    rows = "\n".join([HEAD, *map(line, outcomes)])
    return f"{before}{BEGIN}\n\n{summary}\n\n{rows}\n\n{END}{rest.partition(END)[2]}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.pairs.table", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], metavar="NAME")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the rows there too")
    parser.add_argument("--docs", action="store_true", help="write the table of docs/pairs.md")
    given = parser.parse_args(argv)
    outcomes = []
    print(HEAD)
    for name in given.names or NAMES:
        outcomes.append(Outcome.of(Pair.load(name)))
        print(line(outcomes[-1]), flush=True)
        for path in outcomes[-1].wrong:
            print(f"  wrong: {path}")
        if outcomes[-1].says:
            print("  " + outcomes[-1].says.replace("\n", "\n  "), flush=True)
    if given.json:
        given.json.write_text(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    if given.docs:
        PAGE.write_text(with_table(PAGE.read_text("utf-8"), outcomes), "utf-8")
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
