"""`distill`: distils one student from a teacher's directory, without data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from abd_jax import data
from abd_jax.training import checkpoint, config, runs
from abd_jax.training.run_directory import RunDirectory, describe
from experiments.commands._common import PresetFields, existing, with_preset
from experiments.console import ProgressBar, stdout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill:
    """Options of `distill`; the rest are the preset's fields."""

    preset: PresetFields
    teacher: Path
    """Directory that `teacher` or `reproduce` made."""
    out: Path
    """Directory of the run."""
    defense: config.Defense = "abd"
    """none: vanilla; sv: Shuffling Vaccine; sr: Self-Retrospection; abd: both; the others: docs/defenses.md."""
    seed: int = 0
    """Of initialization and synthesis."""
    devices: int = 0
    """Split batches over so many devices; 0: one device, no mesh."""
    resume: bool = False
    """Go on with what is in --out."""
    overwrite: bool = False
    """Delete what is in --out and start again."""


def main(argv: list[str]) -> None:
    """Parses, distils and prints."""
    options = with_preset(Distill, argv, prog="distill", description="Distil one student from a teacher, without data.")
    inner = options.teacher / "network"
    teacher, notes = checkpoint.load_network(inner if inner.is_dir() else options.teacher)
    preset = runs.fit_to_teacher(options.preset, teacher, notes)
    dataset = data.load(preset.dataset)
    facts = {
        "role": "student",
        "trigger": preset.trigger,
        "seed": options.seed,
        "defense": options.defense,
        "classes": dataset.classes,
        "teacher": {"path": str(options.teacher.absolute()), "digest": notes["digest"]},
    }
    mode = existing(options.resume, options.overwrite)
    directory = RunDirectory.open(options.out, describe(preset, **facts), mode)
    row = runs.make_student(
        directory,
        preset,
        dataset,
        teacher,
        preset.trigger,
        options.defense,
        options.seed,
        ProgressBar(),
        options.devices,
    )
    rates = " · ".join(f"{name.upper()} {100 * row[name]:.2f} %" for name in ("acc", "asr", "ra"))
    stdout.print(f"student in {options.out}: {rates}", highlight=False)
