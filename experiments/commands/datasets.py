"""`datasets`: lists the data sets; `datasets prepare NAME` makes one ready to load."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Column, Table

from abd_jax import data
from abd_jax.settings import one_of
from experiments.console import stdout
from experiments.parser import parse


@dataclasses.dataclass(frozen=True)
class Datasets:
    """`datasets` has no options; `datasets prepare NAME` makes a data set ready."""


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Options of `datasets prepare`."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Of the data set."""
    source: Annotated[Path | None, tyro.conf.arg(name="from", metavar="DIR")] = None
    """Directory (or archive) with the original files, or TFDS's data_dir; without it they are downloaded."""


def main(argv: list[str]) -> None:
    """Lists, or prepares."""
    if argv and not argv[0].startswith("-"):
        one_of("subcommand", argv[0], ["prepare"])
        _prepare(argv[1:])
        return
    parse(Datasets, argv, prog="datasets", description="List the data sets. `datasets prepare NAME` makes one ready.")
    table = Table(Column("data set", no_wrap=True), "train", "test", "size", "classes", "prepared")
    for name, info in data.CATALOG.items():
        ready = "always" if info.read is None else "yes" if data.is_prepared(info) else "no"
        size = "×".join(map(str, info.image_shape))
        table.add_row(name, str(info.train), str(info.test), size, str(len(info.classes)), ready)
    stdout.print(table)


def _prepare(argv: list[str]) -> None:
    options = parse(Prepare, argv, prog="datasets prepare", description="Make a data set ready to load.")
    info = data.info(options.name)
    place = data.prepare(info, options.source)
    said = f"{info.name}: {info.train} training and {info.test} test images in {place}"
    stdout.print(said, highlight=False, soft_wrap=True)
