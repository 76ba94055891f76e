"""`bench`: times our steps and cycles beside eager PyTorch's, and what the Shuffling Vaccine costs."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, get_args

import jax
import tyro
from rich.table import Table

from abd_jax import models
from abd_jax.models import onednn
from abd_jax.training.run_directory import device, versions, write_json
from experiments.bench import steps, torch_process
from experiments.bench.timing import Spread, alternate, elapsed, ratio
from experiments.console import stderr, stdout
from experiments.parser import parse

Part = Literal["training", "vaccine", "cycle", "sv", "abd", "deep_inversion", "cmi", "compile"]
TRAINING, TRAINING_BAR = ("wrn-16-1", "wrn-16-2"), 1.0
"""Architectures, and how many times PyTorch's time is allowed."""
GENERATOR_BAR, VACCINE_BAR = 1.5, 1.12
"""How many times the time without the vaccine is allowed."""
CYCLES, CYCLE_BAR = {"cycle": "none", "sv": "sv", "abd": "abd"}, 0.4
"""Part → its defense, and how many times PyTorch's time is allowed."""
BUSY = 0.75
"""Load of the machine before the bench from which a ratio to PyTorch says nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Options of `bench`."""

    parts: tuple[Part, ...] = get_args(Part)
    """What to time: supervised steps; the vaccine's cost; a ZSKT cycle without defense, with the vaccine, with both
    parts of ABD; one synthesis update of DeepInversion and of CMI; the compilation of a cycle with both parts of ABD,
    from nothing and from JAX's cache."""
    rounds: int = 7
    """Timed rounds; in each, everything compared is run once, in turn."""
    batch: int = 128
    """Images per step of training and of ZSKT."""
    deep_inversion_batch: int = 64
    """Images per update of DeepInversion."""
    cmi_batch: int = 256
    """Images per update of CMI."""
    side: int = 32
    """Height and width of the images."""
    updates: int = 10
    """Student updates in a cycle."""
    devices: int = 1
    """Also time the training step with its batch split over so many CPU devices."""
    teacher: str = "wrn-16-2"
    """Teacher of every part but the first, a Wide ResNet."""
    student: str = "wrn-16-1"
    """Their student."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write every timing there."""

    def __post_init__(self) -> None:
        for name in ("rounds", "updates", "devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: allowed are whole numbers from 1")
        for name in ("batch", "deep_inversion_batch", "cmi_batch"):
            if getattr(self, name) < 2:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: allowed are whole numbers from 2")
        for name in ("teacher", "student"):
            if not isinstance(models.build(getattr(self, name), steps.CLASSES), models.WideResNet):
                raise ValueError(f"--{name} {getattr(self, name)}: allowed are Wide ResNets, e.g. wrn-16-1")
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
    options = parse(Bench, argv, prog="bench", description="Time our steps and cycles beside eager PyTorch's.")
    if options.devices > max(1, jax.config.jax_num_cpu_devices):  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", options.devices)
    load = os.getloadavg()[0]
    if busy := load > BUSY:
        stderr.print(
            f"note: other processes keep this machine busy (load {load:.1f}). PyTorch's threads wait for each other "
            "and lose more by that than ours: ratios to PyTorch flatter us, and no verdict on them is given"
        )
    table = Table("what", "ms: median (min–max)", "ratio: median (min–max)", "at most", "")
    if onednn.chosen() and jax.device_count() > 1:
        raise ValueError(f"--devices {options.devices}: {onednn.VARIABLE} onednn is for one device")
    convolutions = "oneDNN" if onednn.chosen() else "XLA"
    table.title = (
        f"{options.side}×{options.side}×3, float32, our convolutions by {convolutions}, {options.rounds} rounds in turn"
    )
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
            {
                "options": settings,
                "convolutions": convolutions,
                "device": device(),
                "load": load,
                "versions": versions(),
                "results": results,
            },
        )


