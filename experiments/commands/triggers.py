"""`triggers`: lists the attacks, and draws what they make of a data set's test images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro
from PIL import Image
from rich.table import Column, Table

from abd_jax import data
from abd_jax.attacks.attack import ATTACKS, check_name
from abd_jax.attacks.page import page
from abd_jax.training import attacks
from experiments.console import stdout
from experiments.parser import parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class Triggers:
    """Options of `triggers`."""

    dataset: tyro.conf.Positional[str] = ""
    """Data set to draw; without one the attacks are listed."""
    out: Path = Path()
    """Directory for triggers.png."""
    triggers: tuple[str, ...] = ()
    """Default: all."""
    target: int = 0
    """The attacker's class."""
    examples: int = 4
    """Test images in a row."""

    def __post_init__(self) -> None:
        for name in self.triggers:
            check_name("--triggers", name)
        if self.examples < 1:
            raise ValueError(f"--examples {self.examples}: allowed are whole numbers from 1")
        if self.out.is_file():
            raise ValueError(f"--out {self.out}: is a file; allowed is a directory")


def main(argv: list[str]) -> None:
    """Parses, and lists or draws."""
    options = parse(Triggers, argv, prog="triggers", description="List the attacks, or draw them on a data set.")
    if not options.dataset:
        table = Table(Column("trigger", no_wrap=True), "what it is")
        for name, (_, summary) in ATTACKS.items():
            table.add_row(name, summary)
        stdout.print(table)
        return
    dataset = data.load(options.dataset)
    found = {
        name: attacks.prepare(name, dataset, options.target).test(dataset.test_images, dataset.test_labels)
        for name in options.triggers or ATTACKS
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "triggers.png"
    summaries = {name: summary for name, (_, summary) in ATTACKS.items()}
    title = f"{dataset.name}: what attacks make of test images; the target is {dataset.classes[options.target]}"
    Image.fromarray(page(found, dataset.test_images, options.examples, title, summaries)).save(path)
    stdout.print(f"{len(found)} attacks on {dataset.name}: {path}", highlight=False)
