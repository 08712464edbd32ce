"""Contenders timed in turn: each round runs all of them, in another order, so that what slows the machine slows all alike.

A figure is the median over the rounds with its quartiles; a ratio is the median of the rounds' own ratios, not the ratio
of two medians. The garbage collector runs between rounds, not in them.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

ROUND = 0.02  # seconds that a contender runs in a round, at least


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median and its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return cls(median, low, high)


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one contender took.

    Attributes:
      seconds: For one call.
      ratio: Over the first contender's, round by round.
    """

    seconds: Spread
    ratio: Spread


def paired(
    contenders: Mapping[str, Callable[[], Any]], rounds: int = 15, number: int | None = None, warm: bool = True
) -> dict[str, Timing]:
    """Returns the timings of contenders, in seconds per call; the first is what the others are compared with.

    Args:
      contenders: Functions by name. Each waits for its own results.
      rounds: How often each is timed.
      number: Calls in a round; as many as take `ROUND` seconds, if not given.
      warm: Whether each is called before anything is timed.
    """
    numbers = {}
    for name, call in contenders.items():
        if warm:
            call()
        numbers[name] = number or _number(call)
    names, took = list(contenders), {name: [] for name in contenders}
    for turn in range(rounds):
        gc.collect()
        gc.disable()
        try:
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                call = contenders[name]
                began = time.perf_counter()
                for _ in range(numbers[name]):
                    call()
                took[name].append((time.perf_counter() - began) / numbers[name])
        finally:
            gc.enable()
    first = took[names[0]]
    return {
        name: Timing(Spread.of(values), Spread.of([a / b for a, b in zip(values, first, strict=True)]))
        for name, values in took.items()
    }


def _number(call: Callable[[], Any]) -> int:
    number = 1
    while True:
        began = time.perf_counter()
        for _ in range(number):
            call()
        took = time.perf_counter() - began
        if took >= ROUND:
            return number
        number = max(number + 1, min(10 * number, int(1.2 * number * ROUND / max(took, 1e-9))))
