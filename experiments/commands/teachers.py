"""`teachers`: tabulates a folder of teachers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Column, Table

from abd_jax.training import zoo
from experiments.console import stdout
from experiments.parser import parse


@dataclasses.dataclass(frozen=True)
class Teachers:
    """Options of `teachers`."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY")]
    """Searched for teachers, whatever command made them."""
    json: bool = False
    """Print a JSON list instead of a table."""


def main(argv: list[str]) -> None:
    """Parses, searches and prints."""
    options = parse(Teachers, argv, prog="teachers", description="Tabulate a folder of teachers.")
    found = zoo.teachers(options.directory)
    if options.json:
        print(json.dumps(found))
        return
    for network in dict.fromkeys(map(_network, found)):
        stdout.print(_table(network, [row for row in found if _network(row) == network]))


def _network(row: dict[str, Any]) -> str:
    return f"{row['dataset']}, {row['architecture']}"


def _table(network: str, rows: list[dict[str, Any]]) -> Table:
    """Of one network's teachers, in 80 columns: a path too long for that is folded, numbers are whole."""
    heads = ("trigger → class", "n", "ACC %", "ASR %", "RA %", "digest")
    columns = (Column("teacher", overflow="fold"), *(Column(head, no_wrap=True) for head in heads))
    table = Table(*columns, title=network, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for row in rows:
        rates = ("?" if row[name] is None else f"{100 * row[name]:.2f}" for name in ("acc", "asr", "ra"))
        attack = f"{row['trigger']} → {row['target']}"
        path = row["path"].removesuffix("/network")
        table.add_row(path, attack, str(row["poisoned"]), *rates, str(row["digest"])[:7])
    return table
