"""Parses the directory of `reproduce` into frozen dataclasses. What is not there yet is None or empty.

Every malformed file is one ValueError of one line that names it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

_TEACHER_DIRECTORY = re.compile(r"(?P<trigger>.+)-seed(?P<seed>\d+)")
_STUDENT_DIRECTORY = re.compile(r"(?P<trigger>.+)-seed(?P<seed>\d+)-(?P<defense>.+)")
_RATES = ("acc", "asr", "ra")


@dataclasses.dataclass(frozen=True)
class Row:
    """One network's result, as in `results.json`; rates in [0, 1]."""

    preset: str
    dataset: str
    method: str
    trigger: str
    seed: int
    role: str
    defense: str
    acc: float
    asr: float
    ra: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Curve:
    """Rates over training, at the steps at which they were measured, and the last step that was logged at all."""

    steps: tuple[int, ...] = ()
    acc: tuple[float, ...] = ()
    asr: tuple[float, ...] = ()
    last_step: int = 0


@dataclasses.dataclass(frozen=True)
class Examples:
    """Test images with and without the trigger, and what the teacher says of them."""

    clean: UInt8[np.ndarray, "n height width channels"]
    triggered: UInt8[np.ndarray, "n height width channels"]
    labels: Int[np.ndarray, " n"]
    clean_predictions: Int[np.ndarray, " n"]
    triggered_predictions: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Samples:
    """Images synthesized at the end of a run, and the teacher's class for each."""

    images: UInt8[np.ndarray, "n height width channels"]
    predictions: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Vaccine:
    """What the choice of the shuffled teachers T~ saw, and its verdict.

    Attributes:
        log_kl: log10 KL(T ‖ T~) of every trial on synthesized images; the last trial is the one that counts.
        threshold: below it lies the tail.
        tail: share of the last trial's images below the threshold.
        trials: draws that were made.
        enabled: whether a draw was kept.
        tail_bar: the share that the tail had to exceed.
        synthetic, clean, triggered: log10 KL of final synthesized and of test images, for diagnosis only.
    """

    log_kl: Float[np.ndarray, "trials images"]
    threshold: float
    tail: float
    trials: int
    enabled: bool
    tail_bar: float
    synthetic: Float[np.ndarray, " synthetic"] | None = None
    clean: Float[np.ndarray, " clean"] | None = None
    triggered: Float[np.ndarray, " triggered"] | None = None


@dataclasses.dataclass(frozen=True)
class Inversion:
    """The smallest trigger that was found for each class on images of the fresh generator, and the verdict.

    Attributes:
        masks: how much of each pixel the trigger replaces, in [0, 1].
        patterns: what it puts there, in [0, 1].
        sizes: sum of each mask, in pixels.
        flips: share of the other classes' images that the trigger turns into the class.
        suspect: the class that the backdoor is taken to lead to.
    """

    masks: Float[np.ndarray, "classes height width 1"]
    patterns: Float[np.ndarray, "classes height width channels"]
    sizes: Float[np.ndarray, " classes"]
    flips: Float[np.ndarray, " classes"]
    suspect: int


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
    config = _mapping(read_json(where), where)
    triggers = _list(config, "triggers", str, where)
    seeds = _list(config, "seeds", int, where)
    defenses = _list(config, "defenses", str, where)
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
        versions=_mapping(config.get("versions", {}), where),
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


def read_rows(directory: Path) -> list[Row]:
    """The rows of `results.json`, and of any finished run that it does not list yet.

    Raises:
        ValueError: a malformed file.
    """
    rows: dict[tuple[str, str, int, str], Row] = {}
    for path in sorted((*directory.glob("teachers/*/result.json"), *directory.glob("students/*/result.json"))):
        row = parse_row(read_json(path), str(path))
        rows[row.role, row.trigger, row.seed, row.defense] = row
    path = directory / "results.json"
    if path.is_file():
        listed = read_json(path)
        if not isinstance(listed, list):
            raise ValueError(f"{path}: expected a list of rows, found {type(listed).__name__}")
        for index, raw in enumerate(listed):
            row = parse_row(raw, f"{path}: row {index}")
            rows[row.role, row.trigger, row.seed, row.defense] = row
    return list(rows.values())


