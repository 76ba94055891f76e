"""`teacher`: trains one poisoned teacher."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from abd_jax import data
from abd_jax.attacks import triggers
from abd_jax.training import config, runs
from abd_jax.training.run_directory import RunDirectory, describe
from experiments.commands._common import PresetFields, existing, with_preset
from experiments.console import ProgressBar, stdout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """Options of `teacher`; the rest are the preset's fields."""

    preset: PresetFields
    out: Path
    """Directory of the run."""
    seed: int = 0
    """Of initialization, poisoning and augmentation."""
    resume: bool = False
    """Go on with what is in --out."""
    overwrite: bool = False
    """Delete what is in --out and start again."""


def main(argv: list[str]) -> None:
    """Parses, trains and prints."""
    options = with_preset(Teacher, argv, prog="teacher", description="Train one poisoned teacher.")
    preset = options.preset
    config.one_of("--trigger", preset.trigger, triggers.TRIGGERS)
    dataset = data.load(preset.dataset)
    config.check_target(preset, dataset)
    facts = {"role": "teacher", "trigger": preset.trigger, "seed": options.seed, "classes": dataset.classes}
    mode = existing(options.resume, options.overwrite)
    directory = RunDirectory.open(options.out, describe(preset, **facts), mode)
    row = runs.train_teacher(directory, preset, dataset, preset.trigger, options.seed, ProgressBar())
    rates = " · ".join(f"{name.upper()} {100 * row[name]:.2f} %" for name in ("acc", "asr", "ra"))
    stdout.print(f"teacher in {options.out}: {rates}", highlight=False)
