"""Progress: how much is done and how long the rest will take, on a terminal, for what takes longer than a second."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

import click

from converters._outline import size

PATIENCE = 1.0  # seconds without a bar


class Progress:
    """A progress bar on the standard error that appears after a second, and only on a terminal.

    Args:
      label: What is going on.
      total: How many bytes there are to do; 0 if nobody knows.
      quiet: Never shows anything.
    """

    def __init__(self, label: str, total: int = 0, quiet: bool = False):
        self.label, self.total, self.done = label, total, 0
        self.quiet = quiet or sys.stderr is None or not sys.stderr.isatty()  # None: closed, as daemons have it
        self.began = time.monotonic()
        self.bar: Any = None

    def __call__(self, nbytes: int) -> None:
        """Counts bytes that are done."""
        self.done += nbytes
        if self.quiet or (self.bar is None and time.monotonic() - self.began < PATIENCE):
            return
        if self.bar is None:
            self.bar = click.progressbar(
                length=max(self.total, self.done, 1),
                label=self.label,
                file=sys.stderr,
                item_show_func=lambda _: self._text(),
            )
            self.bar.__enter__()
        self.bar.length = max(self.bar.length, self.done)
        self.bar.update(self.done - self.bar.pos)

    def _text(self) -> str:
        return f"{size(self.done)} of {size(self.total)}" if self.total else size(self.done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.__exit__(kind, error, trace)


class Steps(Progress):
    """The same for work that is counted in steps: which one it is at stands behind the bar."""

    where = ""

    def at(self, done: int, total: int, where: str) -> None:
        """Says how many steps are done, of how many, and where the work is."""
        self.total, self.where = total, where
        self(max(done - self.done, 0))

    def _text(self) -> str:
        return f"{self.done} of {self.total}  {self.where[-40:]}"
