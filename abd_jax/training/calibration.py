"""How often each sign of an audit is wrong, measured on a zoo of clean and poisoned teachers, never assumed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from abd_jax.attacks.attack import BY_OBJECTIVE
from abd_jax.training.audit import SIGNS, Examination
from abd_jax.writing import write_whole

ROWS_FILE = "calibration.json"
_BACKDOORED = 0.5
"""ASR from which on a teacher of a zoo counts as poisoned."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One teacher of a zoo: what is known of it, and its signs."""

    path: str
    trigger: str
    dataset: str
    architecture: str
    digest: str
    asr: float
    poisoned: bool
    signs: dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """How good one sign is on a zoo.

    Attributes:
        auc: how often a poisoned teacher's value lies above a clean one's, ties counting half.
        threshold: from which on the sign speaks for a backdoor, chosen on all teachers; None: the sign is no better
            than chance, see `beats_chance`.
        missed, false_alarms: errors and cases; each teacher is judged by the threshold that all others choose, without
            those of its own trigger.
    """

    auc: float
    threshold: float | None
    missed: tuple[int, int]
    false_alarms: tuple[int, int]


def auc(clean: Sequence[float], poisoned: Sequence[float]) -> float:
    """Area under the ROC curve: how often a poisoned value lies above a clean one, ties counting half."""
    pairs = [(p > c) + 0.5 * (p == c) for p in poisoned for c in clean]
    return float(np.mean(pairs)) if pairs else math.nan


def beats_chance(area: float, clean: int, poisoned: int) -> bool:
    """Whether an AUC is above ½ by more than luck: Mann–Whitney's one-sided test at 5 %, in its normal approximation.

    Args:
        area: the AUC.
        clean, poisoned: number of teachers.
    """
    return area > 0.5 + 1.645 * math.sqrt((clean + poisoned + 1) / (12 * clean * poisoned))


def best_threshold(clean: Sequence[float], poisoned: Sequence[float]) -> float | None:
    """The midpoint of two neighboring values with the largest (hits − false alarms); of equals, in the widest gap.

    None if none beats chance.
    """
    values = sorted({*clean, *poisoned})
    best: tuple[float, float] = (0.0, 0.0)
    chosen = None
    for low, high in itertools.pairwise(values):
        middle = (low + high) / 2
        gain = np.mean([p > middle for p in poisoned]) - np.mean([c > middle for c in clean])
        if gain > 1e-9 and (round(float(gain), 9), high - low) > best:
            best, chosen = (round(float(gain), 9), high - low), middle
    return chosen


def roc(clean: Sequence[float], poisoned: Sequence[float]) -> list[tuple[float, float]]:
    """(share of false alarms, share of hits) at every threshold, from (0, 0) to (1, 1)."""
    thresholds = sorted({*clean, *poisoned}, reverse=True)
    points = [
        (float(np.mean([c >= at for c in clean])), float(np.mean([p >= at for p in poisoned]))) for at in thresholds
    ]
    return [(0.0, 0.0), *points]


