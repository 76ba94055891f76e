"""`distill`: distils one student from a teacher, ours or a stranger's file, without data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from abd_jax import data
from abd_jax.interop.teacher import read_described
from abd_jax.settings import check_seeds
from abd_jax.training import checks, config, processes, runs
from abd_jax.training.run_directory import RunDirectory, describe
from experiments.commands._common import (
    File,
    FileFacts,
    PresetFields,
    Several,
    Together,
    existing,
    print_speed,
    progress,
    rates,
    warn,
    warn_of_unread,
    with_preset,
)
from experiments.console import stdout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill:
    """Options of `distill`; the rest are the preset's fields."""

    preset: PresetFields
    teacher: Path
    """Directory that `teacher` or `reproduce` made; or a file of weights: safetensors, PyTorch, Flax msgpack."""
    file: File = FileFacts()
    out: Path
    """Directory of the run."""
    defense: config.Defense = "abd"
    """none: vanilla; sv: Shuffling Vaccine; sr: Self-Retrospection; abd: both; the others: docs/defenses.md."""
    seed: int = 0
    """Of initialization and synthesis."""
    devices: int = 0
    """Split batches over so many devices; 0: one device, no mesh; of several processes, all devices."""
    several: Together = Several()
    profile: bool = False
    """Also write an XProf trace of a few rounds, for TensorBoard, to OUT/tensorboard."""
    resume: bool = False
    """Go on with what is in --out."""
    overwrite: bool = False
    """Delete what is in --out and start again."""

    def __post_init__(self) -> None:
        check_seeds("--seed", self.seed)


def main(argv: list[str]) -> None:
    """Parses, distils and prints."""
    options = with_preset(Distill, argv, prog="distill", description="Distil one student from a teacher, without data.")
    options.several.join()
    if processes.primary():
        warn_of_unread(argv, options.preset, options.defense)
    devices = processes.over(options.devices)
    teacher, notes = read_described(options.teacher, options.file.description, options.preset.dtype)
    unknown = notes.get("dataset") is None  # a file, or a student that was distilled from one
    if unknown:
        preset, reason = checks.fit_to_file(options.preset, teacher, notes)
        _agree(argv, options.preset, preset)
        dataset, reason = (None, reason) if reason else _load(preset.dataset)
    else:
        preset, reason = checks.fit_to_teacher(options.preset, teacher, notes), ""
        _agree(argv, options.preset, preset)
        dataset = data.load(preset.dataset)
    classes = dataset.classes if dataset is not None else tuple(notes.get("classes", ()))
    checks.check_student(preset, dataset, teacher, options.defense, classes, devices)
    trigger = preset.trigger if dataset is not None else None
    facts = {
        "role": "student",
        "trigger": trigger,
        "seed": options.seed,
        "defense": options.defense,
        "classes": classes,
        "teacher": {"path": str(options.teacher.absolute()), "digest": notes["digest"]},
    }
    mode = existing(options.resume, options.overwrite)
    directory = RunDirectory.open(options.out, describe(preset, **facts), mode)
    row = runs.make_student(
        directory,
        preset,
        dataset,
        teacher,
        trigger,
        options.defense,
        options.seed,
        progress(),
        devices,
        options.profile,
        classes,
    )
    if not processes.primary():
        return
    warn(options.out)
    print_speed(options.out)
    if row["acc"] is None:
        stdout.print(f"student in {options.out}; ACC, ASR and RA are not known: {reason}", highlight=False)
        return
    stdout.print(f"student in {options.out}: {rates(row)}", highlight=False)
    if unknown:
        stdout.print(
            f"ASR and RA are of {trigger} towards class {preset.teacher.target}, the preset's own: "
            "nothing tells which trigger this teacher was poisoned with, if any",
            highlight=False,
        )


def _agree(argv: list[str], asked: config.Preset, fitted: config.Preset) -> None:
    """Raises ValueError if `argv` says another trigger, target or architecture than the teacher has."""
    for option, said, known, what in (
        ("--trigger", asked.trigger, fitted.trigger, "was poisoned with"),
        ("--teacher.target", asked.teacher.target, fitted.teacher.target, "was poisoned with"),
        ("--teacher.architecture", asked.teacher.architecture, fitted.teacher.architecture, "is"),
    ):
        if said != known and any(word.split("=")[0] == option for word in argv):
            raise ValueError(f"{option} {said}: allowed is {known}, which this teacher {what}")


def _load(name: str) -> tuple[data.Dataset | None, str]:
    """The data set, or why there is none."""
    try:
        return data.load(name), ""
    except (ValueError, OSError) as error:
        return None, " ".join(str(error).split())
