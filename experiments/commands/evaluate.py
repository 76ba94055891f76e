"""`evaluate`: ACC, ASR and RA of the network saved in a directory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from abd_jax import data
from abd_jax.attacks.attack import check_name
from abd_jax.training import evaluate as evaluation
from experiments.console import stdout
from experiments.parser import parse


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Options of `evaluate`."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY")]
    """A run's directory (its last network), or a network's own: RUN/network, RUN/best."""
    dataset: str | None = None
    """Measure on this data set, where the run's own is not known: that of a student of a stranger's file."""
    trigger: str | None = None
    """Measure ASR and RA with this attack in place of the teacher's own: what a clean network does with it, say."""
    target: int | None = None
    """The attacker's class, in place of the teacher's own."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        if self.trigger is not None:
            check_name("--trigger", self.trigger)
        if self.target is not None and self.target < 0:
            raise ValueError(f"--target {self.target}: allowed are the classes, 0 and up")


def main(argv: list[str]) -> None:
    """Parses, evaluates and prints."""
    options = parse(Evaluate, argv, prog="evaluate", description="ACC, ASR and RA of the network saved in a directory.")
    rates, notes = evaluation.evaluate_directory(
        options.directory, data.load, options.trigger, options.target, options.dataset
    )
    shown = ("role", "defense", "dataset", "trigger", "target", "seed", "architecture")
    facts = {name: notes.get(name) for name in shown}
    if options.json:
        print(json.dumps(facts | rates._asdict()))
        return
    table = Table("", "ACC", "ASR", "RA", title=" · ".join(f"{name} {value}" for name, value in facts.items()))
    table.add_row(str(options.directory), *(f"{100 * rate:.2f} %" for rate in rates))
    stdout.print(table)