def parse_row(raw: object, where: str = "results") -> Row:
    """A checked row.

    Args:
        raw: a mapping with at least the fields of `Row`.
        where: what to name in an error.

    Raises:
        ValueError: a field is missing or out of range.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where}: expected an object, found {type(raw).__name__}")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Row):
        if field.name not in raw:
            raise ValueError(f"{where}: the field {field.name!r} is missing")
        value = raw[field.name]
        if field.type == "float":
            limit = 1.0 if field.name in _RATES else math.inf
            if not _is_number(value) or not 0 <= value <= limit or math.isinf(value):
                allowed = "in [0, 1]" if field.name in _RATES else "from 0"
                raise ValueError(f"{where}: {field.name} {value!r}: allowed are numbers {allowed}")
            value = float(value)
        elif field.type == "int" and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError(f"{where}: {field.name} {value!r}: allowed are whole numbers")
        elif field.type == "str" and not isinstance(value, str):
            raise ValueError(f"{where}: {field.name} {value!r}: allowed is text")
        values[field.name] = value
    if values["role"] not in ("teacher", "student"):
        raise ValueError(f"{where}: role {values['role']!r}: allowed are teacher, student")
    return Row(**values)


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
        classes=_list(config, "classes", str, path / "config.json"),
        curve=_curve(path / "metrics.jsonl"),
        examples=_examples(path / "examples.npz"),
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
        curve=_curve(path / "metrics.jsonl"),
        samples=_samples(path / "samples.npz"),
        vaccine=_vaccine(path / "vaccine.npz"),
        inversion=_inversion(path / "inversion.npz"),
    )


def _run_config(path: Path) -> Mapping[str, Any]:
    where = path / "config.json"
    return _mapping(read_json(where), where) if where.is_file() else {}


def _curve(path: Path) -> Curve:
    """ACC and ASR of `metrics.jsonl`; a last line without its end, as a killed run leaves it, is passed over."""
    if not path.is_file():
        return Curve()
    text = _read_text(path)
    lines = text.split("\n")
    steps, acc, asr, last = [], [], [], 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            raise ValueError(f"{path}: line {number} is not JSON") from None
        if not isinstance(entry, dict) or not _is_number(entry.get("step")) or not math.isfinite(entry["step"]):
            raise ValueError(f"{path}: line {number}: expected an object with a number `step`")
        last = max(last, int(entry["step"]))
        if "acc" not in entry or "asr" not in entry:
            continue
        if not all(_is_number(entry[name]) and 0 <= entry[name] <= 1 for name in ("acc", "asr")):
            raise ValueError(f"{path}: line {number}: acc and asr must be numbers in [0, 1]")
        steps.append(int(entry["step"]))
        acc.append(float(entry["acc"]))
        asr.append(float(entry["asr"]))
    return Curve(tuple(steps), tuple(acc), tuple(asr), last)


def _examples(path: Path) -> Examples | None:
    arrays = _read_arrays(path, "clean", "triggered", "labels", "clean_predictions", "triggered_predictions")
    if arrays is None:
        return None
    _check_images(path, "clean", arrays["clean"])
    _check_images(path, "triggered", arrays["triggered"])
    if arrays["clean"].shape != arrays["triggered"].shape:
        raise ValueError(f"{path}: clean and triggered images differ in shape")
    for name in ("labels", "clean_predictions", "triggered_predictions"):
        _check_classes(path, name, arrays[name], len(arrays["clean"]))
    return Examples(**arrays)


def _samples(path: Path) -> Samples | None:
    arrays = _read_arrays(path, "images", "predictions")
    if arrays is None:
        return None
    _check_images(path, "images", arrays["images"])
    _check_classes(path, "predictions", arrays["predictions"], len(arrays["images"]))
    return Samples(**arrays)


def _vaccine(path: Path) -> Vaccine | None:
    scalars = ("threshold", "tail", "trials", "enabled", "tail_bar")
    diagnosis = ("synthetic", "clean", "triggered")
    arrays = _read_arrays(path, "log_kl", *scalars, optional=diagnosis)
    if arrays is None:
        return None
    for name, array in arrays.items():
        dimensions = 0 if name in scalars else 2 if name == "log_kl" else 1
        fits = array.ndim == dimensions and array.dtype.kind in "fiub" and array.size > 0
        if not fits or not np.isfinite(array).all():
            raise ValueError(f"{path}: {name}: expected finite numbers in {dimensions} dimensions, at least one")
    return Vaccine(
        log_kl=arrays["log_kl"].astype(np.float64),
        threshold=float(arrays["threshold"]),
        tail=float(arrays["tail"]),
        trials=int(arrays["trials"]),
        enabled=bool(arrays["enabled"]),
        tail_bar=float(arrays["tail_bar"]),
        **{name: arrays[name].astype(np.float64) for name in diagnosis if name in arrays},
    )


def _inversion(path: Path) -> Inversion | None:
    arrays = _read_arrays(path, "masks", "patterns", "sizes", "flips", "suspect")
    if arrays is None:
        return None
    masks, patterns, suspect = (arrays[name] for name in ("masks", "patterns", "suspect"))
    if masks.ndim != 4 or len(masks) < 2 or 0 in masks.shape:
        raise ValueError(f"{path}: masks: expected [2 or more classes, height, width, 1], found {list(masks.shape)}")
    classes, height, width = masks.shape[:3]
    channels = 1 if patterns.shape[-1:] == (1,) else 3
    for name, shape, limit in (
        ("masks", (classes, height, width, 1), 1),
        ("patterns", (classes, height, width, channels), 1),
        ("sizes", (classes,), height * width),
        ("flips", (classes,), 1),
    ):
        array = arrays[name]
        fits = array.dtype.kind == "f" and array.shape == shape
        if not fits or not ((array >= 0) & (array <= limit)).all():
            raise ValueError(f"{path}: {name}: expected numbers in [0, {limit}] of shape {list(shape)}")
    if suspect.dtype.kind not in "iu" or suspect.ndim != 0 or not 0 <= suspect < classes:
        raise ValueError(f"{path}: suspect: expected one whole number from 0 to {classes - 1}")
    return Inversion(
        suspect=int(suspect),
        **{name: arrays[name].astype(np.float64) for name in ("masks", "patterns", "sizes", "flips")},
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable: {_one_line(error)}") from None


def read_json(path: Path) -> Any:
    """The file's content.

    Raises:
        ValueError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {_one_line(error)}") from None
    except RecursionError:
        raise ValueError(f"{path}: not JSON that can be read: nested too deeply") from None