def calibrate(rows: Sequence[Row]) -> dict[str, Calibrated]:
    """Every sign's quality on a zoo; signs that were measured on no clean or no poisoned teacher are left out.

    Raises:
        ValueError: fewer than two clean teachers, or poisoned ones of fewer than two triggers.
    """
    clean_rows, poisoned_rows = split(rows)
    triggers = sorted({row.trigger for row in poisoned_rows})
    if len(clean_rows) < 2 or len(triggers) < 2:
        raise ValueError(
            f"{len(clean_rows)} clean teacher(s) and poisoned ones of {len(triggers)} trigger(s): "
            "a calibration needs 2 clean ones and 2 triggers, so that each is judged by the others"
        )
    found = {}
    for name in SIGNS:
        values = [(row, row.signs.get(name)) for row in rows]
        known = [(row, value) for row, value in values if value is not None]
        if {row.poisoned for row, _ in known} != {True, False}:
            continue

        def threshold(kept: Sequence[tuple[Row, float]]) -> float | None:
            return best_threshold(
                [value for row, value in kept if not row.poisoned], [value for row, value in kept if row.poisoned]
            )

        errors = {True: [0, 0], False: [0, 0]}
        for judged, value in known:
            held_out = [
                (row, other)
                for row, other in known
                if row is not judged and not (judged.poisoned and row.poisoned and row.trigger == judged.trigger)
            ]
            bar = threshold(held_out)
            alarm = bar is not None and value > bar
            errors[judged.poisoned][0] += alarm != judged.poisoned
            errors[judged.poisoned][1] += 1
        area = auc([v for row, v in known if not row.poisoned], [v for row, v in known if row.poisoned])
        found[name] = Calibrated(
            auc=area,
            threshold=threshold(known) if beats_chance(area, errors[False][1], errors[True][1]) else None,
            missed=(errors[True][0], errors[True][1]),
            false_alarms=(errors[False][0], errors[False][1]),
        )
    return found


def split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The clean teachers and the poisoned ones."""
    return [row for row in rows if not row.poisoned], [row for row in rows if row.poisoned]


def row_of(facts: Mapping[str, Any], found: Examination) -> Row | None:
    """A zoo's teacher with its signs; None if it was attacked in vain: neither clean nor backdoored.

    An attack by the objective poisons no image; the Nasty Teacher's has no backdoor either.

    Args:
        facts: as `zoo.teachers` lists them.
        found: its examination.
    """
    asr = facts["asr"] or 0.0
    attacked = bool(facts["poisoned"]) or facts["trigger"] in BY_OBJECTIVE
    if asr < _BACKDOORED and attacked:
        return None
    poisoned = asr >= _BACKDOORED
    return Row(
        path=str(facts["path"]),
        trigger=str(facts["trigger"]) if poisoned else "none",
        dataset=str(facts["dataset"]),
        architecture=str(facts["architecture"]),
        digest=str(facts["digest"]),
        asr=float(asr),
        poisoned=poisoned,
        signs=found.signs,
    )


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A calibration as JSON: the rows, from which all else follows."""
    write_whole(path, json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")


def read_rows(path: Path | None = None) -> list[Row]:
    """A calibration's rows; None: the one that comes with the package, of digits teachers.

    Raises:
        ValueError: not there, or no calibration.
    """
    if path is None:
        return _parse(resources.files("abd_jax.training").joinpath(ROWS_FILE).read_text())
    file = path / ROWS_FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"--calibration {path}: no such file; `audit --calibrate ZOO --out DIR` makes one")
    try:
        rows = _parse(file.read_text())
        calibrate(rows)
    except ValueError as error:
        raise ValueError(f"--calibration {file}: {error}") from error
    return rows


def _parse(text: str) -> list[Row]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no calibration ({' '.join(str(error).split())[:160]})") from error
    if not isinstance(content, list):
        raise ValueError(f"no calibration (expected a list, found {type(content).__name__})")
    return [_row(raw) for raw in content]


def _row(raw: object) -> Row:
    kinds: dict[str, type | tuple[type, ...]] = {"asr": (int, float), "poisoned": bool, "signs": dict}
    names = [field.name for field in dataclasses.fields(Row)]
    if not isinstance(raw, dict) or sorted(raw) != sorted(names):
        raise ValueError(f"no calibration (each teacher needs {', '.join(names)})")
    for name in names:
        if not isinstance(raw[name], kinds.get(name, str)):
            raise ValueError(f"no calibration ({name} is of type {type(raw[name]).__name__})")
    values = list(raw["signs"].values())
    numbers = all(value is None or (isinstance(value, int | float) and math.isfinite(value)) for value in values)
    if set(raw["signs"]) != set(SIGNS) or not numbers:
        raise ValueError(f"no calibration (signs: expected a number or null for each of {', '.join(SIGNS)})")
    return Row(**{**raw, "asr": float(raw["asr"])})
