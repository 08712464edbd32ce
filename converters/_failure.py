"""Failure: what a person sees of a command that cannot be done, and the status with which it ends.

One screen on the standard error, or `{"error": …}` on the standard output under `--json`; never a traceback.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click

CANNOT = 2
SCREEN = 40  # lines of an error


def _ours(err: Exception) -> bool:
    known = sys.modules.get("bridges.core._errors")
    return known is not None and isinstance(err, known.BridgeError)


def _explained(err: Exception) -> str:
    if _ours(err):
        return str(err)
    if isinstance(err, (OSError, MemoryError)):
        return f"{type(err).__name__}: {err}"
    return (
        f"{type(err).__name__}: {err}\nThis error was not foreseen. BRIDGES_TRACEBACK=1 in the environment shows where it"
        " arose; please report it."
    )


def ended(given: Sequence[str], err: Exception) -> int:
    """Says that a command ended with an exception, and returns the status."""
    return cannot(given, _explained(err), explained_at=getattr(err, "help", "") if _ours(err) else "")


def cannot(given: Sequence[str], text: str, usage: str = "", explained_at: str = "") -> int:
    """Says why a command cannot be done, and returns the status.

    Args:
      given: The command's arguments.
      text: Why.
      usage: How it is called, where it was called otherwise.
      explained_at: Where the documentation has more.
    """
    if "--json" in given:
        click.echo(json.dumps({"error": text} | ({"help": explained_at} if explained_at else {})))
        return CANNOT
    lines = text.splitlines()
    if len(lines) > SCREEN:
        lines = [*lines[: SCREEN - 1], f"… and {len(lines) - SCREEN + 1} more lines; --json has them all"]
    from converters._outline import printable

    shown = "\n".join(map(printable, lines))
    click.echo(f"{usage}\n\n{shown}" if usage else f"bridges: {shown}", err=True)
    if explained_at:
        click.echo(f"See {explained_at}", err=True)
    return CANNOT
