"""ACC and ASR over training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from markupsafe import Markup

from abd_jax.report import plots
from abd_jax.report.reading import Reproduction
from abd_jax.report.rows import Row
from abd_jax.report.sections.choice import triggers
from abd_jax.report.summary import Statistic


@dataclasses.dataclass(frozen=True)
class CurvePair:
    """ACC and ASR over training of all students of a trigger."""

    trigger: str
    acc: Markup
    asr: Markup
    seeds: int


def curve_pairs(run: Reproduction) -> list[CurvePair]:
    """Two plots for every trigger with a student whose rates were measured at least once."""
    pairs = []
    for trigger in triggers(run.students):
        students = [student for student in run.students if student.trigger == trigger and student.curve.steps]
        if not students:
            continue
        students.sort(key=lambda student: _defense_order(run, student.defense))
        teachers = [row for row in run.rows if row.trigger == trigger and row.role == "teacher"]
        acc, asr = (
            plots.curves(rate, students, _mean(rate, teachers) if teachers else None, trigger)
            for rate in ("acc", "asr")
        )
        pairs.append(CurvePair(trigger, acc, asr, len({student.seed for student in students})))
    return pairs


def _mean(rate: str, rows: Iterable[Row]) -> float:
    return Statistic.of(getattr(row, rate) for row in rows).mean


def _defense_order(run: Reproduction, defense: str) -> int:
    return list(dict.fromkeys((*run.defenses, *(student.defense for student in run.students)))).index(defense)
