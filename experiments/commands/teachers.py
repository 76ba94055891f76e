"""`teachers`: tabulates a folder of teachers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

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
    table = Table("teacher", "network", "trigger → class", "n", "ACC %", "ASR %", "RA %", "digest", box=None)
    for row in found:
        rates = ("?" if row[name] is None else f"{100 * row[name]:.2f}" for name in ("acc", "asr", "ra"))
        network, attack = f"{row['dataset']}/{row['architecture']}", f"{row['trigger']} → {row['target']}"
        table.add_row(row["path"], network, attack, str(row["poisoned"]), *rates, str(row["digest"])[:7])
    stdout.print(table)
