"""`teacher`: trains one poisoned teacher, or a zoo of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.table import Column, Table

from abd_jax import data
from abd_jax.attacks.attack import ATTACKS, check_name
from abd_jax.settings import check_seeds
from abd_jax.training import config, runs, stage
from abd_jax.training.run_directory import RunDirectory, describe
from experiments.commands._common import PresetFields, check_once, existing, rates, with_preset
from experiments.console import ProgressBar, stdout

ALL = ("all",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """Options of `teacher`; the rest are the preset's fields."""

    preset: PresetFields
    out: Path
    """Directory of the run; of a zoo: of all runs, TRIGGER-seedN each."""
    seed: int = 0
    """Of initialization, poisoning and augmentation."""
    triggers: tuple[str, ...] = ()
    """Train a zoo: one teacher for each of these attacks and each of --seeds; `all` is every attack."""
    seeds: tuple[int, ...] = ()
    """Train a zoo: one teacher for each."""
    resume: bool = False
    """Go on with what is in --out; of a zoo, finished teachers are kept and missing ones are added."""
    overwrite: bool = False
    """Delete what is in --out and start again."""

    def __post_init__(self) -> None:
        check_seeds("--seed", self.seed)
        check_seeds("--seeds", *self.seeds)
        for name in self.names:
            check_name("--triggers" if self.triggers else "--trigger", name)
        check_once(self, "seeds", "triggers")

    @property
    def names(self) -> tuple[str, ...]:
        """The attacks that are asked for."""
        return tuple(ATTACKS) if self.triggers == ALL else self.triggers or (self.preset.trigger,)


def main(argv: list[str]) -> None:
    """Parses, trains and prints."""
    options = with_preset(Teacher, argv, prog="teacher", description="Train one poisoned teacher, or a zoo of them.")
    dataset = data.load(options.preset.dataset)
    config.check_teacher(options.preset, dataset)
    mode = existing(options.resume, options.overwrite)
    if options.triggers or options.seeds:
        _zoo(options, dataset, mode == "overwrite", mode == "resume")
        return
    row = _train(options, dataset, options.preset.trigger, options.seed, options.out, mode)
    stdout.print(f"teacher in {options.out}: {rates(row)}", highlight=False)


def _zoo(options: Teacher, dataset: data.Dataset, overwrite: bool, resume: bool) -> None:
    """Every teacher that is not there yet, with a table at the end."""
    seeds = options.seeds or (options.seed,)
    if not (resume or overwrite) and options.out.is_dir() and any(options.out.iterdir()):
        raise ValueError(f"--out {options.out}: exists already; use --resume to go on or --overwrite to start again")
    table = Table(Column("trigger", no_wrap=True), "seed", "ACC", "ASR", "RA", title=f"teachers in {options.out}")
    for trigger in options.names:
        for seed in seeds:
            place = options.out / f"{trigger}-seed{seed}"
            mode = "overwrite" if overwrite else "resume"
            row = _train(options, dataset, trigger, seed, place, mode)
            table.add_row(trigger, str(seed), *(f"{100 * row[name]:.2f} %" for name in ("acc", "asr", "ra")))
    stdout.print(table)


def _train(options: Teacher, dataset: data.Dataset, trigger: str, seed: int, place: Path, mode) -> stage.Row:
    preset = dataclasses.replace(options.preset, trigger=trigger)
    facts = {"role": "teacher", "trigger": trigger, "seed": seed, "classes": dataset.classes}
    directory = RunDirectory.open(place, describe(preset, **facts), mode)
    return runs.train_teacher(directory, preset, dataset, trigger, seed, ProgressBar())
