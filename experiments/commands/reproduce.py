"""`reproduce`: teachers, students with and without defenses, their table and the report."""

from __future__ import annotations

import dataclasses
import datetime
import shlex
from pathlib import Path
from typing import Any

from abd_jax import data
from abd_jax.attacks.attack import check_name
from abd_jax.report import results_table, write_page
from abd_jax.settings import check_seeds
from abd_jax.training import checkpoint, checks, config, processes, runs
from abd_jax.training.run_directory import RunDirectory, describe, write_json
from experiments.commands._common import (
    PresetFields,
    Several,
    Together,
    check_once,
    existing,
    print_speed,
    progress,
    warn,
    with_preset,
)
from experiments.console import PROGRAM, stdout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Options of `reproduce`; the rest are the preset's fields."""

    preset: PresetFields
    out: Path
    """Directory of all runs, of results.json and of report.html."""
    seeds: tuple[int, ...] = (0,)
    """One teacher and one student per defense for each."""
    triggers: tuple[str, ...] = ()
    """Default: the preset's."""
    defenses: tuple[config.Defense, ...] = ("none", "abd")
    """none: vanilla; sv: Shuffling Vaccine; sr: Self-Retrospection; abd: both; the others: docs/defenses.md."""
    devices: int = 0
    """Split the students' batches over so many devices; 0: one device, no mesh; of several processes, all devices.
    Teachers are trained on one."""
    several: Together = Several()
    profile: bool = False
    """Also write an XProf trace of a few of each student's rounds, for TensorBoard, to its directory's tensorboard/."""
    resume: bool = False
    """Go on with what is in --out, or start if there is nothing; finished runs are kept."""
    overwrite: bool = False
    """Delete what is in --out and start again."""

    def __post_init__(self) -> None:
        check_seeds("--seeds", *self.seeds)
        for name in self.triggers:
            check_name("--triggers", name)
        check_once(self, "seeds", "triggers", "defenses")
        if not self.seeds or not self.defenses:
            raise ValueError("--seeds and --defenses need at least one value each")


def main(argv: list[str]) -> None:
    """Parses, runs every stage that is not finished, and prints the table."""
    options = with_preset(
        Reproduce, argv, prog="reproduce", description="Poison teachers, distil, defend, evaluate, report."
    )
    options.several.join()
    devices = processes.over(options.devices)
    preset, names = options.preset, options.triggers or (options.preset.trigger,)
    dataset = data.load(preset.dataset)
    config.check_teacher(preset, dataset)
    checks.check_students(preset, dataset, options.defenses, devices)
    facts = {"triggers": names, "seeds": options.seeds, "defenses": options.defenses, "classes": dataset.classes}
    command = f"{PROGRAM} reproduce {shlex.join(argv)}"
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    mode = existing(options.resume, options.overwrite)
    RunDirectory.open(options.out, describe(preset, **facts, command=command, started=started), mode)
    top = options.out.absolute()
    rows: list[dict[str, Any]] = []
    for trigger in names:
        for seed in options.seeds:
            for row in _cell(options, top, dataset, trigger, seed, devices):
                rows.append(row)
                if processes.primary():
                    write_json(top / "results.json", rows)
                    write_page(top)
    if not processes.primary():
        return
    stdout.print(results_table(rows))
    stdout.print(f"results: {options.out / 'results.json'}\nreport:  {options.out / 'report.html'}", highlight=False)


def _cell(options: Reproduce, top: Path, dataset: data.Dataset, trigger: str, seed: int, devices: int):
    """One teacher and its students: yields a row each."""
    preset, bar = options.preset, progress()
    place = top / "teachers" / f"{trigger}-seed{seed}"
    facts = {"trigger": trigger, "seed": seed, "classes": dataset.classes}
    directory = RunDirectory.open(place, describe(preset, role="teacher", **facts), "resume")
    yield runs.train_teacher(directory, preset, dataset, trigger, seed, bar)
    teacher, notes = checkpoint.load_network(place / "network")
    source = {"path": str(place.relative_to(top)), "digest": notes["digest"]}
    for defense in options.defenses:
        directory = RunDirectory.open(
            top / "students" / f"{trigger}-seed{seed}-{defense}",
            describe(preset, role="student", defense=defense, teacher=source, **facts),
            "resume",
        )
        yield runs.make_student(
            directory, preset, dataset, teacher, trigger, defense, seed, bar, devices, options.profile
        )
        if processes.primary():
            print_speed(directory.path)
            warn(directory.path)
