"""A directory of `reproduce` as frozen dataclasses. What is not there yet is None or empty."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abd_jax.report.artifacts import (
    Curve,
    Examples,
    Inversion,
    Samples,
    Vaccine,
    read_curve,
    read_examples,
    read_inversion,
    read_samples,
    read_vaccine,
)
from abd_jax.report.files import listing, mapping, read_json
from abd_jax.report.rows import Row, read_rows

_TEACHER_DIRECTORY = re.compile(r"(?P<trigger>.+)-seed(?P<seed>\d+)")
_STUDENT_DIRECTORY = re.compile(r"(?P<trigger>.+)-seed(?P<seed>\d+)-(?P<defense>.+)")


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher's directory."""

    trigger: str
    seed: int
    classes: tuple[str, ...]
    curve: Curve
    examples: Examples | None


@dataclasses.dataclass(frozen=True)
class Student:
    """A student's directory."""

    trigger: str
    seed: int
    defense: str
    teacher_path: str | None
    teacher_digest: str | None
    finished: bool
    curve: Curve
    samples: Samples | None
    vaccine: Vaccine | None
    inversion: Inversion | None


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """A whole directory, in the order in which the run was asked for: trigger, seed, defense."""

    name: str
    preset: Mapping[str, Any]
    command: str
    triggers: tuple[str, ...]
    seeds: tuple[int, ...]
    defenses: tuple[str, ...]
    versions: Mapping[str, Any]
    device: str
    started: str
    rows: tuple[Row, ...]
    teachers: tuple[Teacher, ...]
    students: tuple[Student, ...]

    @property
    def target(self) -> int | None:
        """The attacker's class, if the configuration tells it."""
        teacher = self.preset.get("teacher")
        target = teacher.get("target") if isinstance(teacher, Mapping) else None
        return target if isinstance(target, int) and not isinstance(target, bool) else None

    def class_name(self, index: int) -> str:
        """The class's name, or its number where no teacher tells names."""
        classes = next((teacher.classes for teacher in self.teachers if teacher.classes), ())
        return classes[index] if 0 <= index < len(classes) else str(index)


def read(directory: Path) -> Reproduction:
    """Reads a finished or half finished directory of `reproduce`.

    Raises:
        ValueError: no such directory, or a malformed file in it.
    """
    if not (directory / "config.json").is_file():
        raise ValueError(f"{directory / 'config.json'}: no such file, so this is no directory of `reproduce`")
    where = directory / "config.json"
    config = mapping(read_json(where), where)
    triggers = listing(config, "triggers", str, where)
    seeds = listing(config, "seeds", int, where)
    defenses = listing(config, "defenses", str, where)
    teachers = [_teacher(path, **found) for path, found in _runs(directory / "teachers", _TEACHER_DIRECTORY)]
    students = [_student(path, **found) for path, found in _runs(directory / "students", _STUDENT_DIRECTORY)]
    preset = config.get("preset", {})

    def position(names: tuple[str, ...], name: str) -> tuple[int, str]:
        return (names.index(name), "") if name in names else (len(names), name)

    return Reproduction(
        name=directory.resolve().name,
        preset=preset if isinstance(preset, Mapping) else {"name": preset},
        command=str(config.get("command", "")),
        triggers=triggers,
        seeds=seeds,
        defenses=defenses,
        versions=mapping(config.get("versions", {}), where),
        device=str(config.get("device", "")),
        started=str(config.get("started", "")),
        rows=tuple(
            sorted(
                read_rows(directory),
                key=lambda r: (
                    position(triggers, r.trigger),
                    r.role != "teacher",
                    position(defenses, r.defense),
                    r.seed,
                ),
            )
        ),
        teachers=tuple(sorted(teachers, key=lambda t: (position(triggers, t.trigger), t.seed))),
        students=tuple(
            sorted(students, key=lambda s: (position(triggers, s.trigger), s.seed, position(defenses, s.defense)))
        ),
    )


def _runs(directory: Path, pattern: re.Pattern[str]) -> list[tuple[Path, dict[str, Any]]]:
    """The run directories whose name the pattern matches, with what the name says."""
    found = []
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        match = pattern.fullmatch(path.name)
        if match and path.is_dir():
            found.append((path, match.groupdict() | {"seed": int(match["seed"])}))
    return found


def _teacher(path: Path, trigger: str, seed: int) -> Teacher:
    config = _run_config(path)
    return Teacher(
        trigger=trigger,
        seed=seed,
        classes=listing(config, "classes", str, path / "config.json"),
        curve=read_curve(path / "metrics.jsonl"),
        examples=read_examples(path / "examples.npz"),
    )


def _student(path: Path, trigger: str, seed: int, defense: str) -> Student:
    teacher = _run_config(path).get("teacher")
    teacher = teacher if isinstance(teacher, Mapping) else {}
    return Student(
        trigger=trigger,
        seed=seed,
        defense=defense,
        teacher_path=str(teacher["path"]) if "path" in teacher else None,
        teacher_digest=str(teacher["digest"]) if "digest" in teacher else None,
        finished=(path / "result.json").is_file(),
        curve=read_curve(path / "metrics.jsonl"),
        samples=read_samples(path / "samples.npz"),
        vaccine=read_vaccine(path / "vaccine.npz"),
        inversion=read_inversion(path / "inversion.npz"),
    )


def _run_config(path: Path) -> Mapping[str, Any]:
    where = path / "config.json"
    return mapping(read_json(where), where) if where.is_file() else {}
