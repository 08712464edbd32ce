"""What a program asks of the running context: its entries, a random key, a flag."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from bridges.core._context import context
from bridges.core._errors import ContextError
from bridges.core._frame import current_frame
from bridges.core._state import State


def state() -> State:
    """Returns all entries of the running context as a `State`; changing it changes nothing."""
    return context().snapshot()


def rng(stream: str = "default") -> jax.Array:
    """Returns a fresh random key for the current module.

    Args:
      stream: Which of the streams given as `seed={'params': 0, 'dropout': 1}`; one seed serves all of them.

    Raises:
      SeedError: No seed was given, or none for this stream.
    """
    return context().draw(stream)


def flag(name: str, default: Any = None) -> Any:
    """Returns the flag set for this call with `flags=` or `with flags(…)`, or the default."""
    return context().flag(name, default)


@contextlib.contextmanager
def flags(**values: Any) -> Iterator[None]:
    """Sets flags for a `with` block, inherited by everything that is called inside it, wrapped layers too.

    Raises:
      ContextError: No stateful function is running.
    """
    frame = current_frame()
    if frame is None or frame.context is None:
        given = ", ".join(f"{name!r}: {value!r}" for name, value in values.items())
        raise ContextError(
            "bridges.flags sets flags inside of a stateful function, and none is running. Give them to the call from"
            f" outside: bridges.pure(fn)(state, *args, flags={{{given}}}), and to jit, init and apply likewise."
        )
    running = frame.context
    before = running.flags
    running.flags = {**before, **values}
    try:
        yield
    finally:
        running.flags = before
