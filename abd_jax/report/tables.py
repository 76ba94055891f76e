"""Rates of many runs as mean ± sample standard deviation over seeds, and the table of them for the terminal."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from abd_jax.report.names import network_name
from abd_jax.report.reading import Row, parse_row

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
    """Which of preset, data set and method differ between rows, so that a table needs a column for them."""
    rows = list(rows)
    return [name for name in ("preset", "dataset", "method") if len({getattr(row, name) for row in rows}) > 1]


def results_table(rows: Iterable[Row | Mapping[str, Any]]) -> Table:
    """ACC, ASR and RA in percent of the teacher and of every student, per trigger, for the terminal.

    Args:
        rows: as in `results.json`.

    Raises:
        ValueError: a row is malformed.
    """
    parsed = [row if isinstance(row, Row) else parse_row(row, f"row {index}") for index, row in enumerate(rows)]
    summaries = summarize(parsed)
    several = any(len(summary.seeds) > 1 for summary in summaries)
    table = Table(
        title="ACC, ASR and RA in percent",
        caption="mean ± sample standard deviation over seeds" if several else None,
        title_justify="left",
        caption_justify="left",
    )
    more = varying(parsed)
    for name in (*more, "trigger", "network"):
        table.add_column(name)
    for name in ("ACC", "ASR", "RA", "seeds"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for summary in summaries:
        key = (*(getattr(summary, name) for name in more), summary.trigger)
        if previous not in (None, key):
            table.add_section()
        # Text, not a string, since a name may hold what rich takes for markup.
        names = [Text(name if key != previous else "") for name in key]
        rates = [statistic.percent() for statistic in (summary.acc, summary.asr, summary.ra)]
        table.add_row(*names, Text(summary.network), *rates, str(len(summary.seeds)))
        previous = key
    return table
