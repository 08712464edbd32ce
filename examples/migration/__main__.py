"""Runs the guides and prints a table: `python examples/migration [--json] [TOPIC …]`; exits with 1 if anything differs."""

import argparse
import importlib
import json
import logging
import pathlib
import sys

from _proof import Proof

FOLDER = pathlib.Path(__file__).parent
TOPICS = sorted(file.stem for file in FOLDER.glob("*.py") if not file.stem.startswith("_"))


def run(topic: str) -> Proof:
    """Returns the proof that a guide makes."""
    proof = Proof(topic)
    importlib.import_module(topic).prove(proof)
    return proof


def table(summaries: list[dict]) -> str:
    """Returns the table of what the guides proved, with aligned columns."""
    head = ("topic", "columns run", "parameters moved", "max difference", "equal")
    rows = [
        (
            s["topic"],
            " ".join(s["columns"]),
            f"{s['parameters']:,}",
            f"{s['difference']:.1e}",
            "yes" if s["equal"] else "NO",
        )
        for s in summaries
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    )


def main(args: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python examples/migration", description=__doc__)
    parser.add_argument("topics", metavar="TOPIC", nargs="*", help=f"of {', '.join(TOPICS)}; all by default")
    parser.add_argument("--json", action="store_true", help="print JSON, with every comparison")
    given = parser.parse_args(args)
    if unknown := sorted(set(given.topics) - set(TOPICS)):
        parser.error(f"no guide {', '.join(unknown)}; there are {', '.join(TOPICS)}")
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs the errors that guides make on purpose
    proofs = [run(topic) for topic in given.topics or TOPICS]
    summaries = [proof.summary() for proof in proofs]
    print(json.dumps(summaries, indent=2) if given.json else table(summaries))
    for proof in proofs:
        for row in proof.failures:
            print(f"{proof.topic}: {row.column}: {row.what} differs by {row.difference:.1e}", file=sys.stderr)
    return 1 if any(proof.failures for proof in proofs) else 0


if __name__ == "__main__":
    sys.exit(main())
