"""The table of results for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from abd_jax.report.rows import Row, parse_row
from abd_jax.report.summary import summarize, varying


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
