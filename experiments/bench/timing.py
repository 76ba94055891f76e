"""Times several functions in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of a few values."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def shown(self, factor: float, decimals: int) -> str:
        low, median, high = (f"{factor * value:.{decimals}f}" for value in (self.low, self.median, self.high))
        return f"{median} ({low}–{high})"


def elapsed(function: Callable[[], object]) -> Callable[[], float]:
    """The function's own time by the wall clock; it must wait for its result."""

    def timed() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return timed


def alternate(timed: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each function in `rounds` rounds, after `warm_up` rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for count in range(warm_up + rounds):
        for name, function in timed.items():
            value = function()
            if count >= warm_up:
                seconds[name].append(value)
    return seconds


def ratio(seconds: list[float], base: list[float]) -> Spread:
    """How many times slower than `base`, round by round: a load that comes and goes falls out of each ratio."""
    return Spread.of([mine / other for mine, other in zip(seconds, base, strict=True)])