def _rows(options: Bench, busy: bool) -> Iterator[Row]:
    if not torch_process.available():
        stderr.print("note: PyTorch is not installed (extra `torch`): our steps stand alone")
    ends = f"{options.teacher} → {options.student}"
    for part in options.parts:
        if part == "training":
            for architecture in TRAINING:
                yield from _training(options, architecture, busy)
        elif part == "vaccine":
            yield from _vaccine(options)
        elif part == "compile":
            yield from _compilation(options)
        elif part in CYCLES:
            setting = _zskt(options, CYCLES[part])
            title = f"ZSKT cycle 1 + {options.updates}, defense {setting.defense}, batch {setting.batch}, {ends}"
            theirs: tuple[str | int, ...]
            theirs = "zskt_cycle", setting.defense, *_networks(options), setting.batch, options.side, options.updates
            yield from _beside(options, title, {"ours": steps.cycle(setting)}, theirs, CYCLE_BAR, busy)
        else:
            batch = options.cmi_batch if part == "cmi" else options.deep_inversion_batch
            setting = steps.Setting(*_networks(options), batch, options.side, method=part)
            networks = _networks(options)[: 2 if part == "cmi" else 1]
            title = f"{part} update, batch {batch}, {ends}"
            theirs = f"{part}_iteration", *networks, batch, options.side
            yield from _beside(options, title, {"ours": steps.synthesis_update(setting)}, theirs, None, busy)


def _networks(options: Bench) -> tuple[str, str]:
    return options.teacher, options.student


def _zskt(options: Bench, defense: str) -> steps.Setting:
    return steps.Setting(*_networks(options), options.batch, options.side, options.updates, defense)


def _beside(
    options: Bench,
    title: str,
    ours: dict[str, steps.Step],
    theirs: tuple[str | int, ...],
    bar: float | None,
    busy: bool,
) -> Iterator[Row]:
    """Steps of ours in turn with PyTorch's, or alone where there is no PyTorch.

    Args:
        ours: name → step.
        theirs: name and arguments of the step, as `torch_process.torch_step` takes them.
        bar: how many times PyTorch's time is allowed.
    """
    timed = {name: elapsed(step) for name, step in ours.items()}
    if not torch_process.available():
        for name, alone in alternate(timed, options.rounds).items():
            yield Row(f"{title}, {name}", alone)
        return
    with torch_process.torch_step(str(theirs[0]), *theirs[1:]) as step:
        seconds = alternate(timed | {"eager PyTorch": step}, options.rounds)
    reference = seconds.pop("eager PyTorch")
    yield Row(f"{title}, eager PyTorch", reference)
    for name, mine in seconds.items():
        yield Row(f"{title}, {name}", mine, ratio(mine, reference), bar, not busy)


def _training(options: Bench, architecture: str, busy: bool) -> Iterator[Row]:
    size = architecture, options.batch, options.side
    ours = {"ours": steps.training_step(*size)}
    if options.devices > 1:
        ours[f"ours, {options.devices} devices"] = steps.training_step(*size, options.devices)
    title = f"training step {architecture}, batch {options.batch}"
    yield from _beside(options, title, ours, ("training_step", *size), TRAINING_BAR, busy)


def _vaccine(options: Bench) -> Iterator[Row]:
    plain, vaccinated = _zskt(options, "none"), _zskt(options, "sv")
    for name, bar, make in (
        ("generator update", GENERATOR_BAR, steps.synthesis_update),
        (f"cycle 1 + {options.updates}", VACCINE_BAR, steps.cycle),
    ):
        title = f"ZSKT {name}, batch {options.batch}, {options.teacher} → {options.student}"
        timed = {"without": elapsed(make(plain)), "with": elapsed(make(vaccinated))}
        seconds = alternate(timed, options.rounds, warm_up=1)
        yield Row(f"{title}, no defense", seconds["without"])
        yield Row(f"{title}, vaccine", seconds["with"], ratio(seconds["with"], seconds["without"]), bar)


def _compilation(options: Bench) -> Iterator[Row]:
    title = f"compilation of a ZSKT cycle, defense abd, {options.teacher} → {options.student}"
    with tempfile.TemporaryDirectory() as folder:
        timed = {
            "from nothing": elapsed(steps.compilation(_zskt(options, "abd"))),
            "from the cache": elapsed(steps.compilation(_zskt(options, "abd"), Path(folder))),
        }
        seconds = alternate(timed, options.rounds, warm_up=1)
    yield Row(f"{title}, from nothing", seconds["from nothing"])
    yield Row(f"{title}, from the cache", seconds["from the cache"], ratio(*reversed(seconds.values())))
