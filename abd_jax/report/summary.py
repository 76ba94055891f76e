"""Rates of many runs as mean ± sample standard deviation over seeds."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable

from abd_jax.report.names import network_name
from abd_jax.report.rows import Row

_KEY = ("preset", "dataset", "method", "trigger", "role", "defense")


@dataclasses.dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation (n − 1), which a single value has not."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Statistic:
        """Of at least one value."""
        values = list(values)
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def percent(self) -> str:
        """E.g. `97.0 ± 1.2`, without the sign."""
        spread = "" if self.std is None else f" ± {100 * self.std:.1f}"
        return f"{100 * self.mean:.1f}{spread}"


@dataclasses.dataclass(frozen=True)
class Summary:
    """The same network over all its seeds."""

    preset: str
    dataset: str
    method: str
    trigger: str
    role: str
    defense: str
    seeds: tuple[int, ...]
    acc: Statistic
    asr: Statistic
    ra: Statistic
    seconds: Statistic

    @property
    def network(self) -> str:
        return network_name(self.role, self.defense)


def summarize(rows: Iterable[Row]) -> list[Summary]:
    """One summary per preset, data set, method, trigger and network, in the order of the rows."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name) for name in _KEY), []).append(row)
    return [
        Summary(
            **dict(zip(_KEY, key, strict=True)),
            seeds=tuple(sorted(row.seed for row in group)),
            acc=Statistic.of(row.acc for row in group),
            asr=Statistic.of(row.asr for row in group),
            ra=Statistic.of(row.ra for row in group),
            seconds=Statistic.of(row.seconds for row in group),
        )
        for key, group in groups.items()
    ]


def varying(rows: Iterable[Row]) -> list[str]:
    """Which of preset, data set and method differ between rows, so that a table needs a column for them.

    The preset needs none where the methods have one each, as in a matrix: the method's column tells it.
    """
    rows = list(rows)
    values = {name: {getattr(row, name) for row in rows} for name in ("preset", "dataset", "method")}
    if len({(row.preset, row.method) for row in rows}) == len(values["method"]) > 1:
        del values["preset"]
    return [name for name, found in values.items() if len(found) > 1]