def _read_arrays(path: Path, *names: str, optional: tuple[str, ...] = ()) -> dict[str, np.ndarray] | None:
    """The named arrays of an npz file, without unpickling anything; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        # Opened here, since np.load leaves the file open if it is no zip file.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files]
            arrays = {name: archive[name] for name in (*names, *optional) if name in archive.files}
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"{path}: not a readable npz file: {_one_line(error)}") from None
    if missing:
        raise ValueError(f"{path}: missing arrays: {', '.join(missing)}")
    return arrays


def _check_images(path: Path, name: str, images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
        raise ValueError(
            f"{path}: {name}: expected uint8 [n, height, width, 1 or 3], found {images.dtype} {list(images.shape)}"
        )


def _check_classes(path: Path, name: str, classes: np.ndarray, count: int) -> None:
    if classes.dtype.kind not in "iu" or classes.shape != (count,):
        raise ValueError(f"{path}: {name}: expected {count} whole numbers, found {classes.dtype} {list(classes.shape)}")


def _mapping(value: object, where: Path) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: expected an object, found {type(value).__name__}")
    return value


def _list(config: Mapping[str, Any], name: str, kind: type, where: Path) -> tuple[Any, ...]:
    values = config.get(name, [])
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ValueError(f"{where}: {name}: expected a list of {kind.__name__}")
    return tuple(values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
