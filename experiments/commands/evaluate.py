"""`evaluate`: ACC, ASR and RA of the network saved in a directory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from abd_jax import data
from abd_jax.training import evaluate as evaluation
from experiments.console import parse, stdout


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Options of `evaluate`."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY")]
    """A run's directory (its last network), or a network's own: RUN/network, RUN/best."""
    json: bool = False
    """Print one JSON object instead of a table."""


def main(argv: list[str]) -> None:
    """Parses, evaluates and prints."""
    options = parse(Evaluate, argv, prog="evaluate", description="ACC, ASR and RA of the network saved in a directory.")
    rates, notes = evaluation.evaluate_directory(options.directory, data.load)
    shown = ("role", "defense", "dataset", "trigger", "target", "seed", "architecture")
    facts = {name: notes.get(name) for name in shown}
    if options.json:
        print(json.dumps(facts | rates._asdict()))
        return
    table = Table("", "ACC", "ASR", "RA", title=" · ".join(f"{name} {value}" for name, value in facts.items()))
    table.add_row(str(options.directory), *(f"{100 * rate:.2f} %" for rate in rates))
    stdout.print(table)
