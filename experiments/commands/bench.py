"""`bench`: times our steps beside eager PyTorch's, and what the Shuffling Vaccine costs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from rich.table import Table

from abd_jax.training.run_directory import device, versions, write_json
from experiments.bench import steps, torch_process
from experiments.bench.timing import Spread, alternate, elapsed, ratio
from experiments.console import parse, stderr, stdout

TRAINING = {"wrn-16-1": 1.2, "wrn-16-2": None}
"""Architecture → how many times PyTorch's time is allowed."""
GENERATOR_BAR, CYCLE_BAR = 1.5, 1.15
"""How many times the time without the vaccine is allowed."""
BUSY = 0.75
"""Load of the machine before the bench from which a ratio to PyTorch says nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Options of `bench`."""

    parts: tuple[Literal["training", "vaccine"], ...] = ("training", "vaccine")
    """What to time."""
    rounds: int = 7
    """Timed rounds; in each, everything compared is run once, in turn."""
    batch: int = 128
    """Images per step."""
    side: int = 32
    """Height and width of the images."""
    updates: int = 10
    """Student updates in a cycle."""
    devices: int = 1
    """Also time the training step with its batch split over so many CPU devices."""
    teacher: str = "wrn-16-2"
    """Teacher of the vaccine's part."""
    student: str = "wrn-16-1"
    """Student of the vaccine's part."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write every timing there."""

    def __post_init__(self) -> None:
        for name in ("rounds", "updates", "devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: allowed are whole numbers from 1")
        if self.batch < 2:
            raise ValueError(f"--batch {self.batch}: allowed are whole numbers from 2")
        if self.side not in range(8, 65, 4):
            raise ValueError(f"--side {self.side}: allowed are 8, 12, … 64 pixels")
        if self.batch % self.devices:
            raise ValueError(f"--devices {self.devices}: the batch of {self.batch} cannot be split over so many")


@dataclasses.dataclass(frozen=True)
class Row:
    """One timing, in seconds, with its ratio to another of the same rounds and the largest allowed."""

    name: str
    seconds: list[float]
    ratio: Spread | None = None
    bar: float | None = None
    trusted: bool = True

    @property
    def verdict(self) -> str:
        if self.ratio is None or self.bar is None:
            return ""
        if not self.trusted:
            return "busy"
        return "met" if self.ratio.median <= self.bar else "missed"


def main(argv: list[str]) -> None:
    """Parses, times, prints."""
    options = parse(Bench, argv, prog="bench", description="Time our steps beside eager PyTorch's; the vaccine's cost.")
    if options.devices > max(1, jax.config.jax_num_cpu_devices):  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", options.devices)
    load = os.getloadavg()[0]
    if busy := load > BUSY:
        stderr.print(
            f"note: other processes keep this machine busy (load {load:.1f}). PyTorch's threads wait for each other "
            "and lose more by that than ours: ratios to PyTorch flatter us, and no verdict on them is given"
        )
    table = Table("what", "ms: median (min–max)", "ratio: median (min–max)", "at most", "")
    table.title = f"batch {options.batch}, {options.side}×{options.side}×3, float32, {options.rounds} rounds in turn"
    rows = []
    for row in _rows(options, busy):
        rows.append(row)
        against = row.ratio.shown(1, 2) if row.ratio else ""
        bar = "" if row.bar is None else f"{row.bar}"
        table.add_row(row.name, Spread.of(row.seconds).shown(1e3, 0), against, bar, row.verdict)
        stderr.print(f"{row.name}: {Spread.of(row.seconds).shown(1e3, 0)} ms {against}", highlight=False)
    stdout.print(table)
    if options.json:
        results = [dataclasses.asdict(row) | {"verdict": row.verdict} for row in rows]
        settings = dataclasses.asdict(options) | {"json": str(options.json)}
        write_json(
            options.json,
            {"options": settings, "device": device(), "load": load, "versions": versions(), "results": results},
        )


def _rows(options: Bench, busy: bool) -> Iterator[Row]:
    if "training" in options.parts:
        for architecture, bar in TRAINING.items():
            yield from _training(options, architecture, bar, busy)
    if "vaccine" in options.parts:
        yield from _vaccine(options)


def _training(options: Bench, architecture: str, bar: float | None, busy: bool) -> Iterator[Row]:
    timed: dict[str, Callable[[], float]] = {
        "ours": elapsed(steps.training_step(architecture, options.batch, options.side))
    }
    if options.devices > 1:
        split = steps.training_step(architecture, options.batch, options.side, options.devices)
        timed[f"ours, {options.devices} devices"] = elapsed(split)
    title = f"training step {architecture}"
    if not torch_process.available():
        stderr.print("note: PyTorch is not installed (extra `torch`): our steps stand alone")
        for name, alone in alternate(timed, options.rounds).items():
            yield Row(f"{title}, {name}", alone)
        return
    depth, width = map(int, architecture.split("-")[1:])
    with torch_process.torch_step(depth, width, options.batch, options.side) as step:
        seconds = alternate(timed | {"eager PyTorch": step}, options.rounds)
    theirs = seconds.pop("eager PyTorch")
    yield Row(f"{title}, eager PyTorch", theirs)
    for name, mine in seconds.items():
        yield Row(f"{title}, {name}", mine, ratio(mine, theirs), bar, not busy)


def _vaccine(options: Bench) -> Iterator[Row]:
    size = options.teacher, options.student, options.batch, options.side, options.updates
    plain, vaccinated = steps.zskt_steps("none", *size), steps.zskt_steps("sv", *size)
    titles = "zskt generator step", f"zskt cycle 1 + {options.updates}"
    for title, bar, without, with_it in zip(titles, (GENERATOR_BAR, CYCLE_BAR), plain, vaccinated, strict=True):
        title = f"{title}, {options.teacher} → {options.student}"
        timed = {"without": elapsed(without), "with": elapsed(with_it)}
        seconds = alternate(timed, options.rounds, warm_up=1)
        yield Row(f"{title}, no defense", seconds["without"])
        yield Row(f"{title}, vaccine", seconds["with"], ratio(seconds["with"], seconds["without"]), bar)
